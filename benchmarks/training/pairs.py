"""Train recipes in turn and compare them: `python -m benchmarks.training.pairs fast94 classic`.

Each run is a process of its own, `training.train RECIPE --final --seed N`, kept in a folder of
--output; with seed 0 all recipes run, then with seed 1, and so on. After an interruption the same
command goes on, and a finished run is only read. Prints accuracy, minutes of the whole processes,
their arithmetic, and the share of the time that is not in training steps.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, mean_and_std, print_table
from training import import_keras
from training.cifar10 import recipes


def train(name: str, seed: int, output: Path, options: Sequence[str]) -> dict[str, Any]:
    """The result of a run, which is trained where it is not finished."""
    run = output / f"{name}-seed{seed}"
    command = ["training.train", name, "--final", "--seed", str(seed), "--output", str(run)]
    done = subprocess.run([sys.executable, "-m", *command, *options], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def rows(results: dict[str, list[dict[str, Any]]]) -> Iterator[list[str]]:
    from benchmarks.training.speed import pflop

    first = [run["seconds"] for run in next(iter(results.values()))]
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        outside = [1 - run["seconds_in_steps"] / run["seconds"] for run in runs]
        ratios = [one / other for one, other in zip(seconds, first, strict=True)]
        yield [
            f"`{name}`, n={len(runs)}",
            mean_and_std([100 * run["accuracy"] for run in runs], " %"),
            mean_and_std([100 * run["accuracy_tta"] for run in runs], " %"),
            mean_and_std([each / 60 for each in seconds]),
            mean_and_std(ratios),
            f"{pflop(replace(recipes.load(name), epochs=runs[0]['epochs'])):.3f}",
            f"{statistics.mean(outside):.1%}",
        ]


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("recipes", nargs="+", choices=recipes.names(), help="the first is what others relate to")
    add("--rounds", type=int, default=3, help="seeds from 0 on (%(default)s)")
    add("--epochs", help="instead of the recipes' own numbers, to try the command")
    add("--dtype", help="instead of the recipes' choice")
    add("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    add("--output", type=Path, default=Path("runs/pairs"), help="folder of the runs (%(default)s)")
    args = parser.parse_args()
    options = [
        word
        for name in ("epochs", "dtype", "data")
        if (value := getattr(args, name))
        for word in (f"--{name}", value)
    ]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.recipes}
    for seed in range(args.rounds):
        for name, runs in results.items():
            runs.append(train(name, seed, args.output, options))
    import_keras()
    print_table(
        [
            "recipe",
            "one view",
            "with test-time augmentation",
            "minutes",
            "of the first's",
            "PFLOP",
            "outside steps",
        ],
        rows(results),
    )


if __name__ == "__main__":
    main()

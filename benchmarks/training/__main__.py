"""How soon the recipes are how good, and how near they come to the machine's limit.

    python -m benchmarks.training [--short]

The accuracies are those of the recorded runs in benchmarks/training/records (made by
training.train): by epoch on the 5,000 validation images, at the end on the test images. The speed
of a training step and of matrix products is measured now, in turn. Writes
benchmarks/training/README.md; --short measures one round and prints its page instead.
"""

import argparse
import datetime
import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from benchmarks.serving.__main__ import spread, table
from benchmarks.serving.load import ROOT
from benchmarks.training.step import images_per_second, matrix_product_gflops
from training.cifar10 import recipes
from training.cifar10.records import RECORDS, read_history
from training.files import replacing

PAGE = ROOT / "benchmarks" / "training" / "README.md"
NAMES = ("fast94", "classic")
ENDED = ("fast94", "airbench94", "classic")
GOALS = (0.90, 0.92, 0.93, 0.94)
ROUNDS = 3
SIDE = 32
PUBLISHED = (
    ("the original's `classic`, a V100", "275", "about 120", "90.87 %", ""),
    ("airbench94, an A100 (Jordan 2024)", "9.9", "0.064", "", "94.01 %"),
)


def finals(name: str) -> list[dict[str, Any]]:
    """The results of a recipe's runs that ended on the test set, a run a seed."""
    return [json.loads(p.read_text()) for p in sorted(RECORDS.glob(f"{name}-seed*-final.json"))]


def reached(name: str, goal: float) -> list[tuple[float, float] | None]:
    """Minutes and epochs until the validation accuracy of each seed first was `goal`, or None."""
    found = []
    for path in sorted(RECORDS.glob(f"{name}-seed?.csv")):
        rows = [row for row in read_history(path) if row["val_accuracy"] >= goal]
        found.append((rows[0]["seconds"] / 60, rows[0]["epoch"]) if rows else None)
    return found


def ended_at(name: str, goal: float) -> list[tuple[float, float] | None]:
    """The same for the test accuracy with augmentation, which is measured at the end alone."""
    return [
        (run["seconds"] / 60, run["epochs"]) if run["accuracy_tta"] >= goal else None
        for run in finals(name)
    ]


def cell(found: Sequence[tuple[float, float] | None]) -> str:
    """The mean of the minutes, and each seed's epochs."""
    minutes = [each[0] for each in found if each]
    epochs = ", ".join(f"{each[1]:g}" if each else "–" for each in found)
    return f"{mean_and_std(minutes, '')} ({epochs})" if minutes else "–"


def mean_and_std(values: Sequence[float], unit: str) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}{unit}"


def gflop_an_image(network: keras.Model, side: int) -> float:
    """Arithmetic of a training step: the products of forward pass and two backward ones, in 1e9."""
    sized = keras.models.clone_model(network, input_tensors=keras.Input((side, side, 3)))
    forward = 0.0
    for layer in sized.layers:
        if isinstance(layer, keras.layers.Conv2D):
            _, height, width, _ = layer.output.shape
            forward += 2 * height * width * float(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            forward += 2 * float(np.prod(layer.kernel.shape))
    return 3 * forward / 1e9


def endings() -> str:
    """What the recipes reach at their end, beside what was published."""
    rows = []
    for name in ENDED:
        runs = finals(name)
        rows.append(
            (
                f"`{name}`, these 2 cores, n={len(runs)}",
                f"{runs[0]['epochs']:g}",
                mean_and_std([run["seconds"] / 60 for run in runs], ""),
                mean_and_std([100 * run["accuracy"] for run in runs], " %"),
                mean_and_std([100 * run["accuracy_tta"] for run in runs], " %"),
            )
        )
    heads = ("run", "epochs", "minutes", "test accuracy, one view", "with augmentation of the test")
    return table(heads, [*rows, *PUBLISHED])


def milestones() -> str:
    """When the recipes first reach an accuracy."""
    rows = [
        *((percent(goal), *(cell(reached(name, goal)) for name in NAMES)) for goal in GOALS),
        (
            f"{percent(GOALS[-1])} of the test images, with augmentation",
            *(cell(ended_at(name, GOALS[-1])) for name in NAMES),
        ),
    ]
    return table(("accuracy", *(f"`{name}`: minutes (epochs)" for name in NAMES)), rows)


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def speeds(rounds: int) -> str:
    """The recipes' arithmetic beside that of matrix products, measured in turn."""
    seen: dict[str, list[float]] = {}
    for _ in range(rounds):
        for dtype in ("float32", "bfloat16"):
            seen.setdefault(dtype, []).append(matrix_product_gflops(dtype))
        for name in NAMES:
            recipe = recipes.load(name)
            keras.config.set_dtype_policy("float32")
            gflop = gflop_an_image(recipe.network(), SIDE)
            seen.setdefault(name, []).append(gflop * images_per_second(recipe, SIDE))
    rows = [
        (
            f"matrix product in {name}" if name not in NAMES else f"training step of `{name}`",
            spread(values),
            *(
                f"{statistics.median(a / b for a, b in zip(values, seen[dtype], strict=True)):.0%}"
                for dtype in ("float32", "bfloat16")
            ),
        )
        for name, values in seen.items()
    ]
    return table(("what", "GFLOP/s", "of float32", "of bfloat16"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="How soon the recipes are how good.")
    parser.add_argument("--short", action="store_true", help="one round of the speeds")
    args = parser.parse_args()
    today = datetime.date.today().isoformat()
    sections = (
        f"# Training, side by side\n\n{today}, {os.cpu_count()} cores. Written by "
        "`python -m benchmarks.training`.",
        "## At the end\n\nWhole processes, from start to the last figure.\n\n" + endings(),
        "## On the way\n\nThe first epoch after which one view of the 5,000 validation images is "
        "classified so well, of each seed; minutes count from the start of the process. The test "
        "images are seen at the end alone, by the runs above.\n\n" + milestones(),
        "## Against the machine's limit\n\nThe products of a step on images of "
        f"{SIDE} pixels alone are counted; the rest of it costs time, too. Medians of rounds in "
        "turn, the least and the most.\n\n" + speeds(1 if args.short else ROUNDS),
    )
    if args.short:
        print("\n\n".join(sections))
        return
    with replacing(PAGE) as part:
        part.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

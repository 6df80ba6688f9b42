"""The page of `python -m benchmarks.training`."""

import datetime
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import mean_and_std, spread, table
from benchmarks.training.speed import gflop_per_image, images_per_second, matrix_product_gflops
from training.cifar10 import recipes, train
from training.cifar10.records import RECORDS, read_history

NAMES = ("fast94", "fast94_2025", "classic")
ENDED = ("fast94", "fast94_2025", "airbench94", "classic", "street")
GOALS = (0.90, 0.92, 0.93, 0.94)
DTYPES = ("float32", "bfloat16")
IMAGE_SIZE = 32  # pixels
PUBLISHED = (
    ("the original's `classic`, a V100", "275", "about 120", "90.87 %", ""),
    ("airbench94, an A100 (Jordan 2024)", "9.9", "0.064", "", "94.01 %"),
)


def sections(rounds: int) -> list[str]:
    """The recorded runs, and the speeds of so many rounds, as Markdown."""
    return [
        f"# Training, side by side\n\n{datetime.date.today().isoformat()}, {os.cpu_count()} cores. "
        "Written by `python -m benchmarks.training`.",
        "## Final accuracy\n\nWhole processes, from start to the last figure.",
        table(
            ("run", "epochs", "minutes", "test accuracy, one view", "with test-time augmentation"),
            (*endings(), *PUBLISHED),
        ),
        "## Time to accuracy\n\nThe first epoch after which one view of the 5,000 validation "
        "images reaches the accuracy, of each seed; minutes count from the start of the process. "
        "The test images are measured at the end alone, by the runs above.",
        table(("accuracy", *(f"`{name}`: minutes (epochs)" for name in NAMES)), milestones()),
        "## Against the machine's limit\n\nThe products of a step on images of "
        f"{IMAGE_SIZE} pixels alone are counted; the rest of it costs time, too. Medians of rounds "
        "in turn, the least and the most.",
        table(("what", "GFLOP/s", *(f"of {dtype}" for dtype in DTYPES)), speeds(rounds)),
    ]


def final_results(name: str) -> list[dict[str, Any]]:
    """The results of a recipe's runs that ended on the test set, a run a seed."""
    return [json.loads(p.read_text()) for p in sorted(RECORDS.glob(f"{name}-seed*-final.json"))]


def endings() -> Iterator[list[str]]:
    for name in ENDED:
        runs = final_results(name)
        yield [
            f"`{name}`, these 2 cores, n={len(runs)}",
            f"{runs[0]['epochs']:g}",
            mean_and_std([run["seconds"] / 60 for run in runs]),
            mean_and_std([100 * run["accuracy"] for run in runs], " %"),
            mean_and_std([100 * run["accuracy_tta"] for run in runs], " %"),
        ]


def time_to_validation(name: str, goal: float) -> list[tuple[float, float] | None]:
    """Minutes and epochs until the validation accuracy of each seed first was `goal`, or None."""
    found = []
    for path in sorted(RECORDS.glob(f"{name}-seed?.csv")):
        rows = [row for row in read_history(path) if row["val_accuracy"] >= goal]
        found.append((rows[0]["seconds"] / 60, rows[0]["epoch"]) if rows else None)
    return found


def time_to_test(name: str, goal: float) -> list[tuple[float, float] | None]:
    """The same for the test accuracy with augmentation, which is measured at the end alone."""
    return [
        (run["seconds"] / 60, run["epochs"]) if run["accuracy_tta"] >= goal else None
        for run in final_results(name)
    ]


def milestones() -> Iterator[list[str]]:
    for goal in GOALS:
        cells = (cell(time_to_validation(name, goal)) for name in NAMES)
        yield [f"{100 * goal:g} %", *cells]
    last = f"{100 * GOALS[-1]:g} % of the test images, with test-time augmentation"
    yield [last, *(cell(time_to_test(name, GOALS[-1])) for name in NAMES)]


def cell(found: Sequence[tuple[float, float] | None]) -> str:
    """The mean of the minutes of the seeds that reach it, and each seed's epochs."""
    minutes = [each[0] for each in found if each]
    epochs = ", ".join(f"{each[1]:g}" if each else "–" for each in found)
    some = f"{len(minutes)} of {len(found)}: " if len(minutes) < len(found) else ""
    return f"{some}{mean_and_std(minutes)} ({epochs})" if minutes else "–"


def speeds(rounds: int) -> Iterator[list[str]]:
    """The recipes' arithmetic beside that of matrix products, measured in turn."""
    measured = defaultdict(list)
    loaded = {name: recipes.load(name) for name in NAMES}
    chosen = {name: replace(each, dtype=train.dtype_of(each)) for name, each in loaded.items()}
    for _ in range(rounds):
        for dtype in DTYPES:
            measured[dtype].append(matrix_product_gflops(dtype))
        for name, recipe in chosen.items():
            gflop = gflop_per_image(recipe.network(), IMAGE_SIZE)
            measured[name].append(gflop * images_per_second(recipe, IMAGE_SIZE))
    for name, values in measured.items():
        what = f"matrix product in {name}" if name in DTYPES else f"training step of `{name}`"
        shares = (
            statistics.median(a / b for a, b in zip(values, measured[dtype], strict=True))
            for dtype in DTYPES
        )
        yield [what, spread(values), *(f"{share:.0%}" for share in shares)]

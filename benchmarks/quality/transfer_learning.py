"""What photos of one's own give: `python -m benchmarks.quality.transfer_learning PHOTOS …`.

Runs training.transfer on three splits of each folder. Prints mean and standard deviation of what
the 8-bit networks reach on the test photos, and on photos of --others, which they were not trained
with: accuracy, true-positive rate at the threshold, AUROC and false-positive rate.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, mean_and_std, print_table
from training import import_keras, results_of
from training.export import ExportError
from training.photos.backbones import BACKBONES, DEFAULT, WeightsError
from training.photos.inspect import PhotosError, by_name
from training.transfer import train

SEEDS = (0, 1, 2)
COLUMNS = {  # of the report: head, factor, unit, digits
    "accuracy": ("accuracy", 100, " %", 1),
    "true_positive_rate": ("true-positive rate", 100, " %", 1),
    "auroc": ("AUROC", 1, "", 3),
    "false_positive_rate": ("false-positive rate", 100, " %", 1),
}


def of_split(report: Mapping[str, Any]) -> dict[str, float]:
    """What the table tells otherwise than the report."""
    rate = report["true_positive_rate"]["test"]
    return {"true_positive_rate": rate, "minutes": report["seconds"] / 60}


def row(name: str, splits: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of a folder of photos, from the report of each split; empty without others."""
    cells = [name, str(splits[0]["test_photos"])]
    for key, (_, factor, unit, digits) in COLUMNS.items():
        values = [factor * split[key] for split in splits if key in split]
        cells.append(mean_and_std(values, unit, digits) if values else "")
    return [*cells, ", ".join(f"{split['minutes']:.1f}" for split in splits)]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("photos", nargs="+", type=Path, help="folders with a folder a class")
    others = "folders of photos of anything else"
    parser.add_argument("--others", type=Path, nargs="+", default=[], metavar="DIR", help=others)
    parser.add_argument("--backbone", choices=list(BACKBONES), default=DEFAULT)
    parser.add_argument("--weights", help="file of ImageNet weights (shipped, or Keras's download)")
    parser.add_argument("--width", type=float, default=1.0, help="MobileNetV2's alpha")
    parser.add_argument("--no-tuning", action="store_false", dest="tuning", help="the head only")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Ray cluster that trains them")
    args = parser.parse_args()
    import_keras()
    from rest_api.errors import JobError
    from training.checkpoint import RunError

    wanted = ("backbone", "weights", "width", "others", "tuning")
    options = {name: getattr(args, name) for name in wanted}
    figures: dict[str, list[dict[str, Any]]] = {folder.name: [] for folder in args.photos}
    try:
        folders = by_name(args.photos)
        splits = list(product(folders, SEEDS))
        calls = {
            bundle: partial(
                train, folders[name], Path("runs", "bundles", bundle), seed=seed, **options
            )
            for name, seed in splits
            for bundle in [f"{name}-seed{seed}"]
        }
        if args.cluster:  # side by side, they would write the same cache
            calls = {name: partial(call, runs=Path("runs", name)) for name, call in calls.items()}
        for (name, _), (report, _) in zip(splits, results_of(calls, args.cluster), strict=True):
            figures[name].append(report | of_split(report))
    except (RunError, ExportError, PhotosError, WeightsError, JobError) as error:
        sys.exit(f"error: {error}")
    heads = [head for head, *_ in COLUMNS.values()]
    rows = [row(name, splits) for name, splits in figures.items()]
    print_table(["photos", "test photos", *heads, "minutes"], rows)


if __name__ == "__main__":
    main()

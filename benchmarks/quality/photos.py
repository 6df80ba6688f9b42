"""What the command for one's own photos reaches: `python -m benchmarks.quality.photos PHOTOS …`.

Runs training.transfer on three splits of each folder, and prints the mean and the standard
deviation of what its 8-bit networks say of the test photos, and of --strangers, which they have
never seen.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.__main__ import table
from rest_api.bundle import load_bundle
from training.photos.inspect import files_in, look
from training.photos.report import examine
from training.photos.transfer import gather, transfer

SEEDS = (0, 1, 2)
COLUMNS = {
    "accuracy": "right",
    "accepted": "accepted",
    "background_auroc": "strangers, AUROC",
    "background_accepted": "strangers accepted",
}


def figures_of(folder: Path, seed: int, strangers: Path | None, **how: Any) -> dict[str, float]:
    """Train on one split; what its bundle is worth on the test photos and on strangers."""
    destination = Path("bundles", f"{folder.name}-seed{seed}")
    seconds = transfer(folder, destination, seed=seed, **how)[0]["seconds"]
    test = gather(folder, None, seed)[1].parts["test"]
    unknown = look([(path, "") for path in files_in(strangers)])[0] if strangers else []
    figures, _ = examine(load_bundle(destination), test, unknown)
    return figures | {"minutes": seconds / 60}


def row(name: str, splits: Sequence[dict[str, float]]) -> list[str]:
    """The cells of a folder of photos."""
    cells = [name, str(splits[0]["test_photos"])]
    for key in COLUMNS:
        if key in splits[0]:
            scale, unit = (1, "") if key.endswith("auroc") else (100, " %")
            values = [split[key] * scale for split in splits]
            digits = 1 if unit else 3
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            cells.append(f"{mean:.{digits}f} ± {deviation:.{digits}f}{unit}")
        else:
            cells.append("")
    return [*cells, ", ".join(f"{split['minutes']:.1f}" for split in splits)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on three splits of folders of photos.")
    parser.add_argument("photos", nargs="+", type=Path, help="folders with a folder a class")
    parser.add_argument("--strangers", type=Path, help="photos of anything else")
    parser.add_argument("--weights", help="file of ImageNet weights (Keras's download)")
    parser.add_argument("--width", type=float, default=1.0, help="MobileNetV2's alpha")
    args = parser.parse_args()
    how = {"weights": args.weights, "width": args.width}
    rows = [
        row(folder.name, [figures_of(folder, seed, args.strangers, **how) for seed in SEEDS])
        for folder in args.photos
    ]
    print(table(["photos", "test photos", *COLUMNS.values(), "minutes"], rows))


if __name__ == "__main__":
    main()

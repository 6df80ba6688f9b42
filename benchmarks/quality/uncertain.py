"""What "uncertain" buys: `python -m benchmarks.quality.uncertain PHOTOS…`.

Prints, for the shipped classifier, the accuracy on the CIFAR-10 test set where the least certain
answers are held back, and how many photos of each folder PHOTOS (searched through), of things
that it does not know, are flagged.
"""

import argparse
from pathlib import Path

import numpy as np

from rest_api.bundle import load_bundle
from rest_api.engine import load_engine
from rest_api.images import decode, to_square
from rest_api.settings import DEFAULT_MODEL
from training import metrics
from training.cifar10.data import load_cifar10
from training.evaluate import in_batches

COVERAGES = (1, 0.98, 0.95, 0.9, 0.8, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the threshold holds back.")
    parser.add_argument("photos", type=Path, nargs="*", help="folders of what it does not know")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    args = parser.parse_args()
    bundle = load_bundle(args.model)
    predict, side = load_engine(bundle), bundle.input_size

    _, (images, labels) = load_cifar10(args.data)
    probabilities, _ = in_batches(predict, images)
    print("| answered | threshold | accuracy |\n|---:|---:|---:|")
    thresholds = [metrics.threshold_of(probabilities, share) for share in COVERAGES]
    for threshold in sorted([*thresholds, bundle.threshold]):
        share, accuracy = metrics.selective(probabilities, labels, threshold)
        shipped = " (shipped)" if threshold == bundle.threshold else ""
        print(f"| {share:.1%} | {threshold:.3f}{shipped} | {accuracy:.2%} |")

    print("\n| photos | number | uncertain | confident beyond 90 % |\n|---|---:|---:|---:|")
    for folder in args.photos:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        squares = [to_square(decode(f.read_bytes(), side), side, bundle.resize) for f in files]
        best = in_batches(predict, np.stack(squares)).scores
        flagged, sure = (best < bundle.threshold).mean(), (best > 0.9).mean()
        print(f"| {folder.name} | {len(files)} | {flagged:.1%} | {sure:.1%} |")


if __name__ == "__main__":
    main()

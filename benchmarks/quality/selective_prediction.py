"""What does holding back uncertain predictions buy?

    python -m benchmarks.quality.selective_prediction

Prints, for a bundle on the CIFAR-10 test set, the selective accuracy (of the predictions whose
score reaches the threshold) at several coverages (the share of those), and at the bundle's own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.common import command_line, print_table
from rest_api.bundle import BundleError
from rest_api.engine import load_engine
from rest_api.settings import DEFAULT_MODEL
from training import metrics

COVERAGES = (1, 0.98, 0.95, 0.9, 0.8, 0.7)


def rows(probabilities: np.ndarray, labels: np.ndarray, own: float) -> Iterator[list[str]]:
    """A row for each coverage, and one for the bundle's `own` threshold."""
    for threshold in sorted([own, *(threshold_of(probabilities, c) for c in COVERAGES)]):
        coverage, accuracy = selective(probabilities, labels, threshold)
        shipped = " (the bundle's)" * (threshold == own)
        yield [f"{coverage:.1%}", f"{threshold:.3f}{shipped}", f"{accuracy:.2%}"]


def threshold_of(probabilities: np.ndarray, coverage: float) -> float:
    """The confidence that a fraction `coverage` of the predictions reaches."""
    return float(np.quantile(probabilities.max(-1), 1 - coverage))


def selective(
    probabilities: np.ndarray, labels: np.ndarray, threshold: float
) -> tuple[float, float]:
    """Coverage and selective accuracy, of predictions that reach the threshold (1 if none does).

    Selective prediction (Geifman & El-Yaniv 2017, arXiv:1705.08500), by softmax response.
    """
    kept = probabilities.max(-1) >= threshold
    accuracy = metrics.accuracy(probabilities[kept], labels[kept]) if kept.any() else 1.0
    return float(kept.mean()), accuracy


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    args = parser.parse_args()
    from training.cifar10.data import DataError, load_cifar10, load_cifar10_bundle
    from training.evaluate import outputs_of

    try:
        bundle = load_cifar10_bundle(args.model)
        predict = load_engine(bundle)
        _, (images, labels) = load_cifar10(args.data)
    except (BundleError, DataError) as error:
        sys.exit(f"error: {error}")
    outputs = outputs_of(predict, bundle, images)
    print_table(
        ["coverage", "threshold", "selective accuracy"],
        rows(outputs.probabilities, labels, bundle.threshold),
    )


if __name__ == "__main__":
    main()

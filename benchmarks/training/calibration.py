"""How many held-out images does calibration take? `python -m benchmarks.training.calibration`.

Temperature and threshold are fitted on some images of the test set, drawn 200 times, and measured
on the others: expected calibration error, and the coverage where 95 % are meant. For comparison
they are fitted on images that the bundle's network was trained on, as they are and as training
shows them. The bundle must be of a run on all 50,000 training images.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import command_line, mean_and_std, print_table
from rest_api.bundle import Bundle, BundleError
from rest_api.engine import load_engine
from rest_api.settings import DEFAULT_MODEL
from training import augment, metrics
from training.cifar10.data import DataError, Split, load_cifar10, load_cifar10_bundle
from training.evaluate import in_batches, views_of
from training.export import COVERAGE, calibrate

SIZES = (250, 500, 1000, 2000)
DRAWS = 200
FAST94 = DEFAULT_MODEL.with_name("cifar10-fast94")


def logits_of(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """What the softmax of the bundle's network takes, but for a constant: (N, views, classes)."""
    shown = views_of(map(Image.fromarray, images), bundle.input_size, bundle.views)
    predict = load_engine(bundle)
    probabilities = [in_batches(predict, view).probabilities for view in shown]
    return np.log(np.stack(probabilities, 1) + 1e-12)


def figures(fitted_on: Split, measured_on: Split) -> tuple[float, float, float]:
    """Temperature, expected calibration error and coverage, the latter two in percent."""
    temperature, described = calibrate(*fitted_on, "")
    logits, labels = measured_on
    probabilities = metrics.softmax(logits.mean(1) / temperature)
    answered = probabilities.max(1) >= described["uncertainty"]["threshold"]
    error = metrics.expected_calibration_error(probabilities, labels)
    return temperature, 100 * error, 100 * float(answered.mean())


def rows(bundle: Bundle, training: Split, test: Split) -> Iterator[list[str]]:
    (train_images, train_labels), (images, labels) = training, test
    logits, rng = logits_of(bundle, images), np.random.default_rng(0)
    for size in SIZES:
        drawn = []
        for _ in range(DRAWS):
            order = rng.permutation(len(labels))
            held_out, rest = order[:size], order[size:]
            fitted_on = logits[held_out], labels[held_out]
            drawn.append(figures(fitted_on, (logits[rest], labels[rest])))
        columns = zip(*drawn, strict=True)
        yield [f"{size:,} held-out images", *(mean_and_std(column) for column in columns)]
    train_images, train_labels = train_images[:2000], train_labels[:2000]
    cropped = augment.random_crop(train_images, 2, rng)
    for name, shown in (("as they are", train_images), ("cropped as in training", cropped)):
        found = figures((logits_of(bundle, shown), train_labels), (logits, labels))
        yield [f"2,000 training images, {name}", *(f"{each:.2f}" for each in found)]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path, default=FAST94, help="a bundle (cifar10-fast94)")
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    args = parser.parse_args()
    try:
        bundle, data = load_cifar10_bundle(args.model), load_cifar10(args.data)
    except (BundleError, DataError) as error:
        sys.exit(f"error: {error}")
    heads = ["fitted on", "temperature", "calibration error (%)", f"coverage, {COVERAGE:.0%} meant"]
    print_table(heads, rows(bundle, *data))


if __name__ == "__main__":
    main()

"""Measure a classifier; as a command, a model bundle on the CIFAR-10 test set.

    python -m training.evaluate BUNDLE

Runs the bundle's files through the code that serves them. Prints accuracy with and without
test-time augmentation, accuracy per class and calibration; writes confusion.png, reliability.png
and evaluation.json to --output.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from rest_api.bundle import FILENAMES, Bundle, BundleError, View, sizes_of
from rest_api.engine import Outputs, Predict, judge, load_engine, mean_over_views
from rest_api.images import to_views
from training import check_installed, metrics
from training.files import check_writable, write_json


def evaluate(
    predict: Predict, bundle: Bundle, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Every figure of a bundle's network on images (N, H, W, 3) uint8 and labels (N,) integers.

    All but `accuracy_tta` are those of the bundle's views.
    """
    outputs = outputs_of(predict, bundle, images)
    probabilities = outputs.probabilities
    answered = ~judge(outputs, bundle).uncertain
    # The mean of log probabilities ranks the classes as the mean of logits does.
    log_probabilities = [
        weight * np.log(in_batches(predict, view).probabilities + 1e-12)
        for weight, view in metrics.views(images)
    ]
    averaged = np.sum(log_probabilities, axis=0)
    per_class = metrics.per_class_accuracy(probabilities, labels)
    return {
        "images": len(labels),
        "accuracy": metrics.accuracy(probabilities, labels),
        "accuracy_tta": metrics.accuracy(averaged, labels),
        "cross_entropy": metrics.cross_entropy(probabilities, labels),
        "expected_calibration_error": metrics.expected_calibration_error(probabilities, labels),
        "coverage": float(answered.mean()),
        "selective_accuracy": metrics.accuracy(probabilities[answered], labels[answered]),
        "accuracy_per_class": dict(zip(bundle.labels, per_class.tolist(), strict=True)),
        "confusion": metrics.confusion_matrix(probabilities, labels).tolist(),
        "reliability": metrics.reliability(probabilities, labels).tolist(),
    }


def outputs_of(predict: Predict, bundle: Bundle, images: np.ndarray) -> Outputs:
    """The mean over a bundle's views of images (N, H, W, 3) uint8, as they are served."""
    views = views_of(map(Image.fromarray, images), bundle.input_size, bundle.views)
    return mean_over_views([in_batches(predict, view) for view in views], bundle.early_exit)


def in_batches(predict: Predict, images: np.ndarray, size: int = 500) -> Outputs:
    """The network's probabilities and scores for any number of images (N, H, W, 3)."""
    starts = tqdm(range(0, len(images), size), leave=False, unit="batch", disable=None)
    return joined([predict(images[i : i + size]) for i in starts])


def joined(batches: Sequence[Outputs]) -> Outputs:
    """The probabilities and scores of batches as those of one."""
    return Outputs(
        np.concatenate([each.probabilities for each in batches]),
        np.concatenate([each.scores for each in batches]),
    )


def views_of(
    images: Iterable[Image.Image], image_size: int, views: Sequence[View]
) -> list[np.ndarray]:
    """Each view of N RGB images, (N, side, side, 3) uint8; sides as in `to_views`."""
    shown = [to_views(image, image_size, views) for image in images]
    return [np.stack(view) for view in zip(*shown, strict=True)]


def labelled_views(
    folder: Path, labels: Sequence[str], image_size: int, views: Sequence[View]
) -> tuple[list[np.ndarray], np.ndarray]:
    """The views of the photos in a folder that holds a folder a class, and their class ids (N,).

    Raises PhotosError.
    """
    from training.photos.inspect import labelled_files, read

    files = labelled_files(folder, labels)
    largest = max(sizes_of(views, image_size))
    photos = (read(path, largest) for path, _ in files)
    return views_of(photos, image_size, views), np.array([class_id for _, class_id in files])


def report(figures: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    lines = [
        f"images                      {figures['images']:,}",
        f"accuracy                    {figures['accuracy']:.2%}",
        f"  with test-time augmentation {figures['accuracy_tta']:.2%}",
        f"expected calibration error  {figures['expected_calibration_error']:.2%}",
        f"cross-entropy               {figures['cross_entropy']:.4f}",
        f"coverage (not uncertain)    {figures['coverage']:.2%}",
        f"  selective accuracy        {figures['selective_accuracy']:.2%}",
        "accuracy per class",
        *(f"  {name:<12} {value:.1%}" for name, value in figures["accuracy_per_class"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a bundle on the CIFAR-10 test set.")
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle's folder")
    add("--engine", choices=list(FILENAMES), help="which file (the one that is served)")
    add("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    add("--output", type=Path, help="folder for plots and figures (runs/evaluate-BUNDLE)")
    args = parser.parse_args()
    check_installed()
    from training import plots
    from training.cifar10.data import DataError, load_cifar10, load_cifar10_bundle

    try:
        bundle = load_cifar10_bundle(args.bundle)
        output = args.output or Path("runs", f"evaluate-{bundle.name}")
        check_writable(output)
        predict = load_engine(bundle, args.engine)
        _, (images, labels) = load_cifar10(args.data)
    except (BundleError, DataError, OSError) as error:
        sys.exit(f"error: {error}")
    figures = evaluate(predict, bundle, images, labels)
    print(report(figures))

    output.mkdir(parents=True, exist_ok=True)
    confusion = plots.confusion(np.array(figures["confusion"]), bundle.labels)
    plots.save(confusion, output / "confusion.png")
    reliability = plots.reliability({bundle.name: np.array(figures["reliability"])})
    plots.save(reliability, output / "reliability.png")
    write_json(output / "evaluation.json", figures)
    print(f"Plots and figures: {output}")


if __name__ == "__main__":
    main()

"""Images of other things, which teach a network to answer "none of these".

Outlier exposure (Hendrycks, Mazeika & Dietterich 2019, arXiv:1812.04606): images of CIFAR-100's
classes, none of which is one of CIFAR-10's, and synthetic ones (training/synthetic.py).
Each kind of outlier is a class of its own beyond the ten. How far an image is from all of them is
the odds of the ten classes against the others (training/ood.py).
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

from training.cifar10.data import LABELS, DataError, Split, folder_in, read_batch
from training.synthetic import DRAWINGS, PATTERNS, collage, synthesise

CIFAR100_CLASSES = 100
# Never trained on: bus and pickup_truck, too near to automobile and truck. Every fifth class is
# held out to measure how well the network tells things apart that it was not shown.
TOO_NEAR = (13, 58)
HELD_OUT_CLASSES = tuple(range(4, CIFAR100_CLASSES, 5))
SYNTHETIC = len(LABELS) + CIFAR100_CLASSES  # the class of all synthetic images
CLASSES = SYNTHETIC + 1

HELP = (
    "Give the directory that holds the official cifar-100-python/train with --outliers or "
    "CIFAR100_DIR, or neither to download it (https://www.cs.toronto.edu/~kriz/cifar.html)."
)


def load_cifar100(directory: str | Path | None = None) -> Split:
    """CIFAR-100's training images (N, 32, 32, 3) uint8 and fine labels (N,) int64 in 0..99.

    `directory` (default: the environment variable CIFAR100_DIR) holds `cifar-100-python` or is
    that folder. With neither, Keras downloads the files once into ~/.keras. Raises DataError.
    """
    directory = directory or os.environ.get("CIFAR100_DIR")
    if not directory:
        return _download()
    train = folder_in(directory, "cifar-100-python") / "train"
    return read_batch(train, b"fine_labels", CIFAR100_CLASSES, HELP)


def _download() -> Split:
    import keras

    try:
        (images, labels), _ = keras.datasets.cifar100.load_data()
    except Exception as error:  # Keras raises bare Exception when the URL cannot be reached
        raise DataError(f"CIFAR-100 could not be downloaded: {error}. {HELP}") from error
    return images, labels.ravel().astype(np.int64)


def shown(images: np.ndarray, labels: np.ndarray) -> Split:
    """The images of the CIFAR-100 classes that are trained on."""
    chosen = ~np.isin(labels, TOO_NEAR + HELD_OUT_CLASSES)
    return images[chosen], labels[chosen]


def held_out(images: np.ndarray, labels: np.ndarray) -> Split:
    """The images of the CIFAR-100 classes that are kept for measuring."""
    chosen = np.isin(labels, HELD_OUT_CLASSES)
    return images[chosen], labels[chosen]


def outliers(cifar100: Split, seed: int = 0) -> Split:
    """The images to train on as none of the ten classes, and their classes from 10 on.

    One synthetic image is added for every five of CIFAR-100's.
    """
    images, labels = shown(*cifar100)
    collages = partial(collage, images)
    synthetic = synthesise(len(images) // 5, seed, [*PATTERNS, *DRAWINGS, collages])
    return (
        np.concatenate([images, synthetic]),
        np.concatenate([labels + len(LABELS), np.full(len(synthetic), SYNTHETIC)]),
    )


def draw(known: Split, others: Split, n: int, epoch: int, seed: int) -> Split:
    """The images and labels of an epoch: all known ones, then n of the others, drawn anew."""
    rng = np.random.default_rng([seed, 0x0DD, epoch])
    drawn = rng.permutation(len(others[1]))[:n]
    images, labels = (np.concatenate([a, b[drawn]]) for a, b in zip(known, others, strict=True))
    return images, labels

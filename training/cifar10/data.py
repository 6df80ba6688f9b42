"""CIFAR-10: 50,000 training and 10,000 test images, 32x32 RGB, ten classes (Krizhevsky 2009)."""

import os
import pickle  # nosec B403
from pathlib import Path

import numpy as np

from rest_api.bundle import Bundle, BundleError, load_bundle

LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)

SIDE = 32  # pixels each way of an image
# Per channel, over the 50,000 training images, on the 0..255 scale.
CIFAR10_MEAN = (125.307, 122.950, 113.865)
CIFAR10_STD = (62.993, 62.089, 66.705)

VALIDATION_SIZE = 5_000
HELD_OUT = 1_000  # of a final run, to calibrate on
SPLIT_SEED = 2009  # one split for every run: accuracies of different runs stay comparable

Split = tuple[np.ndarray, np.ndarray]
DAMAGE = (
    OSError, EOFError, pickle.UnpicklingError, AttributeError, LookupError, MemoryError, TypeError,
    ValueError,
)  # fmt: skip
HELP = (
    "Give the directory that holds the official cifar-10-batches-py files with --data or "
    "CIFAR10_DIR, or neither to download them (https://www.cs.toronto.edu/~kriz/cifar.html)."
)


class DataError(Exception):
    """The data are missing or damaged; the message names the file and says what to do."""


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers; a pickle can otherwise run any code."""

    ALLOWED = (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refuses to load {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_batch(
    path: Path, key: bytes = b"labels", classes: int = len(LABELS), advice: str = HELP
) -> Split:
    """Read one official batch file of CIFAR-10, or of CIFAR-100, whose labels have another `key`.

    Returns images (N, 32, 32, 3) uint8 RGB and labels (N,) int64. Raises DataError, with the
    `advice`, if the file is missing, truncated or something else.
    """
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[key])
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {advice}") from None
    except DAMAGE as error:
        raise DataError(
            f"{path} is not a complete CIFAR-{classes} batch file ({error!r}). "
            f"Download it again. {advice}"
        ) from error
    if pixels.shape != (len(labels), 3072) or pixels.dtype != np.uint8:
        raise DataError(
            f"{path} holds pixels of shape {pixels.shape} {pixels.dtype} for {len(labels)} labels, "
            f"not ({len(labels)}, 3072) uint8. {advice}"
        )
    if not np.isin(labels, range(classes)).all():
        raise DataError(f"{path} holds labels outside 0..{classes - 1}. {advice}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # stored as (N, C, H, W)
    return np.ascontiguousarray(images), labels.astype(np.int64)


def load_cifar10(directory: str | Path | None = None) -> tuple[Split, Split]:
    """Load (train, test), each (images (N, 32, 32, 3) uint8, labels (N,) int64).

    `directory` (default: the environment variable CIFAR10_DIR) holds `cifar-10-batches-py` or
    is that folder. With neither, Keras downloads the files once into ~/.keras. Raises DataError.
    """
    directory = directory or os.environ.get("CIFAR10_DIR")
    if not directory:
        return _download()
    folder = folder_in(directory, "cifar-10-batches-py")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory. {HELP}")
    train, test = (
        [read_batch(folder / name) for name in names] for names in (TRAIN_FILES, TEST_FILES)
    )
    return _concatenate(train), _concatenate(test)


def folder_in(directory: str | Path, name: str) -> Path:
    """The folder `name` in a directory, or the directory itself where it holds none."""
    folder = Path(directory) / name
    return folder if folder.is_dir() else Path(directory)


def _concatenate(batches: list[Split]) -> Split:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _download() -> tuple[Split, Split]:
    import keras

    try:
        train, test = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises bare Exception when the URL cannot be reached
        raise DataError(f"CIFAR-10 could not be downloaded: {error}. {HELP}") from error
    train, test = ((images, labels.ravel().astype(np.int64)) for images, labels in (train, test))
    return train, test


def split_validation(
    images: np.ndarray, labels: np.ndarray, size: int = VALIDATION_SIZE
) -> tuple[Split, Split]:
    """Split off a part of the training set, stratified, by a fixed seed: (train, validation).

    Of the 50,000 images the part has `size`, equally many of each class; of fewer, in proportion.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    is_validation = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_validation[members[: max(1, round(len(members) * size / 50_000))]] = True
    return (
        (images[~is_validation], labels[~is_validation]),
        (images[is_validation], labels[is_validation]),
    )


def load_cifar10_bundle(path: Path) -> Bundle:
    """A bundle that classifies images as CIFAR-10 has them. Raises BundleError."""
    bundle = load_bundle(path)
    if bundle.labels != LABELS or bundle.input_size != SIDE:
        raise BundleError(f"{path} does not classify CIFAR-10's images of {SIDE} pixels.")
    return bundle

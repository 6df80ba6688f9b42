"""How should a photo become the network's square?

    python -m benchmarks.quality.resize_policy PHOTOS

PHOTOS holds a folder a class, named as the bundle's labels (such as airplane/, automobile/).
Prints, for each policy, how many photos are classified right, as they are and cut to the shapes
that cameras take: a square photo looks the same to all three. Then, at what scale a JPEG has to be
decoded for the bundle's first view: how many pixels, each way, for one of the network's.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageOps

from benchmarks.common import command_line, print_table
from rest_api.bundle import Bundle, BundleError, Resize, View
from rest_api.classifier import LoadedModel, load_model
from rest_api.images import SPARE, to_views
from rest_api.settings import DEFAULT_MODEL
from training.photos.inspect import PhotosError, labelled_files, read

POLICIES = tuple(View(resize) for resize in get_args(Resize))
SHAPES = {"as they are": None, "1:1": 1, "4:3": 4 / 3, "3:4": 3 / 4, "16:9": 16 / 9}  # width:height
FULL = 1000  # more than any photo has
SCALES = {"all": FULL, "4 or more": 4, "2 or more": 2, "1 or more": 1}


def squares(file: Path, bundle: Bundle) -> np.ndarray:
    """A photo in every shape by every policy, then decoded at every scale: (N, side, side, 3).

    Raises PhotosError.
    """
    side, photo = bundle.input_size, read(file, bundle.input_size)
    shaped = [cut_to(photo, aspect) if aspect else photo for aspect in SHAPES.values()]
    scaled = (read(file, side * pixels // SPARE) for pixels in SCALES.values())
    first = View(bundle.views[0].resize)
    return np.concatenate(
        [to_views(image, side, POLICIES) for image in shaped]
        + [to_views(image, side, [first]) for image in scaled]
    )


def cut_to(image: Image.Image, aspect: float) -> Image.Image:
    """The largest part in the middle of an image whose width is `aspect` times its height."""
    width, height = image.size
    return ImageOps.fit(
        image, (round(min(width, height * aspect)), round(min(height, width / aspect)))
    )


def predicted(model: LoadedModel, files: list[tuple[Path, int]]) -> np.ndarray:
    """The class of each of `squares` of each file, one photo in memory at a time: (files, N)."""
    shown = (model.predict(squares(file, model.bundle)) for file, _ in files)
    return np.array([outputs.probabilities.argmax(1) for outputs in shown])


def percent(shares: Iterator[float]) -> list[str]:
    return [f"{share:.1%}" for share in shares]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("photos", type=Path, help="a folder a class, named as the labels are")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    args = parser.parse_args()
    try:
        model = load_model(args.model)
        files = labelled_files(args.photos, model.bundle.labels)
        classes = predicted(model, files)
    except (BundleError, PhotosError) as error:
        sys.exit(f"error: {error}")
    right = (classes == np.array([[label] for _, label in files])).mean(0)
    policies = right[: -len(SCALES)].reshape(len(SHAPES), len(POLICIES))
    print_table(
        [f"{len(files)} photos", *(f"`{policy.resize}`" for policy in POLICIES)],
        [
            *([name, *percent(row)] for name, row in zip(SHAPES, policies, strict=True)),
            ["mean of those cut", *percent(policies[1:].mean(0))],
        ],
    )
    scales = classes[:, -len(SCALES) :]
    others = (scales != scales[:, :1]).mean(0)
    print()
    print_table(
        ["pixels of a JPEG for one of the network's", "right", "differs from in full"],
        zip(SCALES, *map(percent, (right[-len(SCALES) :], others)), strict=True),
    )


if __name__ == "__main__":
    main()

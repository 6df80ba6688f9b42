"""Do explanations show what a prediction rests on? `python -m benchmarks.quality.explanations DIR`.

Of each photo below DIR, the quarter that speaks most for the predicted class, as ?explain=true has
it, is covered with grey; beside it as many of the grid's cells at random, and a square of a quarter
of the photo at a random place. Prints how much probability the class loses by each, the mean over
the photos with its 95 % interval, and the ratio of the first to the others.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import command_line, encoded, print_table
from rest_api.bundle import BundleError
from rest_api.classifier import LoadedModel, load_model
from rest_api.explain import GRID
from rest_api.images import GREY
from rest_api.settings import DEFAULT_MODEL

QUARTER = GRID**2 // 4  # cells
COVERS = "the warmest quarter", "a quarter of the cells", "a square of a quarter"


def losses(photo: Path, model: LoadedModel, rng: np.random.Generator) -> list[float]:
    """The probability that the best class loses by each of COVERS. Raises RequestError."""
    from training.photos.inspect import read

    image = read(photo, 10_000)
    seen = model.classify(as_png(image), explained=True)
    label, probability = seen.classes[0]
    assert seen.explanation is not None
    warmest = seen.explanation.ravel().argsort()[-QUARTER:]
    cells = rng.permutation(GRID**2)[:QUARTER]
    top, left = rng.integers(0, GRID // 2 + 1, 2)
    square = [(top + i) * GRID + left + j for i in range(GRID // 2) for j in range(GRID // 2)]
    covered = [
        dict(model.classify(as_png(cover(image, each))).classes)
        for each in (warmest, cells, square)
    ]
    return [probability - each[label] for each in covered]


def cover(image: Image.Image, cells) -> Image.Image:
    """The image with some cells of the grid, numbered in rows, in grey."""
    mask = np.zeros(GRID**2, np.uint8)
    mask[cells] = 255
    shape = Image.fromarray(mask.reshape(GRID, GRID)).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, GREY), image, shape)


def as_png(image: Image.Image) -> bytes:
    return encoded(image, "PNG", compress_level=1)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("photos", type=Path, metavar="DIR", help="photos, searched to its depths")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    args = parser.parse_args()
    from training.photos.inspect import PhotosError, files_in

    rng = np.random.default_rng(0)
    try:
        model = load_model(args.model)
        if not model.bundle.explains:
            sys.exit(f"error: {args.model} has no class activation maps.")
        lost = np.array([losses(photo, model, rng) for photo in files_in(args.photos)])
    except (BundleError, PhotosError) as error:
        sys.exit(f"error: {error}")
    means = lost.mean(0)
    half = 1.96 * lost.std(0, ddof=1) / len(lost) ** 0.5
    print_table(
        [f"covered, of {len(lost)} photos", "probability lost", "ratio"],
        (
            [name, f"{mean:.3f} ± {each:.3f}", f"{means[0] / mean:.2f}"]
            for name, mean, each in zip(COVERS, means, half, strict=True)
        ),
    )


if __name__ == "__main__":
    main()

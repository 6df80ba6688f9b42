"""Do class activation maps show what a prediction rests on?

Of a photo, the quarter that speaks most for the predicted class, as ?explain=true has it, is
covered with grey, and beside it other quarters. A bundle explains its answers only where the first
takes more than twice as much off the class's probability as that many cells at random.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from rest_api.bundle import Bundle
from rest_api.classifier import LoadedModel
from rest_api.engine import load_engine
from rest_api.explain import GRID
from rest_api.images import GREY
from training.photos.inspect import read

SIDE = 1024  # pixels of the longer side at most: the photo is encoded and decoded four times
QUARTER = GRID**2 // 4  # cells
COVERS = "the quarter with the highest values", "a quarter of the cells", "a square of a quarter"


def faithful(bundle: Bundle, photos: Sequence[Path]) -> bool:
    """Whether the class activation maps that the network returns show what its answers rest on."""
    rng = np.random.default_rng(0)
    bundle = replace(bundle, explains=True)
    model = LoadedModel(bundle, load_engine(bundle))
    highest, cells = np.mean([losses(photo, model, rng, COVERS[:2]) for photo in photos], 0)
    return bool(highest > 2 * max(cells, 0))


def losses(
    photo: Path, model: LoadedModel, rng: np.random.Generator, covers: Sequence[str] = COVERS
) -> list[float]:
    """The probability that the best class loses by each of `covers`. Raises PhotosError."""
    image = read(photo, SIDE)
    image.thumbnail((SIDE, SIDE))
    seen = model.classify(as_png(image), explained=True)
    label, probability = seen.classes[0]
    highest = np.ravel(np.asarray(seen.explanation)).argsort()[-QUARTER:]
    cells = rng.permutation(GRID**2)[:QUARTER]
    top, left = rng.integers(0, GRID // 2 + 1, 2)
    square = [(top + i) * GRID + left + j for i in range(GRID // 2) for j in range(GRID // 2)]
    cells_of = dict(zip(COVERS, (highest, cells, np.array(square)), strict=True))
    covered = [
        dict(model.classify(as_png(cover(image, cells_of[each]))).classes) for each in covers
    ]
    return [probability - each[label] for each in covered]


def cover(image: Image.Image, cells: np.ndarray) -> Image.Image:
    """The image with some cells of the grid, numbered in rows, in grey."""
    mask = np.zeros(GRID**2, np.uint8)
    mask[cells] = 255
    shape = Image.fromarray(mask.reshape(GRID, GRID)).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, GREY), image, shape)


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()

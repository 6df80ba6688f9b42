"""Where in a photo the network saw the class that it names."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rest_api.bundle import View

GRID = 8  # rows and columns of an explanation
CANVAS = 8 * GRID  # pixels each way, on which the views' maps are laid over one another


def explain(maps: Sequence[np.ndarray], views: Sequence[View], size: tuple[int, int]) -> np.ndarray:
    """How much each part of a photo speaks for a class: (GRID, GRID), from 0 to 1, the most.

    `maps` are the class's activation maps, (h, w) for each view of a photo of `size` (width,
    height). The rows and columns divide the whole photo, as it is seen upright: mirrored views are
    turned back, and what a view cuts off or adds is accounted for.
    """
    canvas = np.zeros((CANVAS, CANVAS), np.float32)
    for each, view in zip(maps, views, strict=True):
        seen = Image.fromarray(each[:, ::-1] if view.mirror else each)
        first, last = edges = np.reshape(place(view, size), (2, 2))  # (left, top), (right, bottom)
        on_photo = edges.clip(0, 1)
        box = (on_photo - first) / (last - first) * seen.size
        (left, top), (right, bottom) = np.rint(CANVAS * on_photo).astype(int).tolist()
        right, bottom = max(right, left + 1), max(bottom, top + 1)  # a crop of a panorama is thin
        part = (right - left, bottom - top)
        laid = seen.resize(part, Image.Resampling.BICUBIC, tuple(box.ravel().tolist()))
        canvas[top:bottom, left:right] += np.asarray(laid)
    cells = np.asarray(Image.fromarray(canvas).reduce(CANVAS // GRID)).clip(0)
    found: np.ndarray = cells / max(cells.max(), np.finfo(np.float32).tiny)
    return found


def place(view: View, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a view's square, in widths and heights of the photo."""
    if view.resize == "stretch":
        return 0, 0, 1, 1
    side = min(size) if view.resize == "center_crop" else max(size)
    across, down = side / size[0], side / size[1]
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2

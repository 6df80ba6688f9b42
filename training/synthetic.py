"""Synthetic images of what people send by mistake: plain colours, noise, text, screens, drawings.

Together with real images of other things they teach a network to answer "none of these" (outlier
exposure, Hendrycks, Mazeika & Dietterich 2019, arXiv:1812.04606).
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32  # pixels


def plain(rng: np.random.Generator) -> np.ndarray:
    """One colour, with up to a little noise."""
    colours = _colour(rng) + rng.normal(0, rng.choice([0, 2, 6]), (SIDE, SIDE, 3))
    return _uint8(colours)


def gradient(rng: np.random.Generator) -> np.ndarray:
    """One colour that turns into another, along a line or around a point."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if rng.random() < 0.3:
        along = 2 * np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) - 1
    share = (np.clip(along, -1, 1)[..., None] + 1) / 2
    return _uint8(share * _colour(rng) + (1 - share) * _colour(rng))


def noise(rng: np.random.Generator) -> np.ndarray:
    """Independent pixels: grey or coloured, of any contrast."""
    channels = rng.choice([1, 3])
    pixels = rng.normal(0, rng.uniform(10, 120), (SIDE, SIDE, channels))
    return _uint8(pixels + _colour(rng))


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Noise of a low resolution: soft blots of colour, or a mosaic."""
    side = int(rng.integers(2, 14))
    small = _uint8(rng.normal(0, rng.uniform(20, 100), (side, side, 3)) + _colour(rng))
    how = rng.choice([Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
    return np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling(how)))


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Stripes or checks of two colours, sharp or soft, at any angle."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, per_pixel = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(2.5, 20)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * per_pixel + rng.uniform(0, 7))
    if rng.random() < 0.4:
        wave = wave * np.sin((y * np.cos(angle) - x * np.sin(angle)) * per_pixel)
    share = np.clip(wave * rng.choice([1, 20]) / 2 + 0.5, 0, 1)[..., None]
    return _uint8(share * _colour(rng) + (1 - share) * _colour(rng))


def text(rng: np.random.Generator) -> np.ndarray:
    """A page, or part of one, of random words."""
    side = int(rng.integers(60, 320))  # pixels of the page: letters are about ten high
    paper, ink = _paper(rng)
    page = Image.new("RGB", (side, side), paper)
    _write(ImageDraw.Draw(page), (0, 0, side, side), ink, rng)
    return _shrink(page)


def screen(rng: np.random.Generator) -> np.ndarray:
    """Windows, bars and words, as on a screenshot."""
    side = 256
    page = Image.new("RGB", (side, side), _paper(rng)[0])
    draw = ImageDraw.Draw(page)
    for _ in range(rng.integers(1, 7)):
        left, top = rng.integers(-20, 200, 2)
        right, bottom = left + rng.integers(30, 220), top + rng.integers(8, 180)
        paper, ink = _paper(rng) if rng.random() < 0.7 else (_tuple(rng), _tuple(rng))
        draw.rectangle((left, top, right, bottom), paper, ink if rng.random() < 0.5 else None)
        if rng.random() < 0.6:
            _write(draw, (left, top, right, bottom), ink, rng)
    return _shrink(page)


def shapes(rng: np.random.Generator) -> np.ndarray:
    """Lines, ellipses and polygons on a plain ground, as in a drawing or chart."""
    page = Image.new("RGB", (128, 128), _tuple(rng))
    draw = ImageDraw.Draw(page)
    for _ in range(rng.integers(1, 9)):
        points = rng.integers(-10, 138, (int(rng.integers(2, 6)), 2))
        corners = (*points.min(0).tolist(), *points.max(0).tolist())
        kind = rng.integers(0, 4)
        if kind == 0:
            draw.ellipse(corners, _tuple(rng))
        elif kind == 1:
            draw.rectangle(corners, _tuple(rng))
        elif kind == 2 and len(points) > 2:
            draw.polygon([tuple(point) for point in points.tolist()], _tuple(rng))
        else:
            draw.line([tuple(p) for p in points.tolist()], _tuple(rng), int(rng.integers(1, 8)))
    return _shrink(page)


def collage(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Patches of 8 pixels, each of another image and place."""
    page = np.empty((SIDE, SIDE, 3), np.uint8)
    for top in range(0, SIDE, 8):
        for left in range(0, SIDE, 8):
            y, x = rng.integers(0, SIDE - 7, 2)
            patch = images[rng.integers(len(images)), y : y + 8, x : x + 8]
            page[top : top + 8, left : left + 8] = patch
    return page


Kind = Callable[[np.random.Generator], np.ndarray]  # → an image (32, 32, 3) uint8
PATTERNS: tuple[Kind, ...] = (plain, gradient, noise, blobs, stripes)
DRAWINGS: tuple[Kind, ...] = (text, screen, shapes)


def synthesise(n: int, seed: int, kinds: Sequence[Kind] = PATTERNS) -> np.ndarray:
    """n images (n, 32, 32, 3) uint8, equally many of each kind."""
    rng = np.random.default_rng([seed, 0x0DD])
    return np.stack([kinds[i % len(kinds)](rng) for i in range(n)])


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Any colour, black and white more often than others: (3,) float64."""
    if rng.random() < 0.3:
        return np.full(3, rng.choice([0.0, 255.0, rng.uniform(0, 255)]))
    return rng.uniform(0, 255, 3)


def _tuple(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = _colour(rng).astype(int).tolist()
    return red, green, blue


def _paper(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The colours of paper and ink: dark on light, or now and then the other way round."""
    light, dark = rng.integers(190, 256, 3), rng.integers(0, 90, 3)
    if rng.random() < 0.5:
        light, dark = np.full(3, light[0]), np.full(3, dark[0])
    paper, ink = (light, dark) if rng.random() < 0.75 else (dark, light)
    return tuple(paper.tolist()), tuple(ink.tolist())


def _write(draw: ImageDraw.ImageDraw, box: tuple, ink: tuple, rng: np.random.Generator) -> None:
    """Lines of random words in a box (left, top, right, bottom)."""
    left, top, right, bottom = (int(edge) for edge in box)
    step, margin = int(rng.integers(11, 24)), int(rng.integers(0, 14))
    for y in range(top + margin, bottom - 10, step):
        length = int((right - left - 2 * margin) / 6 * (1 if rng.random() < 0.7 else rng.random()))
        letters = rng.choice(
            list("abcdefghijklmnopqrstuvwxyzABCDEFG0123456789     "), max(length, 0)
        )
        draw.text((left + margin, y), "".join(letters), ink)


def _shrink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _uint8(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.clip(pixels, 0, 255), (*pixels.shape[:2], 3)).astype(np.uint8)

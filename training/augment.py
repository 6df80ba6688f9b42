"""Augmentation of whole batches. Images are (N, H, W, C) uint8 or float32.

`python -m benchmarks.training.input_pipeline` measures each step against the training step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """What a recipe does to each training image; the default is nothing."""

    flip: Literal["none", "random", "alternating"] = "none"
    crop: int = 0  # pixels of reflect padding to crop from, on each side
    rotation: float = 0.0  # degrees, each way
    shift: float = 0.0  # fraction of the side, each way, in both directions
    zoom: tuple[float, float] = (1, 1)  # least and most of the image's side that a box takes in
    aspect: float = 1.0  # at most this much wider than high, or higher than wide, is a box
    unzoomed: float = 0.0  # fraction of the images that are cropped only
    light: float = 0.0  # how far contrast, saturation, brightness and tint vary
    sharpness: float = 0.0  # at most this much of an image's detail is taken away or added

    @property
    def boxes(self) -> bool:
        """Whether boxes of random size are cut out of the images, by `random_box`."""
        return self.zoom != (1, 1) or self.aspect != 1


def flip(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mirror the images where `chosen` (N,) bool is true."""
    mirrored = images.copy()
    mirrored[chosen] = images[chosen, :, ::-1]
    return mirrored


def random_flips(n: int, rng: np.random.Generator) -> np.ndarray:
    """Each image with probability one half, anew every epoch: (n,) bool."""
    return rng.random(n) < 0.5


def random_crop(images: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by -pixels..pixels both ways; reflections fill the border."""
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), "reflect")
    top, left = rng.integers(0, 2 * pixels + 1, (2, n))
    cropped = np.empty_like(images)
    for y, x in np.ndindex(2 * pixels + 1, 2 * pixels + 1):  # faster than one gather for all
        here = (top == y) & (left == x)
        cropped[here] = padded[here, y : y + height, x : x + width]
    return cropped


def random_affine(
    images: np.ndarray, degrees: float, shift: float, rng: np.random.Generator
) -> np.ndarray:
    """Rotate each image by up to `degrees` and move it by up to `shift` of its side.

    Bilinear; beyond the border the nearest pixel is repeated, as the classic recipe's
    ImageDataGenerator does. Returns float32.
    """
    from keras import ops  # the others, and Augmentation, do without

    n, height, width, _ = images.shape
    angle = np.deg2rad(rng.uniform(-degrees, degrees, n))
    down, right = rng.uniform(-shift, shift, (2, n))
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros(n)
    y, x = (height - 1) / 2, (width - 1) / 2  # the centre stays where it is
    source_x = [cos, sin, x - cos * x - sin * y + right * width]
    source_y = [-sin, cos, y + sin * x - cos * y + down * height]
    transforms = np.stack([*source_x, *source_y, zero, zero], axis=1)  # (N, 8), as Keras has them
    moved = ops.image.affine_transform(
        images.astype(np.float32), transforms.astype(np.float32), "bilinear", "nearest"
    )
    return ops.convert_to_numpy(moved)


def cutout(images: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Grey out one square per image, centred anywhere (DeVries & Taylor 2017, arXiv:1708.04552)."""
    n, height, width, _ = images.shape
    centre = rng.integers(0, (height, width), (n, 2))[:, :, None]  # (N, 2, 1)
    rows = np.abs(np.arange(height) - centre[:, 0] + 0.5) <= size / 2  # (N, H)
    columns = np.abs(np.arange(width) - centre[:, 1] + 0.5) <= size / 2
    covered = rows[:, :, None, None] & columns[:, None, :, None]
    return np.where(covered, np.asarray(128, images.dtype), images)


def random_box(
    images: np.ndarray, image_size: int, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Cut a box of random size, aspect and place out of each uint8 image; resize it.

    A box larger than the image shows it smaller, among its reflections. Resampling is bilinear
    and anti-aliased. The fraction `augmentation.unzoomed` keeps its size and moves by whole pixels.
    """
    n, full = len(images), images.shape[1]
    margin = full // 2
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), "reflect")
    low, high = np.log(augmentation.zoom)
    side = full * np.exp(rng.uniform(low, high, n))
    stretch = np.exp(rng.uniform(-1, 1, n) * np.log(augmentation.aspect) / 2)
    box = np.minimum(np.stack([side * stretch, side / stretch], 1), full + margin)  # (N, 2): w, h
    moved = rng.uniform(-1, 1, (n, 2)) * (abs(full - box) / 2 + augmentation.crop)
    unzoomed = (rng.random(n) < augmentation.unzoomed)[:, None]
    box = np.where(unzoomed, full, box)
    whole = rng.integers(-augmentation.crop, augmentation.crop + 1, (n, 2))
    moved = np.where(unzoomed, whole, moved)
    start = np.clip((full - box) / 2 + margin + moved, 0, full + 2 * margin - box)
    corners = np.concatenate([start, start + box], 1).tolist()  # left, top, right, bottom
    return resize(padded, image_size, corners)


def random_light(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast, saturation and tint of each image: float32 in 0..255.

    One matrix and offset an image: colour' = M colour + offset.
    """
    n = len(images)
    contrast, saturation = np.exp(rng.normal(0, strength, (2, n, 1, 1)))
    tint = np.exp(rng.normal(0, strength / 4, (n, 1, 3)))
    grey = np.full((3, 3), 1 / 3)
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * grey) * tint
    pixels = images.reshape(n, -1, 3).astype(np.float32)
    mean = pixels.mean((1, 2))[:, None, None]
    bright = (rng.normal(0, strength, (n, 1, 1)) * 64).astype(np.float32)
    changed = (pixels - mean) @ matrix.astype(np.float32) + (mean + bright)
    return np.clip(changed, 0, 255, out=changed).reshape(images.shape)


def random_sharpness(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Blur or sharpen each image by up to `strength` of its detail: float32 in 0..255.

    Detail is what a 3x3 binomial filter takes away. Photos that are shrunk to a few pixels are
    sharper, or more blurred by their JPEG, than CIFAR's images are.
    """
    pixels = images.astype(np.float32)
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    amount = rng.uniform(-strength, strength, (len(images), 1, 1, 1)).astype(np.float32)
    changed = pixels + amount * (pixels - smooth)
    return np.clip(changed, 0, 255, out=changed)


def resize(images: np.ndarray, image_size: int, boxes: Sequence | None = None) -> np.ndarray:
    """Resize uint8 images, or a box (left, top, right, bottom) of each, to `image_size` pixels each
    way, bilinear and anti-aliased."""
    size, bilinear = (image_size, image_size), Image.Resampling.BILINEAR
    if boxes is None and images.shape[1:3] == size:
        return images
    pairs = zip(map(Image.fromarray, images), boxes or [None] * len(images), strict=True)
    return np.stack([np.asarray(picture.resize(size, bilinear, box)) for picture, box in pairs])


def augment(
    images: np.ndarray, augmentation: Augmentation, rng: np.random.Generator, image_size: int = 32
) -> np.ndarray:
    """Apply everything but the flips, which depend on the epoch, to a batch.

    Boxes are cut out of images of any size; all else takes images of `image_size`.
    """
    if augmentation.boxes:
        images = random_box(images, image_size, augmentation, rng)
    elif augmentation.crop:
        images = random_crop(images, augmentation.crop, rng)
    if augmentation.rotation or augmentation.shift:
        images = random_affine(images, augmentation.rotation, augmentation.shift, rng)
    if augmentation.light:
        images = random_light(images, augmentation.light, rng)
    if augmentation.sharpness:
        images = random_sharpness(images, augmentation.sharpness, rng)
    return images


def flips(
    n: int, augmentation: Augmentation, epoch: int, seed: int, rng: np.random.Generator
) -> np.ndarray:
    """Which of a data set's n images to mirror in this epoch: (n,) bool.

    "alternating" mirrors a random half in even epochs, the other half in odd ones: two epochs show
    each image both ways, where independent flips repeat half (Jordan 2024, arXiv:2404.00498, 3.6).
    """
    if augmentation.flip == "alternating":
        return random_flips(n, np.random.default_rng([seed, 0xF11B])) ^ (epoch % 2 == 1)
    if augmentation.flip == "random":
        return random_flips(n, rng)
    return np.zeros(n, bool)

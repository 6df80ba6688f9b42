"""What a frozen backbone sees in photos, computed once and kept by the content of the photos."""

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import keras
import numpy as np
from keras import ops
from PIL import Image, ImageEnhance
from tqdm import tqdm

from rest_api.bundle import Resize
from rest_api.engine import Outputs, Predict
from rest_api.images import decode, to_square
from training.files import replacing
from training.photos.inspect import Photo

VIEWS = 4  # of a training photo: itself, mirrored, and random crops
CROP = (0.6, 1.0)  # share of the sides that a random crop keeps
LIGHT = (0.8, 1.2)  # factor of brightness and of contrast
SOFTENED = 0.01  # added under the root, whose slope at zero would be infinite
BATCH = 32
SAVE_EVERY = 2000  # views, so that an interrupted run loses little


def view_of(photo: Photo, view: int, side: int, resize: Resize) -> np.ndarray:
    """One of a photo's views, (side, side, 3) uint8; view 0 is what the server makes of it."""
    image = decode(photo.path.read_bytes(), side)
    if view >= 2:
        image = random_crop(image, np.random.default_rng([int(photo.digest[:8], 16), view]))
    pixels = to_square(image, side, resize)
    return pixels[:, ::-1] if view == 1 else pixels


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of the photo, in another light, mirrored or not."""
    width, height = (max(1, round(rng.uniform(*CROP) * each)) for each in image.size)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    image = image.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(*LIGHT))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(*LIGHT))


def pooled(backbone: keras.Model, side: int | None = None) -> keras.Model:
    """The network from images (N, side, side, 3), or of any size, to features (N, channels).

    Those are the mean of each map over the image, and of that the root, its sign kept: a few large
    values would drown the others (Perronnin, Sánchez & Mensink 2010).
    """
    images = keras.Input((side, side, 3), name="image")
    mean = keras.layers.GlobalAveragePooling2D()(backbone(images))
    roots = ops.sign(mean) * (ops.sqrt(ops.abs(mean) + SOFTENED) - SOFTENED**0.5)
    return keras.Model(images, roots, name=backbone.name)


def features(
    network: keras.Model,
    photos: Sequence[Photo],
    cache: Path,
    *,
    resize: Resize = "squash",
    views: int = 1,
) -> np.ndarray:
    """What a network of `pooled` sees in each view of each photo: (N, views, channels) float32.

    `cache` is the file that keeps them: those in it are not computed again, new ones are added,
    also when the work is interrupted. One file is for one network and resize policy.
    """
    known = read_cache(cache)
    wanted = [(photo, view) for photo in photos for view in range(views)]
    missing = [each for each in wanted if key_of(*each) not in known]
    side = network.input_shape[1]
    try:
        with tqdm(total=len(missing), desc="features", unit="view", disable=not missing) as bar:
            for batch, pixels in batches(missing, side, resize):
                vectors = network.predict_on_batch(pixels).astype(np.float16)
                known |= {key_of(*each): v for each, v in zip(batch, vectors, strict=True)}
                bar.update(len(batch))
                if bar.n % SAVE_EVERY < BATCH:
                    write_cache(cache, known)
    finally:
        if missing:
            write_cache(cache, known)
    rows = np.stack([known[key_of(*each)] for each in wanted])
    return rows.reshape(len(photos), views, -1).astype(np.float32)


def batches(
    wanted: Sequence[tuple[Photo, int]], side: int, resize: Resize
) -> Iterator[tuple[list[tuple[Photo, int]], np.ndarray]]:
    """Views in batches with their pixels (B, side, side, 3), decoded ahead on other threads."""
    waiting = iter(wanted)
    with ThreadPoolExecutor() as threads:

        def start() -> list:
            some = list(islice(waiting, BATCH))
            return [(each, threads.submit(view_of, *each, side, resize)) for each in some]

        ahead = [start(), start()]
        while batch := ahead.pop(0):
            ahead.append(start())
            yield [each for each, _ in batch], np.stack([pixels.result() for _, pixels in batch])


def key_of(photo: Photo, view: int) -> str:
    return f"{photo.digest}/{view}"


def cache_name(network: keras.Model, resize: Resize) -> str:
    """A file name that differs wherever the features would."""
    digest = hashlib.sha256(repr((network.input_shape, resize, CROP, LIGHT, SOFTENED)).encode())
    for weight in network.weights:
        digest.update(weight.numpy().tobytes())
    return f"{network.name}-{digest.hexdigest()[:12]}.npz"


def read_cache(path: Path) -> dict[str, np.ndarray]:
    """The features in a file; none if there is no file, or a damaged one."""
    damage = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*damage), path.open("rb") as file, np.load(file) as stored:
        return dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    return {}


def write_cache(path: Path, known: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        np.savez(part, keys=np.array(list(known)), vectors=np.stack(list(known.values())))


def answers_to(predict: Predict, photos: Sequence[Photo], side: int, resize: Resize) -> Outputs:
    """What the network says of photos, as the server would show them to it."""
    answers = [predict(pixels) for _, pixels in batches([(p, 0) for p in photos], side, resize)]
    return Outputs(*(np.concatenate(each) for each in zip(*answers, strict=True)))

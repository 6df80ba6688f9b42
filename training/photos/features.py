"""Features of photos from a frozen backbone, computed once and cached by the photos' content."""

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import PIL
from keras import ops
from PIL import Image, ImageEnhance
from tqdm import tqdm

from rest_api.bundle import Bundle, Resize, View, sizes_of
from rest_api.engine import Outputs, Predict, mean_over_views
from rest_api.files import map_ahead
from rest_api.images import decode, to_square
from rest_api.settings import available_cores
from training.evaluate import joined, views_of
from training.files import replacing
from training.photos.inspect import Photo

VIEWS = 4  # of a training photo: the photo, its mirror image, and random crops
CROP = (0.6, 1.0)  # fraction of each side that a random crop keeps
LIGHT = (0.8, 1.2)  # factors of brightness and of contrast
SOFTENED = 0.01  # added under the root, whose slope at zero would be infinite
BATCH = 32
DECODING = 1  # changes whenever rest_api/images.py makes other pixels of a file
SAVE_EVERY = 2000  # views, so that an interruption loses little
# Of a network, views and a resize policy: keys of the views, in any order, with their features.
Compute = Callable[
    [keras.Model, Sequence[tuple[Photo, int]], Resize], Iterator[tuple[list[str], np.ndarray]]
]


def view_of(photo: Photo, view: int, image_size: int, resize: Resize) -> np.ndarray:
    """One view of a photo, (image_size, image_size, 3) uint8.

    View 0 is the photo resized, 1 its mirror image, the others are random crops for training.
    """
    image = decode(photo.path.read_bytes(), image_size)
    if view >= 2:
        image = random_crop(image, np.random.default_rng([int(photo.digest[:8], 16), view]))
    pixels = to_square(image, image_size, resize)
    return pixels[:, ::-1] if view == 1 else pixels


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of the image, mirrored or not, with random brightness and contrast."""
    width, height = (max(1, round(rng.uniform(*CROP) * each)) for each in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    image = image.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(*LIGHT))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(*LIGHT))


def pooled(backbone: keras.Model, image_size: int | None = None) -> keras.Model:
    """The network from images (N, image_size, image_size, 3) to features (N, channels).

    Without `image_size` it takes images of any size. Features are the signed square roots of the
    global average pool, which keep a few large values from dominating (Perronnin, Sánchez &
    Mensink 2010).
    """
    images = keras.Input((image_size, image_size, 3), name="image")
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(backbone(images))
    # Not an addition: the export would round that to 8 bits (see IN_FLOAT32 in training/export.py).
    softened = ops.sqrt(ops.abs(mean) - -SOFTENED)
    roots = ops.sign(mean) * (softened - SOFTENED**0.5)
    return keras.Model(images, roots, name=backbone.name)


def compute(
    network: keras.Model, wanted: Sequence[tuple[Photo, int]], resize: Resize
) -> Iterator[tuple[list[str], np.ndarray]]:
    """The features of views, (B, channels) float16, after the keys of their batch."""
    for batch, pixels in batches(wanted, network.input_shape[1], resize):
        vectors = network.predict_on_batch(pixels)
        yield [key_of(*each) for each in batch], vectors.astype(np.float16)


def features(
    network: keras.Model,
    photos: Sequence[Photo],
    cache: Path,
    *,
    resize: Resize = "stretch",
    views: int = 1,
    compute: Compute = compute,
) -> np.ndarray:
    """The features of each view of each photo: (N, views, channels) float32.

    `network` is one of `pooled`. Features in the file `cache` are reused, new ones added to it,
    also when interrupted. Each network and resize policy needs its own file (see cache_name).
    """
    known = read_cache(cache, network.output_shape[-1])
    wanted = [(photo, view) for photo in photos for view in range(views)]
    missing = [each for each in wanted if key_of(*each) not in known]
    try:
        hidden = not missing or None  # None: unless it is a terminal
        done, due = 0, SAVE_EVERY
        with tqdm(total=len(missing), desc="features", unit="view", disable=hidden) as bar:
            for keys, vectors in compute(network, missing, resize) if missing else ():
                known |= zip(keys, vectors, strict=True)
                done += len(keys)
                bar.update(len(keys))
                if done >= due:
                    write_cache(cache, known)
                    due = done + max(SAVE_EVERY, len(known) // 10)  # it is written whole
    finally:
        if missing:
            write_cache(cache, known)
    rows = np.stack([known[key_of(*each)] for each in wanted])
    return rows.reshape(len(photos), views, -1).astype(np.float32)


def batches(
    wanted: Sequence[tuple[Photo, int]], image_size: int, resize: Resize
) -> Iterator[tuple[list[tuple[Photo, int]], np.ndarray]]:
    """Views in batches with their pixels (B, size, size, 3), decoded ahead in threads."""
    waiting = iter(wanted)
    with ThreadPoolExecutor() as threads:

        def start() -> list:
            some = list(islice(waiting, BATCH))
            return [(each, threads.submit(view_of, *each, image_size, resize)) for each in some]

        ahead = [start(), start()]
        while batch := ahead.pop(0):
            ahead.append(start())
            yield [each for each, _ in batch], np.stack([pixels.result() for _, pixels in batch])


def key_of(photo: Photo, view: int) -> str:
    return f"{photo.digest}/{view}"


def cache_name(network: keras.Model, resize: Resize) -> str:
    """A file name that changes with everything that features depend on."""
    pixels = (DECODING, PIL.__version__, network.input_shape, resize, CROP, LIGHT, SOFTENED)
    digest = hashlib.sha256(repr(pixels).encode())
    for weight in network.weights:
        digest.update(weight.numpy().tobytes())
    return f"{network.name}-{digest.hexdigest()[:12]}.npz"


def read_cache(path: Path, channels: int) -> dict[str, np.ndarray]:
    """The features in a file; none if it is absent, damaged, or of another shape."""
    damage = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*damage), path.open("rb") as file, np.load(file) as stored:
        keys, vectors = stored["keys"].tolist(), stored["vectors"]
        if vectors.shape == (len(keys), channels) and np.isfinite(vectors).all():
            return dict(zip(keys, vectors, strict=True))
    return {}


def write_cache(path: Path, known: dict[str, np.ndarray]) -> None:
    if not known:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        np.savez(part, keys=np.array(list(known)), vectors=np.stack(list(known.values())))


def served(photos: Sequence[Photo], image_size: int, views: Sequence[View]) -> list[np.ndarray]:
    """Each view of N photos as the server makes it, (N, side, side, 3) uint8."""
    largest = max(sizes_of(views, image_size))

    def decoded(photo: Photo) -> Image.Image:
        return decode(photo.path.read_bytes(), largest)

    # A few photos ahead: decoded ones take far more memory than their views.
    return views_of(map_ahead(decoded, photos, available_cores()), image_size, views)


def predict_photos(predict: Predict, photos: Sequence[Photo], bundle: Bundle) -> Outputs:
    """What a bundle's network returns for photos as they are served."""
    outputs = []
    for start in range(0, len(photos), BATCH):
        shown = served(photos[start : start + BATCH], bundle.input_size, bundle.views)
        of_views = [predict(view) for view in shown]
        outputs.append(mean_over_views(of_views, bundle.early_exit))
    return joined(outputs)

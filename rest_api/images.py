"""Photos as people send them: bytes → RGB image → the square array that the network takes."""

import contextlib
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rest_api.bundle import Resize
from rest_api.errors import RequestError
from rest_api.settings import Settings

# Nothing else is ever tried. HEIC, as iPhones send it, needs the package pillow-heif.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
Image.init()  # load what reads them now, not when the first request comes
WHITE = (255, 255, 255, 255)
GREY = (128, 128, 128)
SPARE = (
    2  # times the network's side: 1 in 200 answers differs (benchmarks/quality/resize_policy.py)
)
# What Pillow raises on damaged files, besides UnidentifiedImageError.
DECODING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)


def decode(data: bytes, side: int, max_pixels: int = Settings.max_pixels) -> Image.Image:
    """Decode an image file to an upright RGB image, as a person would see it.

    Transparency lies on white, 16-bit grey is scaled to 8, EXIF orientation is applied; the first
    frame stands for an animation. A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of
    its size that leaves SPARE pixels for each one of the network's `side`. Raises RequestError.
    """
    if not data:
        raise RequestError(400, "empty_file", "The file is empty. Send the bytes of an image.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise Image.DecompressionBombError
    except UnidentifiedImageError as error:
        message = f"This is not an image in one of the formats {', '.join(FORMATS)}."
        raise RequestError(415, "unsupported_format", message) from error
    except Image.DecompressionBombError as error:
        message = f"The image has more than {max_pixels / 1e6:g} megapixels."
        raise RequestError(413, "too_many_pixels", message) from error
    except DECODING_ERRORS as error:
        raise RequestError(422, "corrupt_image", "The image file is damaged.") from error
    try:
        image.draft("RGB", (SPARE * side, SPARE * side))
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except DECODING_ERRORS as error:
        message = f"The {image.format} file is truncated or damaged."
        raise RequestError(422, "corrupt_image", message) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        grey = np.asarray(image).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, side: int, policy: Resize) -> np.ndarray:
    """Resize an RGB image of any shape to (side, side, 3) uint8, as the bundle's policy says.

    squash    stretches the whole image
    crop      keeps the largest square in the middle
    pad       keeps the whole image and its shape, with grey beside it
    """
    width, height = image.size
    if policy == "squash" or width == height:
        return _pixels(_shrink(image, (side, side)))
    if policy == "crop":
        cut = min(width, height)
        left, top = (width - cut) // 2, (height - cut) // 2
        return _pixels(_shrink(image, (side, side), (left, top, left + cut, top + cut)))
    longer = max(width, height)
    inner = (max(1, round(side * width / longer)), max(1, round(side * height / longer)))
    square = Image.new("RGB", (side, side), GREY)
    square.paste(_shrink(image, inner), ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return _pixels(square)


def _shrink(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    # Lanczos is right most often on photos (benchmarks/quality/resize_policy.py). A large image is
    # first averaged down to three times the size, which shows in nothing but the time.
    return image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3)


def _pixels(image: Image.Image) -> np.ndarray:
    # (height, width, 3), in half the time that np.asarray takes for a small image
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)

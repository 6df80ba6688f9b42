"""Photos as people send them: bytes → RGB image → the square arrays that the network takes."""

import contextlib
import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rest_api.bundle import Resize, View
from rest_api.errors import RequestError
from rest_api.settings import Settings

# No other format is tried. HEIC, which iPhones send, needs the package pillow-heif.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
Image.init()  # load the format plugins now, not at the first request
WHITE = (255, 255, 255, 255)
GREY = (128, 128, 128)
# Times the network's input size that a JPEG is decoded at, at least: 1 in 200 predictions differs
# from those of a full decoding (benchmarks/quality/resize_policy.py).
SPARE = 2
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


def decode(data: bytes, image_size: int, max_pixels: int = Settings.max_pixels) -> Image.Image:
    """Decode an image file to an upright RGB image, as a person would see it.

    Transparency becomes white, 16-bit grey is scaled to 8, EXIF orientation is applied; of an
    animation the first frame is taken. A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8
    of its size that is at least SPARE times `image_size`, the side that it will be resized to.
    Raises RequestError.
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
        image.draft("RGB", (SPARE * image_size, SPARE * image_size))
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


def to_views(image: Image.Image, image_size: int, views: Sequence[View]) -> np.ndarray:
    """Every view of an RGB image of any shape, (V, image_size, image_size, 3) uint8."""

    @cache
    def square(resize: Resize) -> np.ndarray:
        return to_square(image, image_size, resize)

    same = image.width == image.height  # whatever the policy
    pixels = [square("stretch" if same else view.resize) for view in views]
    return np.stack([p[:, ::-1] if v.mirror else p for p, v in zip(pixels, views, strict=True)])


def to_square(image: Image.Image, image_size: int, resize: Resize) -> np.ndarray:
    """Resize an RGB image of any shape to (image_size, image_size, 3) uint8.

    stretch        the whole image, its shape changed
    center_crop    the largest square in the middle
    letterbox      the whole image in its shape, with grey beside it
    """
    square = (image_size, image_size)
    width, height = image.size
    if resize == "stretch" or width == height:
        return _pixels(_shrink(image, square))
    if resize == "center_crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return _pixels(_shrink(image, square, (left, top, left + side, top + side)))
    longer = max(width, height)
    inner = (
        max(1, round(image_size * width / longer)),
        max(1, round(image_size * height / longer)),
    )
    padded = Image.new("RGB", square, GREY)
    padded.paste(
        _shrink(image, inner), ((image_size - inner[0]) // 2, (image_size - inner[1]) // 2)
    )
    return _pixels(padded)


def _shrink(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    # Lanczos is right most often on photos (benchmarks/quality/resize_policy.py). A large image is
    # first averaged down to three times the size, which shows in nothing but the time.
    return image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3)


def _pixels(image: Image.Image) -> np.ndarray:
    # (height, width, 3), in half the time that np.asarray takes for a small image
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)

"""Photos as people send them: bytes → RGB image → the square array that the network takes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rest_api.bundle import Resize

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # nothing else is ever tried
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB
WHITE = (255, 255, 255, 255)
GREY = (128, 128, 128)
RESAMPLING = Image.Resampling.BICUBIC
# What Pillow raises on damaged files, besides UnidentifiedImageError.
DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)


class ImageError(Exception):
    """An image that cannot be classified: `status` (HTTP), `code` (stable) and a message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


def decode(data: bytes, side: int) -> Image.Image:
    """Decode an image file to an upright RGB image, as a person would see it.

    Transparency lies on white, 16-bit grey is scaled to 8, EXIF orientation is applied; the first
    frame stands for an animation. A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of
    its size that leaves four pixels for each one of the network's `side`. Raises ImageError.
    """
    if not data:
        raise ImageError(400, "empty_file", "The file is empty. Send the bytes of an image.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        message = f"This is not an image in one of the formats {', '.join(FORMATS)}."
        raise ImageError(415, "unsupported_format", message) from error
    except DECODING_ERRORS as error:
        raise ImageError(422, "corrupt_image", "The image file is damaged.") from error
    if image.width * image.height > MAX_PIXELS:
        message = (
            f"The image has {image.width} x {image.height} pixels; "
            f"at most {MAX_PIXELS // 1_000_000} megapixels are accepted."
        )
        raise ImageError(413, "too_many_pixels", message)
    try:
        image.draft("RGB", (4 * side, 4 * side))
        return to_rgb(ImageOps.exif_transpose(image))
    except DECODING_ERRORS as error:
        message = f"The {image.format} file is truncated or damaged."
        raise ImageError(422, "corrupt_image", message) from error


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
    size = (side, side)
    if policy == "crop":
        image = ImageOps.fit(image, size, RESAMPLING)
    elif policy == "pad":
        image = ImageOps.pad(image, size, RESAMPLING, color=GREY)
    else:
        image = image.resize(size, RESAMPLING, reducing_gap=3)
    return np.asarray(image)

"""Photos as people send them: bytes → RGB image → the square arrays that the network takes."""

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rest_api.bundle import Resize, View, sizes_of
from rest_api.errors import RequestError
from rest_api.settings import Settings

# No other format is tried. HEIC, which iPhones send, needs the package pillow-heif.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")  # after four bytes
Image.init()  # load the format plugins now, not at the first request
WHITE = (255, 255, 255, 255)
GREY = (128, 128, 128)
# Times the network's input size that a JPEG is decoded at, at least: 1 in 200 predictions differs
# from those of a full decoding (benchmarks/quality/resize_policy.py).
SPARE = 2
MAX_SIDE = 65_535  # pixels: what a JPEG can have
TILE = 2**20  # pixels that are converted at a time
MAX_SHRUNK = 16_000_000  # pixels of what is left of a large image
# Formats that take more memory for a pixel than the four bytes of Pillow's image: the share of the
# pixels of others that they may have. See MEMORY_OF_A_PIXEL in sandbox.py.
SHARES = {"WEBP": 0.24, "AVIF": 0.24, "HEIF": 0.5, "TIFF": 0.5}
BMP_RLE = (1, 2)  # decoded by Pillow in Python
START_OF_SCAN = b"\xff\xda"
MAX_SCANS = 100  # of a progressive JPEG; encoders make about ten
# How to turn an image upright, by its EXIF orientation.
ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def silence_pillow() -> None:
    """Have a process say nothing of odd files, which are read anyway.

    Python keeps every warning that it has shown, and a file chooses what some of Pillow's say: they
    would fill log and memory.
    """
    warnings.filterwarnings("ignore", module="PIL")


def decode(data: bytes, image_size: int, max_pixels: int = Settings.max_pixels) -> Image.Image:
    """Decode an image file to an upright RGB image, as a person would see it.

    Transparency becomes white, 16-bit grey is scaled to 8, EXIF orientation is applied; of an
    animation the first frame is taken. A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8
    of its size that is at least SPARE times `image_size`, the side that it will be resized to.
    What is still over a megapixel is averaged down to three times that. Raises RequestError.
    """
    if not data:
        raise RequestError(400, "empty_file", "The file is empty. Send the bytes of an image.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image, max_pixels)
        if image.mode in ("F", "I"):
            message = "Its pixels are of 32 bits, or signed. Send 8 or 16 bits for each colour."
            raise RequestError(415, "unsupported_format", message)
    except UnidentifiedImageError as error:
        message = f"This is not an image in one of the formats {', '.join(FORMATS)}."
        if data[4:12] in HEIC:
            message = (
                "This is HEIC, as iPhones store photos, which is not read here. Send it as JPEG, "
                "or install the package pillow-heif where the classifier runs."
            )
        raise RequestError(415, "unsupported_format", message) from error
    except Image.DecompressionBombError as error:  # over Pillow's own limit, of 179 megapixels
        raise too_many_pixels("image", max_pixels) from error
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads to
        raise RequestError(
            422, "corrupt_image", "The image file is damaged or too large."
        ) from error
    if is_progressive(image) and data.count(START_OF_SCAN) > MAX_SCANS:
        raise too_complex(f"The JPEG file has more than {MAX_SCANS} scans.")
    try:
        image.draft("RGB", (SPARE * image_size, SPARE * image_size))
        image.load()
        return upright(shrink_to_rgb(image, 3 * image_size), image)
    except MemoryError:
        raise
    except Exception as error:
        message = f"The {image.format} file is truncated, damaged or too large."
        raise RequestError(422, "corrupt_image", message) from error


def may_be_image(head: bytes) -> bool:
    """Whether a file that begins with these 16 bytes, or fewer, may be of one of the formats."""
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return any(accept is None or accept(head) is True for accept in accepts)


def read_image(path: str | Path) -> bytes:
    """The bytes of a file, or the first alone where it can be no image, as in a video.

    Raises OSError.
    """
    with Path(path).open("rb") as file:
        head = file.read(16)
        return head + file.read() if may_be_image(head) else head


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Refuse an image, not yet decoded, that would take too much memory. Raises RequestError."""
    if max(image.size) > MAX_SIDE:
        message = f"The image has a side of more than {MAX_SIDE:,} pixels."
        raise RequestError(413, "too_many_pixels", message)
    kind, share = image.format, SHARES.get(image.format or "", 1)
    if is_progressive(image):  # libjpeg holds all coefficients, of two bytes each
        areas = [across * down for _, down, across, _ in image.layer]  # type: ignore[attr-defined]
        kind, share = "progressive JPEG", min(1, 2.4 * max(areas) / max(1, sum(areas)))
    elif image.format == "BMP" and image.info["compression"] in BMP_RLE:
        kind, share = "run-length encoded BMP", 0.005
    limit = round(share * max_pixels)
    if image.width * image.height > limit:
        raise too_many_pixels(f"{kind} image" if share < 1 else "image", limit)


def is_progressive(image: Image.Image) -> bool:
    """Whether it is a progressive JPEG: of other formats, `progressive` is a text."""
    # MPO is what Pillow calls a JPEG that says it is the first of several.
    return image.format in ("JPEG", "MPO") and "progressive" in image.info


def upright(image: Image.Image, loaded: Image.Image) -> Image.Image:
    """The image turned as the EXIF of the one that it was made of says.

    ImageOps.exif_transpose would write the EXIF anew as well, which fails where it is odd.
    """
    orientation = None
    with contextlib.suppress(Exception):  # an odd EXIF is no reason to refuse whole pixels
        orientation = loaded.getexif().get(ORIENTATION)
    method = TRANSPOSES.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def too_many_pixels(kind: str, limit: int) -> RequestError:
    message = f"The {kind} has more than {limit / 1e6:g} megapixels."
    return RequestError(413, "too_many_pixels", message)


def too_complex(message: str) -> RequestError:
    return RequestError(422, "too_complex", f"{message} Send it smaller, as plain JPEG or PNG.")


def shrink_to_rgb(image: Image.Image, side: int) -> Image.Image:
    """Convert to RGB; average what is larger than TILE until the shorter side is just over `side`.

    Tile by tile, so that no second image of full size is held.
    """
    width, height = image.size
    if width * height <= TILE:
        return to_rgb(image)
    factor = max(1, min(width, height) // side, math.isqrt(width * height // MAX_SHRUNK) + 1)
    shrunk = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    step = max(1, math.isqrt(TILE) // factor) * factor
    for left, top in itertools.product(range(0, width, step), range(0, height, step)):
        tile = image.crop((left, top, min(left + step, width), min(top + step, height)))
        shrunk.paste(to_rgb(tile).reduce(factor), (left // factor, top // factor))
    return shrunk


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB."""
    if isinstance(image.info.get("transparency"), str):  # a PNG's text of that name
        del image.info["transparency"]
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        values = np.asarray(image).clip(0, 65535)
        grey = (values // 257).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def to_views(image: Image.Image, image_size: int, views: Sequence[View]) -> list[np.ndarray]:
    """Every view of an RGB image of any shape, each (side, side, 3) uint8.

    The side is `image_size` where the view has no size of its own.
    """

    @cache
    def square(resize: Resize, size: int) -> np.ndarray:
        return to_square(image, size, resize)

    same = image.width == image.height  # whatever the policy
    sizes = sizes_of(views, image_size)
    pixels = [square("stretch" if same else v.resize, s) for v, s in zip(views, sizes, strict=True)]
    return [p[:, ::-1] if v.mirror else p for p, v in zip(pixels, views, strict=True)]


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

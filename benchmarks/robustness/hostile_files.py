"""Files that try to harm what decodes them: one generator for each class of them.

A generator makes a file from random numbers alone, so that a finding can be made again. Add one
by writing a function from numpy.random.Generator to bytes and naming it in GENERATORS.
"""

import functools
import re
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.common import FROG, encoded
from benchmarks.robustness.bombs import bmp, png, png_chunk, webp_lossless


@functools.cache
def valid_files() -> list[bytes]:
    """A small picture in every format that is accepted, and the odder forms of each."""
    frog = Image.open(FROG).convert("RGB").resize((64, 48))
    blue = Image.new("RGB", frog.size, "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    animated = {"save_all": True, "append_images": [blue]}
    forms = [
        (frog, "JPEG", {"exif": exif}),
        (frog, "JPEG", {"progressive": True}),
        (frog.convert("CMYK"), "JPEG", {}),
        (frog, "PNG", {"exif": exif}),
        (frog.convert("RGBA"), "PNG", {}),
        (frog.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20), "PNG", {}),
        (frog.convert("1"), "PNG", {}),
        (frog, "WEBP", {"exif": exif}),
        (frog, "WEBP", {"lossless": True, **animated}),
        (frog, "GIF", animated),
        (frog, "BMP", {}),
        (frog.convert("P"), "BMP", {}),
        (frog, "TIFF", {"compression": "tiff_lzw"}),
        (frog, "TIFF", {"compression": "jpeg"}),
        (frog.convert("CMYK"), "TIFF", {}),
        (frog.convert("1"), "TIFF", {"compression": "group4"}),
        (frog, "AVIF", {"exif": exif}),
    ]
    return [encoded(image, form, **options) for image, form, options in forms]


def damaged(rng: np.random.Generator) -> bytes:
    """One to four kinds of damage to one of the valid files."""
    files = valid_files()
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 5)):
        # Headers and tables lie at the start, or at the end: damage those most often.
        at = int(rng.geometric(0.02) * rng.choice((-1, 1))) % max(len(data), 1)
        length = int(rng.integers(1, 40))
        match rng.integers(7):
            case 0:
                data[at : at + 1] = rng.bytes(1)
            case 1:  # a number that means a size, made absurd
                data[at : at + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]
                )
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = rng.bytes(length)
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                del data[rng.integers(len(data) + 1) :]
            case 6:  # the head of one format, the body of another
                other = files[rng.integers(len(files))]
                data[at:] = other[at:]
    return bytes(data)


def false_size(rng: np.random.Generator) -> bytes:
    """A small file whose header says any size up to 67 megapixels."""
    width, height = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
    match rng.integers(4):
        case 0:
            return webp_lossless(width, height)
        case 1:
            bits = int(rng.choice([1, 4, 8, 16, 24, 32]))
            return bmp(width, height, bits, int(rng.integers(4)), rng.bytes(1000))
        case 2:
            bits, colour = int(rng.choice([1, 8, 16])), int(rng.choice([0, 2, 3, 4, 6]))
            head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, rng.integers(2))
            small = png(8, 8, 8, 3)
            return small[:8] + png_chunk(b"IHDR", head) + small[33:]
        case _:
            data = bytearray(valid_files()[rng.integers(3)])  # JPEG
            frame = re.search(b"\xff[\xc0-\xc2]\0", data)
            assert frame
            data[frame.start() + 5 : frame.start() + 9] = struct.pack(">HH", height, width)
            return bytes(data)


GENERATORS: dict[str, Callable[[np.random.Generator], bytes]] = {
    "damaged": damaged,
    "false size": false_size,
}

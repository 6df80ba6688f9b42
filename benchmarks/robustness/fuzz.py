"""Damaged and hostile image files: `python -m benchmarks.robustness.fuzz --inputs 20000`.

Every input is a function of the seed and its number, so that a finding can be made again. Stops at
the first answer that is neither 200 nor 4xx, or that takes over two seconds; prints the answers by
status, the slowest, and by how much memory grew after the first tenth.
"""

import argparse
import io
import logging
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
from flask.testing import FlaskClient
from PIL import Image

from rest_api.app import create_app

FROG = Path(__file__).parents[2] / "rest_api" / "frog.jpg"
MAX_SECONDS = 2.0


def corpus() -> list[bytes]:
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
    files = []
    for image, fmt, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, fmt, **options)
        files.append(buffer.getvalue())
    return files


def mutate(files: list[bytes], rng: np.random.Generator) -> bytes:
    """One to four kinds of damage to one of the files."""
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


def fuzz(client: FlaskClient, inputs: int, seed: int) -> tuple[Counter, float, float]:
    """Answers by status, the slowest in seconds, and how many MB memory grew.

    Raises AssertionError, naming the seed and number of the input, at the first bad answer.
    """
    files, statuses, slowest, before = corpus(), Counter(), 0.0, 0.0
    for number in range(inputs):
        data = mutate(files, np.random.default_rng([seed, number]))
        start = time.perf_counter()
        response = client.post("/predict?top=1", data=data, content_type="image/jpeg")
        slowest = max(slowest, time.perf_counter() - start)
        statuses[response.status_code] += 1
        if response.status_code not in (200, 400, 413, 415, 422) or slowest > MAX_SECONDS:
            raise AssertionError(
                f"input {number} of seed {seed}: {response.status_code} {response.data!r} "
                f"after {slowest:.2f} s"
            )
        if number == inputs // 10:
            before = peak_megabytes()
    return statuses, slowest, peak_megabytes() - before


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Send damaged image files to the API.")
    parser.add_argument("--inputs", type=int, default=20_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all damage (%(default)s)")
    args = parser.parse_args()
    logging.disable()
    statuses, slowest, growth = fuzz(create_app().test_client(), args.inputs, args.seed)
    answers = ", ".join(f"{count:,} x {status}" for status, count in statuses.most_common())
    print(f"{args.inputs:,} inputs, seed {args.seed}: {answers}")
    print(f"slowest answer {1000 * slowest:.0f} ms, memory grew by {growth:.1f} MB")


if __name__ == "__main__":
    main()

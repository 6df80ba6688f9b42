"""From request to answer: `python -m benchmarks.serving.latency`.

Starts `rest_api/app.py` as a user does and prints the seconds until its first answer, the
milliseconds of one request after another on one connection, and of the network alone.
"""

import http.client
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.serving.load import BOUNDARY, FROG, multipart, ours, started
from rest_api.bundle import load_bundle
from rest_api.engine import load_engine
from rest_api.images import decode, to_square
from rest_api.settings import DEFAULT_MODEL

REQUESTS = 1000


def jpeg_of_a_phone(width: int = 4000, height: int = 3000) -> bytes:
    """A photo, of 12 megapixels: smooth shapes and the noise of a camera."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def milliseconds(call: Callable[[], object], n: int) -> np.ndarray:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return np.array(times) * 1000


def ask(connection: http.client.HTTPConnection, image: bytes) -> None:
    form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/predict", multipart(image), form)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(answer.read().decode())
    answer.read()


def first_answer(connection: http.client.HTTPConnection, image: bytes) -> float:
    """Seconds until the server that has just been started answers."""
    start = time.perf_counter()
    while time.perf_counter() - start < 30:
        try:
            ask(connection, image)
            return time.perf_counter() - start
        except OSError:
            connection.close()
            time.sleep(0.005)
    raise RuntimeError("no answer in 30 seconds")


def main() -> None:
    frog, photo = FROG.read_bytes(), jpeg_of_a_phone()
    with started(ours()) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        ready = first_answer(connection, frog)
        print(f"first answer after {ready:.2f} s")
        print("| request | p50 (ms) | p99 (ms) |\n|---|---:|---:|")
        for name, image, n in (
            ("256-pixel JPEG (the frog)", frog, REQUESTS),
            ("12-megapixel JPEG", photo, REQUESTS // 10),
        ):
            times = milliseconds(lambda image=image: ask(connection, image), n)
            print(f"| {name} | {np.median(times):.2f} | {np.percentile(times, 99):.2f} |")

    for name, side in (("decoding and shrinking the latter", 32), ("the same in full size", 4000)):
        times = milliseconds(lambda side=side: to_square(decode(photo, side), 32, "pad"), 50)
        print(f"| {name} | {np.median(times):.2f} | {np.percentile(times, 99):.2f} |")
    predict = load_engine(load_bundle(DEFAULT_MODEL))
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    times = milliseconds(lambda: predict(pixels), REQUESTS)
    print(f"| the network alone | {np.median(times):.2f} | {np.percentile(times, 99):.2f} |")


if __name__ == "__main__":
    main()

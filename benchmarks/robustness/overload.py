"""Ten times the capacity of the server: `python -m benchmarks.robustness.overload`. Needs wrk.

First one request after another, for the latency without load; then wrk at 4 connections, for what
the server can bear (half as much shows where all of them met in one process: then run it again);
then wrk with as many connections as offer ten times that, refused ones asking again at once, while
a client beside it times the answers that it gets. Prints latencies of the accepted, answers by
kind, and memory.
"""

import argparse
import http.client
import io
import threading
import time
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.serving.load import (
    BOUNDARY,
    multipart,
    need_wrk,
    ours,
    resident_megabytes,
    serving,
    wrk,
)


def picture() -> bytes:
    """A 2-megapixel PNG of smooth shapes: costly to decode, small to send."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((1800, 1200), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.quantize(32).save(buffer, "PNG")
    return buffer.getvalue()


def ask_in_turn(address: str, image: bytes, until: float) -> tuple[list[float], int]:
    """Milliseconds of each accepted request until then, and how many were refused."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    body, accepted, refused = multipart(image), [], 0
    while time.monotonic() < until:
        start = time.perf_counter()
        connection.request("POST", "/predict", body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            accepted.append(1000 * (time.perf_counter() - start))
        else:
            refused += 1
            time.sleep(0.01)
    return accepted, refused


def overload(seconds: float, queue: int, connections: int) -> None:
    """Measure and print one setting of the server."""
    image = picture()
    with serving(ours("--queue", str(queue))) as (address, pid):
        url = f"{address}/predict"
        wrk(url, image, 4, 1)
        calm, _ = ask_in_turn(address, image, time.monotonic() + seconds / 4)
        before = resident_megabytes(pid)
        capacity = wrk(url, image, 4, seconds / 4)
        print(
            f"queue {queue}: p99 {np.percentile(calm, 99):.0f} ms without load; "
            f"bears {capacity.per_second:.0f}/s",
            flush=True,
        )
        accepted: list[float] = []
        until = time.monotonic() + seconds
        beside = threading.Thread(
            target=lambda: accepted.extend(ask_in_turn(address, image, until)[0])
        )
        beside.start()
        load = wrk(url, image, connections, seconds)
        beside.join()
        growth = resident_megabytes(pid) - before
        p50, p99 = np.percentile(accepted, (50, 99))
    print(
        f"  offered {load.requests / load.seconds:.0f}/s "
        f"({load.requests / load.seconds / capacity.per_second:.1f} x), answered "
        f"{load.per_second:.0f}/s, failed {load.failed}; accepted beside it {len(accepted)}: "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; memory grew by {growth:.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Overload the server.")
    parser.add_argument("--seconds", type=float, default=60, help="under load (%(default)s)")
    parser.add_argument("--queue", type=int, default=32, help="of each process (%(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="of wrk (%(default)s)")
    args = parser.parse_args()
    need_wrk()
    overload(args.seconds, args.queue, args.connections)


if __name__ == "__main__":
    main()

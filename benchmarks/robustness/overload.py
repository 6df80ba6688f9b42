"""Ten times the capacity of the server: `python -m benchmarks.robustness.overload`. Needs wrk.

First one request after another, for the latency without load; then wrk at 4 connections, for the
capacity (half as much shows where all of them met in one process: then run it again); then wrk
with as many connections as offer ten times that, refused ones sending again at once, while a
client beside it times its accepted requests. Prints latencies, responses by kind, and memory.
"""

import http.client
import threading
import time
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.common import command_line, encoded
from benchmarks.serving.load import need_wrk, own_server, post, resident_megabytes, serving, wrk


def picture() -> bytes:
    """A 2-megapixel PNG of smooth shapes: costly to decode, small to send."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((1800, 1200), Image.Resampling.BICUBIC)
    return encoded(image.quantize(32), "PNG")


def accepted_latencies(address: str, image: bytes, seconds: float) -> list[float]:
    """Milliseconds of each accepted request, sent one after another for so many seconds."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    latencies, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        if post(connection, image) == 200:
            latencies.append(1000 * (time.perf_counter() - start))
        else:
            time.sleep(0.01)
    return latencies


def overload(seconds: float, queue: int, connections: int) -> None:
    """Measure and print one setting of the server."""
    image = picture()
    with serving(own_server("--queue", str(queue))) as (address, pid):
        url = f"{address}/predict"
        wrk(url, image, 4, 1)
        calm = np.percentile(accepted_latencies(address, image, seconds / 4), 99)
        before = resident_megabytes(pid)
        capacity = wrk(url, image, 4, seconds / 4).throughput
        print(
            f"queue {queue}: p99 {calm:.0f} ms without load; capacity {capacity:.0f} requests/s",
            flush=True,
        )
        accepted: list[float] = []
        beside = threading.Thread(
            target=lambda: accepted.extend(accepted_latencies(address, image, seconds))
        )
        beside.start()
        load = wrk(url, image, connections, seconds)
        beside.join()
        growth = resident_megabytes(pid) - before
    p50, p99 = np.percentile(accepted, (50, 99))
    offered = load.requests / load.seconds
    print(
        f"  offered {offered:.0f}/s ({offered / capacity:.1f} x), throughput "
        f"{load.throughput:.0f}/s, failed {load.failed}; {len(accepted)} accepted beside it: "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; memory grew by {growth:.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="under load (%(default)s)")
    parser.add_argument("--queue", type=int, default=32, help="of each process (%(default)s)")
    parser.add_argument("--connections", type=int, default=200, help="of wrk (%(default)s)")
    args = parser.parse_args()
    need_wrk()
    overload(args.seconds, args.queue, args.connections)


if __name__ == "__main__":
    main()

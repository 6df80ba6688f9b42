"""The same application in three WSGI servers: `python -m benchmarks.serving.servers`.

Needs wrk, waitress and gunicorn. In turn, three rounds, two processes each where the server has
processes; prints the median of the rounds.
"""

import statistics
import sys
from pathlib import Path

from benchmarks.serving.latency import jpeg_of_a_phone
from benchmarks.serving.load import FROG, need_wrk, ours, serving, wrk

BIN = Path(sys.executable).parent
APP = "rest_api.app:create_app"
SERVERS = {
    "granian": ours(),
    "gunicorn": [
        *(str(BIN / "gunicorn"), "--worker-class", "gthread", "--workers", "2", "--threads", "38"),
        *("--bind", "127.0.0.1:{port}", f"{APP}()"),
    ],
    "waitress": [
        *(str(BIN / "waitress-serve"), "--threads", "38", "--port", "{port}"),
        *("--host", "127.0.0.1", "--call", APP),
    ],
}
ROUNDS = 3
SECONDS = 4


def main() -> None:
    need_wrk()
    images = {"256-pixel JPEG": FROG.read_bytes(), "12-megapixel JPEG": jpeg_of_a_phone()}
    print("| input | connections | server | answers/s | p50 (ms) | p99 (ms) | failed |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for input_name, image in images.items():
        for connections in (1, 16, 64):
            loads = {name: [] for name in SERVERS}
            for _ in range(ROUNDS):
                for name, command in SERVERS.items():
                    with serving(command) as (address, _):
                        wrk(f"{address}/predict", image, 4, 1)
                        loads[name].append(wrk(f"{address}/predict", image, connections, SECONDS))
            for name, rounds in loads.items():
                rate, p50, p99 = (
                    statistics.median(getattr(load, key) for load in rounds)
                    for key in ("per_second", "p50", "p99")
                )
                failed = sum(load.failed + load.refused for load in rounds)
                print(
                    f"| {input_name} | {connections} | {name} | {rate:,.0f} | {p50:.1f} "
                    f"| {p99:.1f} | {failed} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

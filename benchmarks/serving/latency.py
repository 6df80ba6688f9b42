"""From request to response: `python -m benchmarks.serving.latency`.

Starts `rest_api/app.py` as a user does and prints the seconds until its first response, the
milliseconds of one request after another on one connection, and of the network alone. With
`--against BUNDLE`, prints instead how many times as long the default model takes for a 256-pixel
JPEG as another one: two servers get requests in turn.
"""

import http.client
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import command_line, milliseconds, print_table, spread
from benchmarks.serving.load import first_response, own_server, pictures, post, started
from rest_api.bundle import sizes_of
from rest_api.classifier import load_model
from rest_api.images import decode, to_views
from rest_api.settings import DEFAULT_MODEL

REQUESTS = 1000
ROUNDS = 12  # of 100 requests to each of two servers


def calls(
    connection: http.client.HTTPConnection, images: dict[str, bytes]
) -> dict[str, tuple[Callable, int]]:
    """What is timed, and how many times."""
    model = load_model(DEFAULT_MODEL)
    small, large = images["256-pixel JPEG"], images["12-megapixel JPEG"]
    side, views = model.bundle.input_size, model.bundle.views
    sizes = sizes_of(views, side)
    blank = [np.zeros((1, size, size, 3), np.uint8) for size in sizes]
    return {
        "256-pixel JPEG": (lambda: post(connection, small), REQUESTS),
        "12-megapixel JPEG": (lambda: post(connection, large), REQUESTS // 10),
        "decoding and shrinking the latter": (
            lambda: to_views(decode(large, max(sizes)), side, views),
            50,
        ),
        "the same in full size": (lambda: to_views(decode(large, 4000), side, views), 50),
        "the network alone, one view": (lambda: model.predict(blank[0]), REQUESTS),
        "all views": (lambda: [model.predict(view) for view in blank], REQUESTS),
    }


def percentiles(name: str, call: Callable, n: int) -> list[str]:
    return [name, *(f"{each:.2f}" for each in np.percentile(milliseconds(call, n), (50, 99)))]


def ratio(image: bytes, against: Path) -> str:
    """How many times the median latency of another model that of the default one is."""
    commands = own_server(), own_server("--model", f"{against}")
    with started(commands[0]) as (own, _), started(commands[1]) as (other, _):
        rounds = [median(own, image) / median(other, image) for _ in range(ROUNDS)]
    return spread(rounds, digits=2)


def median(port: int, image: bytes) -> float:
    """Milliseconds of a request, on a connection of its own, to a server that may still start."""
    first_response(f"http://127.0.0.1:{port}/predict", image)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    return statistics.median(milliseconds(lambda: post(connection, image), 100))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--against", type=Path, metavar="BUNDLE", help="to compare with")
    against = parser.parse_args().against
    images = pictures()
    if against:
        print(f"{ratio(images['256-pixel JPEG'], against)} times the latency of {against}")
        return
    with started(own_server()) as (port, _):
        ready = first_response(f"http://127.0.0.1:{port}/predict", images["256-pixel JPEG"])
        print(f"first response {ready:.2f} s after the start\n")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        timed = calls(connection, images).items()
        rows = (percentiles(name, *call) for name, call in timed)
        print_table(["what", "p50 (ms)", "p99 (ms)"], rows)


if __name__ == "__main__":
    main()

"""From request to response: `python -m benchmarks.serving.latency`.

Starts `rest_api/app.py` as a user does and prints the seconds until its first response, the
milliseconds of one request after another on one connection, and of the network alone.
"""

import http.client
from collections.abc import Callable

import numpy as np

from benchmarks.common import command_line, milliseconds, print_table
from benchmarks.serving.load import first_response, own_server, pictures, post, started
from rest_api.bundle import sizes_of
from rest_api.classifier import load_model
from rest_api.images import decode, to_views
from rest_api.settings import DEFAULT_MODEL

REQUESTS = 1000


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
        "the network alone": (lambda: [model.predict(view) for view in blank], REQUESTS),
    }


def percentiles(name: str, call: Callable, n: int) -> list[str]:
    return [name, *(f"{each:.2f}" for each in np.percentile(milliseconds(call, n), (50, 99)))]


def main() -> None:
    command_line(__doc__).parse_args()
    images = pictures()
    with started(own_server()) as (port, _):
        ready = first_response(f"http://127.0.0.1:{port}/predict", images["256-pixel JPEG"])
        print(f"first response {ready:.2f} s after the start\n")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        timed = calls(connection, images).items()
        rows = (percentiles(name, *call) for name, call in timed)
        print_table(["what", "p50 (ms)", "p99 (ms)"], rows)


if __name__ == "__main__":
    main()

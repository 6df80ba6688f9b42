"""From request to response: `python -m benchmarks.serving.latency`.

Starts `rest_api/app.py` as a user does and prints the seconds until its first response, the
milliseconds of one request after another on one connection, and of the network alone.
"""

import http.client
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.common import command_line, milliseconds, print_table
from benchmarks.serving.load import first_response, own_server, pictures, post, started
from rest_api.classifier import load_model
from rest_api.images import decode, to_views
from rest_api.settings import DEFAULT_MODEL

REQUESTS = 1000


def calls(
    connection: http.client.HTTPConnection, images: dict[str, bytes]
) -> Iterator[tuple[str, Callable, int]]:
    """What is timed, and how many times."""
    model = load_model(DEFAULT_MODEL)
    photo, side = images["12-megapixel JPEG"], model.bundle.input_size
    views = model.bundle.views
    yield "256-pixel JPEG", partial(post, connection, images["256-pixel JPEG"]), REQUESTS
    yield "12-megapixel JPEG", partial(post, connection, photo), REQUESTS // 10
    for name, size in (
        ("decoding and shrinking the latter", side),
        ("the same in full size", 4000),
    ):
        yield name, lambda size=size: to_views(decode(photo, size), side, views), 50
    yield (
        "the network alone",
        partial(model.predict, np.zeros((len(views), side, side, 3), np.uint8)),
        REQUESTS,
    )


def percentiles(name: str, call: Callable, n: int) -> list[str]:
    return [name, *(f"{each:.2f}" for each in np.percentile(milliseconds(call, n), (50, 99)))]


def main() -> None:
    command_line(__doc__).parse_args()
    images = pictures()
    with started(own_server()) as (port, _):
        ready = first_response(f"http://127.0.0.1:{port}/predict", images["256-pixel JPEG"])
        print(f"first response {ready:.2f} s after the start\n")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        rows = (percentiles(*call) for call in calls(connection, images))
        print_table(["what", "p50 (ms)", "p99 (ms)"], rows)


if __name__ == "__main__":
    main()

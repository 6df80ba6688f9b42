"""The same application in three WSGI servers: `python -m benchmarks.serving.servers`.

Needs wrk, waitress and gunicorn. In turn, three rounds, two processes each where the server has
processes; prints the medians of the rounds, and how many requests were refused or failed in all.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product

from benchmarks.common import command_line, print_table
from benchmarks.serving.load import COLUMNS, medians, need_wrk, own_server, pictures, serving, wrk

APP = "rest_api.app:create_app"
SERVERS = {
    "ours": own_server("--workers", "2"),
    "gunicorn": [
        *(sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--workers", "2"),
        *("--threads", "38", "--bind", "127.0.0.1:{port}", f"{APP}()"),
    ],
    "waitress": [
        *(sys.executable, "-m", "waitress", "--threads", "38", "--host", "127.0.0.1"),
        *("--port", "{port}", "--call", APP),
    ],
}
CONNECTIONS = (1, 16, 64)
ROUNDS = 3
SECONDS = 4


def rows() -> Iterator[list[str]]:
    images = pictures()
    del images["32-pixel PNG"]
    for (image_name, image), connections in product(images.items(), CONNECTIONS):
        loads = {name: [] for name in SERVERS}
        for _, (name, command) in product(range(ROUNDS), SERVERS.items()):
            with serving(command) as (address, _):
                wrk(f"{address}/predict", image, 4, 1)  # to warm up
                loads[name].append(wrk(f"{address}/predict", image, connections, SECONDS))
        for name, rounds in loads.items():
            yield [f"{image_name}, {connections}", name, *medians(rounds)]


def main() -> None:
    command_line(__doc__).parse_args()
    need_wrk()
    if missing := [name for name in SERVERS if name != "ours" and not find_spec(name)]:
        sys.exit(f"error: this needs other servers: pip install {' '.join(missing)}")
    print_table(["input, connections", "server", *COLUMNS], rows())


if __name__ == "__main__":
    main()

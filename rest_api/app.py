"""The server: `python rest_api/app.py`, then POST an image to /predict.

`create_app` makes the Flask application for any WSGI server; `main` runs it in Granian, a
production server, with one process per core.
"""

import argparse
import os
import socket
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a file, from wherever: make `rest_api` importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from flask import Flask

from rest_api.api import api
from rest_api.bundle import FILENAMES, BundleError, Engine, load_bundle
from rest_api.engine import load_engine

DEFAULT_MODEL = Path(__file__).parent / "assets" / "cifar10"
MAX_BODY = 10 * 2**20  # bytes
THREADS = 2  # requests at a time in each process; decoding and the network release the GIL


def create_app(
    model: str | Path = DEFAULT_MODEL, engine: Engine = "litert", threads: int = THREADS
) -> Flask:
    """The application serving one bundle, loaded and warm. Raises BundleError."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.json.sort_keys = False
    app.extensions["bundle"] = load_bundle(model)
    app.extensions["predict"] = load_engine(app.extensions["bundle"], engine, threads)
    app.register_blueprint(api)
    return app


def main() -> None:
    args = parse_arguments()
    try:  # say here, in one line, what would stop every worker
        load_bundle(args.model).file(args.engine)
        socket.create_server((args.host, args.port)).close()
    except BundleError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: cannot listen on {args.host}:{args.port}: {error.strerror}. "
            "Choose another with --port or --host."
        )

    from granian import Granian

    server = Granian(
        "rest_api.app",
        address=args.host,
        port=args.port,
        interface="wsgi",
        workers=args.workers,
        blocking_threads=THREADS,
        respawn_failed_workers=True,
        log_level="warning",
    )
    server.on_startup(
        lambda: print(f"Serving {args.model} on http://{args.host}:{args.port}", flush=True)
    )
    # Workers load the network themselves, each its own: the parent holds none to fork.
    server.serve(target_loader=partial(create_app, args.model, args.engine), wrap_loader=False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a model bundle at POST /predict.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port",
        type=partial(whole_number, least=1, most=65_535),
        default=os.environ.get("PORT", "5000"),
        help="port to listen on ($PORT, else 5000)",
    )
    parser.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, help="model bundle, a folder (%(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=partial(whole_number, least=1, most=256),
        default=os.cpu_count(),
        help="server processes (one per core: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=list(FILENAMES),
        default="litert",
        help="what runs the network (%(default)s)",
    )
    return parser.parse_args()


def whole_number(text: str, least: int, most: int) -> int:
    """Read a number from the command line. Raises argparse.ArgumentTypeError."""
    if text.isdecimal() and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")


if __name__ == "__main__":
    main()

"""The server: `python rest_api/app.py`, then POST an image to /predict.

`create_app` makes the Flask application for any WSGI server; `main` runs it behind the door in
Granian, a production server, with one process per core.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

if __name__ == "__main__":  # run as a file, from wherever: make `rest_api` importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Where processes keep their metrics for each other; prometheus_client looks once, at import.
    scratch = tempfile.TemporaryDirectory(prefix="classifier-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch.name

from flask import Flask

from rest_api.api import api, describe
from rest_api.bundle import FILENAMES, BundleError, load_bundle
from rest_api.classifier import find_bundles, load_models
from rest_api.gateway import Gateway
from rest_api.pages import pages
from rest_api.security import guard
from rest_api.settings import DEFAULT_MODEL, Settings
from rest_api.telemetry import count_models, observed

SETTINGS = Settings()
GRACE = 30  # seconds that accepted requests have to end when the server stops
log = logging.getLogger("rest_api")


def create_app(
    settings: Settings = SETTINGS, draining: Callable[[], bool] = lambda: False
) -> Flask:
    """The application, its models loaded and warm.

    `draining` says whether the server is about to stop. Raises BundleError.
    """
    app = Flask(__name__, static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.extensions |= {
        "settings": settings,
        "draining": draining,
    }
    app.register_blueprint(api)
    app.register_blueprint(pages)
    describe(app)
    guard(app, settings)
    app.wsgi_app = observed(app.wsgi_app)
    load(app)
    return app


def load(app: Flask) -> None:
    """Load the models, in place of those that are there. Raises BundleError."""
    settings, old = app.extensions["settings"], app.extensions.get("models", {})
    models = load_models(settings)
    app.extensions["models"] = models
    count_models(old, 0)
    count_models(models, 1)


def reload(app: Flask) -> None:
    """Take up what has changed on disk; where a bundle is bad, the old models go on.

    Requests that have begun keep the model that they began with.
    """
    try:
        load(app)
    except BundleError as error:
        log.error("The old models go on: %s", error)
        return
    served = [f"{name} {m.bundle.version}" for name, m in app.extensions["models"].items()]
    log.warning("Now serving %s", ", ".join(served))


def create_worker(settings: Settings, draining: Event) -> Gateway:
    """The application in a process of the server, which reloads its models on SIGHUP."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("rest_api").setLevel(logging.INFO)
    if not hasattr(signal, "SIGHUP"):
        app = create_app(settings, draining.is_set)
    else:
        missed = threading.Event()  # a signal while the bundles are read the first time
        signal.signal(signal.SIGHUP, lambda *_: missed.set())
        app = create_app(settings, draining.is_set)
        signal.signal(
            signal.SIGHUP, lambda *_: threading.Thread(target=reload, args=(app,)).start()
        )
        if missed.is_set():
            reload(app)
    return Gateway(app.wsgi_app, settings.threads, settings.queue, settings.max_body)


def serve(settings: Settings, host: str, port: int, workers: int, drain: float) -> None:
    """Run until SIGTERM or Ctrl-C.

    On SIGTERM the server says for `drain` seconds that it is not ready, while it goes on to
    answer; then it answers what it has accepted, for GRACE seconds at most, and ends.
    """
    from granian import Granian

    run_undisturbed()
    draining = multiprocessing.Event()
    server = Granian(
        "rest_api.app",
        address=host,
        port=port,
        interface="rsgi",
        workers=workers,
        loop="asyncio",
        websockets=False,
        respawn_failed_workers=True,
        respawn_interval=0,
        workers_kill_timeout=GRACE,
        log_level="error",
    )

    def start_draining(*_: object) -> None:
        draining.set()
        threading.Timer(drain, server.signal_handler_interrupt).start()

    def reload_workers(*_: object) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGHUP)

    def stop_at_once() -> None:
        """In a worker, until it has loaded and takes the signals itself."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    @server.on_startup
    def begin() -> None:
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=stop_at_once)
        signal.signal(signal.SIGTERM, start_draining)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, reload_workers)
        names = ", ".join(str(path) for path in settings.models)
        print(f"Serving {names} on http://{host}:{port}", flush=True)

    # Workers load the networks themselves, each its own: the parent holds none to fork.
    server.serve(target_loader=partial(create_worker, settings, draining), wrap_loader=False)


def run_undisturbed() -> None:
    """Let this process and its children work on when another of their threads wakes up.

    The other has its turn some milliseconds later. With half the switches between threads, this
    gives 6 to 10 % more answers a second.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with contextlib.suppress(OSError):  # a sandbox may not have it: all the rest works
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> None:
    args = parse_arguments()
    settings = Settings(
        models=tuple(args.model or [DEFAULT_MODEL]),
        engine=args.engine,
        max_body=args.max_body * 2**20,
        max_pixels=args.max_pixels * 1_000_000,
        max_files=args.max_files,
        threads=args.threads,
        queue=args.queue,
        api_keys=read_keys(args.api_keys),
        rate_limit=args.rate_limit,
        rate_storage=args.rate_storage,
        proxies=args.proxies,
        cors_origins=tuple(args.cors),
    )
    try:  # say here, in one line, what would stop every worker
        for path in find_bundles(settings.models):
            load_bundle(path).file(settings.engine)
        socket.create_server((args.host, args.port)).close()
    except BundleError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: cannot listen on {args.host}:{args.port}: {error.strerror}. "
            "Choose another with --port or --host."
        )
    serve(settings, args.host, args.port, args.workers, args.drain)


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys, one a line, of a file, or else of $API_KEYS."""
    text = path.read_text(encoding="utf-8") if path else os.environ.get("API_KEYS", "")
    return tuple(text.split())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve model bundles at POST /predict.")
    number = partial(partial, whole_number)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add(
        "--port",
        type=number(least=1, most=65_535),
        default=os.environ.get("PORT", "5000"),
        help="port to listen on ($PORT, else 5000)",
    )
    add(
        "--model",
        type=Path,
        action="append",
        help=f"a model bundle or a folder of them; again for more ({DEFAULT_MODEL})",
    )
    add(
        "--workers",
        type=number(least=1, most=256),
        default=os.cpu_count(),
        help="server processes (one per core: %(default)s)",
    )
    add(
        "--engine",
        choices=list(FILENAMES),
        default=SETTINGS.engine,
        help="what runs the networks (%(default)s)",
    )
    add("--max-body", type=number(least=1, most=1000), default=10, help="MiB of a request (10)")
    add("--max-pixels", type=number(least=1, most=178), default=50, help="millions an image (50)")
    add("--max-files", type=number(least=1, most=1000), default=16, help="images a request (16)")
    add(
        "--threads",
        type=number(least=1, most=64),
        default=SETTINGS.threads,
        help="images at a time in each process (%(default)s)",
    )
    add(
        "--queue",
        type=number(least=0, most=1000),
        default=SETTINGS.queue,
        help="requests that may wait in each process before others get 503 (%(default)s)",
    )
    add("--api-keys", type=Path, help="file of keys, one a line; else those in $API_KEYS (none)")
    add("--rate-limit", default="", help='for each address, such as "60/minute" (none)')
    add(
        "--rate-storage",
        default=SETTINGS.rate_storage,
        help="where its counts are: a redis:// address makes processes share them (%(default)s)",
    )
    add(
        "--proxies",
        type=number(least=0, most=10),
        default=0,
        help="how many in front say in X-Forwarded-For who asks (%(default)s)",
    )
    add("--cors", action="append", default=[], help="origin whose pages may ask; again for more")
    add(
        "--drain",
        type=number(least=0, most=600),
        default=2,
        help="seconds to be not ready before stopping on SIGTERM (%(default)s)",
    )
    return parser.parse_args()


def whole_number(text: str, least: int, most: int) -> int:
    """Read a number from the command line. Raises argparse.ArgumentTypeError."""
    if text.isdecimal() and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")


if __name__ == "__main__":
    main()

"""The server: `python rest_api/app.py`, then POST an image to /predict.

`create_app` makes the Flask application for any WSGI server; `main` runs it behind the gateway in
Granian, a production server, with one process per core.

Flask and what comes with it are imported in functions: --help does not wait for them, and main()
has something to set before prometheus_client is imported.
"""

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
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run as a file, from wherever: make `rest_api` importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rest_api import __version__
from rest_api.bundle import BundleError, load_bundle
from rest_api.settings import Settings, parse_arguments

if TYPE_CHECKING:
    from rest_api.api import App
    from rest_api.gateway import Gateway

SETTINGS = Settings()
GRACE = 30  # seconds that accepted requests have to end when the server stops


def create_app(
    settings: Settings = SETTINGS, draining: Callable[[], bool] = lambda: False
) -> "App":
    """The application, its models loaded and warm.

    `draining` says whether the server is about to stop. Raises BundleError.
    """
    from rest_api import security
    from rest_api.api import App, api, describe
    from rest_api.pages import pages
    from rest_api.protocols import protocols

    app = App(settings, draining)
    app.register_blueprint(api)
    app.register_blueprint(protocols)
    app.register_blueprint(pages)
    security.init_app(app, settings)
    describe(app)
    app.load()
    return app


def create_worker(settings: Settings, draining: Event) -> "Gateway":
    """The application in a process of the server, which reloads its models on SIGHUP."""
    from rest_api.gateway import Gateway

    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("rest_api").setLevel(logging.INFO)
    if not hasattr(signal, "SIGHUP"):
        app = create_app(settings, draining.is_set)
    else:
        missed = threading.Event()  # a signal while the bundles are read the first time
        signal.signal(signal.SIGHUP, lambda *_: missed.set())
        app = create_app(settings, draining.is_set)
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=app.reload).start())
        if missed.is_set():
            app.reload()
    return Gateway(app.wsgi_app, app.refuse, settings.threads, settings.queue, settings.max_body)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C.

    On SIGTERM the server says for `settings.drain` seconds that it is not ready, while it goes on
    to answer; then it answers what it has accepted, for GRACE seconds at most, and ends.
    """
    from granian import Granian
    from granian.constants import Interfaces, Loops
    from granian.log import LogLevels

    import rest_api.api  # noqa: F401  # before the fork: workers share its memory

    schedule_in_batches()
    draining = multiprocessing.Event()
    server = Granian(
        "rest_api.app",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.RSGI,
        workers=settings.workers,
        loop=Loops.asyncio,
        websockets=False,
        respawn_failed_workers=True,
        respawn_interval=0,
        workers_kill_timeout=GRACE,
        log_level=LogLevels.error,
    )

    def start_draining(*_: object) -> None:
        draining.set()
        threading.Timer(settings.drain, server.signal_handler_interrupt).start()

    def reload_workers(*_: object) -> None:
        for process in multiprocessing.active_children():
            if process.pid:
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
        address = f"http://{settings.host}:{settings.port}"
        print(f"cifar10-cnn {__version__}: serving {names} on {address}", flush=True)

    # Workers load the networks themselves, each its own: the parent holds none to fork.
    loader: Callable[..., Any] = partial(create_worker, settings, draining)
    server.serve(target_loader=loader, wrap_loader=False)


def schedule_in_batches() -> None:
    """Let this process and its children work on when another of their threads wakes up.

    The other has its turn some milliseconds later. With half the switches between threads, this
    gives 6 to 10 % more requests a second.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with contextlib.suppress(OSError):  # a sandbox may not have it: all the rest works
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def check(settings: Settings) -> None:
    """End the program with one line about what would stop every worker."""
    from rest_api.classifier import find_bundles

    host, port = settings.host, settings.port
    try:
        for path in find_bundles(settings.models):
            load_bundle(path).file(settings.engine)
        socket.create_server((host, port)).close()
    except BundleError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        airplay = sys.platform == "darwin" and port == 5000
        sys.exit(
            f"error: cannot listen on {host}:{port}: {error.strerror}. "
            "Choose another port with --port, such as --port 8000, or another --host."
            + airplay
            * " On macOS, AirPlay Receiver takes port 5000."
        )


def main() -> None:
    settings = parse_arguments()
    check(settings)
    with tempfile.TemporaryDirectory(prefix="classifier-metrics-") as folder:
        # Where processes keep their metrics for each other; prometheus_client looks at import.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        serve(settings)


if __name__ == "__main__":
    main()

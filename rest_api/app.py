"""The server: `python rest_api/app.py`, then POST an image to /predict.

`create_app` makes the Flask application for any WSGI server; `main` runs it behind the gateway,
with one process per core.

Flask and what comes with it are imported in functions: --help does not wait for them, and main()
has something to set before prometheus_client is imported.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if __name__ == "__main__":
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the imports take a while
    # Run as a file, from wherever: make `rest_api` importable.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rest_api.bundle import BundleError
from rest_api.processes import SERVES, STOPS, accept_signals, orphaned, supervise
from rest_api.settings import VERSION, Settings, parse_arguments

if TYPE_CHECKING:
    from rest_api.api import App

GRACE = 30  # seconds that accepted requests have to end when the server stops
MAX_CONNECTIONS = 4096  # of each process
OTHER_FILES = 64  # that a process has open
METRICS = "cifar10-cnn-metrics-"  # how the name of their temporary folder begins
UNLOCKED = 60  # seconds that it may be there before the server that makes it has locked it
METRICS_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemax")  # of prometheus_client
METRICS_SIZE = 256 * 2**10  # bytes, written at the start: a disk that fills later does no harm


def create_app(
    settings: Settings | None = None, draining: Callable[[], bool] = lambda: False
) -> "App":
    """The application, its models loaded and warm.

    Without settings they are those of a server started without options: $API_KEYS counts.
    `draining` says whether the server is about to stop. Raises BundleError.
    """
    from rest_api import security
    from rest_api.api import App, api, describe
    from rest_api.pages import pages
    from rest_api.protocols import protocols

    settings = settings or parse_arguments([])
    app = App(settings, draining)
    app.register_blueprint(api)
    app.register_blueprint(protocols)
    app.register_blueprint(pages)
    security.init_app(app, settings)
    describe(app)
    app.load()
    return app


def run_process(
    settings: Settings, connections: int, number: int, listener: socket.socket, parent: Connection
) -> None:
    """What each process of the server does: load the models, tell the parent, answer."""
    from rest_api import telemetry
    from rest_api.gateway import Gateway
    from rest_api.images import silence_pillow

    for each in STOPS:
        signal.signal(each, signal.SIG_DFL)  # nothing is lost before it serves
    missed: list[None] = []  # each a SIGHUP while the bundles are read
    on_reload(lambda: missed.append(None))  # an Event's lock could not be taken by the next
    accept_signals()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("rest_api").setLevel(logging.INFO)
    silence_pillow()
    telemetry.count_as(number)
    draining = threading.Event()
    try:
        app = create_app(settings, draining.is_set)
    except BundleError as error:
        sys.exit(f"error: {error}")
    on_reload(lambda: threading.Thread(target=app.reload).start())
    if missed:
        app.reload()
    gateway = Gateway(
        app.wsgi_app, app.refuse, settings.threads, settings.queue, settings.max_body, connections
    )

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def drain() -> None:
            draining.set()
            loop.call_later(settings.drain, gateway.stop)

        await gateway.listen(listener)
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(drain))
        signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(gateway.stop))
        parent.send_bytes(SERVES)
        orphan = asyncio.create_task(orphaned())
        orphan.add_done_callback(lambda _: gateway.stop())
        await gateway.work()

    asyncio.run(work())


def on_reload(reload: Callable[[], object]) -> None:
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: reload())


def serve(settings: Settings) -> int:
    """Run until SIGTERM or Ctrl-C; the exit status.

    On SIGTERM the server says for `settings.drain` seconds that it is not ready, while it goes on
    to answer; then it answers what it has accepted, for GRACE seconds at most, and ends.
    """
    connections = allowed_connections()
    with shared_metrics(settings.workers):
        import rest_api.api
        import rest_api.gateway  # noqa: F401  # before the fork: processes share its memory

        schedule_in_batches()
        names = ", ".join(str(path) for path in settings.models)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        line = f"{VERSION}: serving {names} on http://{host}:{settings.port}"
        ready = partial(print, line, flush=True)
        # Processes load the networks themselves, each its own: the parent holds none to fork.
        work = partial(run_process, settings, connections)
        bind = binding(settings.host, settings.port)
        return supervise(work, bind, settings.workers, settings.drain + GRACE, ready)


def allowed_connections() -> int:
    """How many connections a process can hold, with as many open files as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files <= OTHER_FILES:
        sys.exit(f"error: {hard} open files are too few. Allow {wanted}: ulimit -n {wanted}")
    if files < wanted:
        warn(
            f"{hard} open files leave {files - OTHER_FILES} connections for each process. "
            f"Allow {wanted} for {MAX_CONNECTIONS}: ulimit -n {wanted}"
        )
    return files - OTHER_FILES


@contextlib.contextmanager
def shared_metrics(processes: int) -> Iterator[None]:
    """Let the processes share their metrics through files, so that each can report all.

    Without room for the files, each reports its own.
    """
    with contextlib.ExitStack() as stack:
        try:
            remove_unused(METRICS)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=METRICS)))
            stack.enter_context(locked(folder))
            for name, kind in product(["parent", *range(processes)], METRICS_FILES):
                (folder / f"{kind}_{name}.db").write_bytes(bytes(METRICS_SIZE))
        except OSError as error:
            warn(f"GET /metrics tells of one process alone: no room for its files ({error}).")
            stack.close()
        else:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # prometheus_client looks there
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Mark a folder as in use by this process and its children. Raises OSError if it is already."""
    if not fcntl:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_unused(prefix: str) -> None:
    """Remove the temporary folders of servers that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*") if fcntl else ():
        with contextlib.suppress(OSError):  # it is in use, or not ours
            if folder.stat().st_mtime < time.time() - UNLOCKED:
                with locked(folder):
                    shutil.rmtree(folder)


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def schedule_in_batches() -> None:
    """Let this process and its children work on when another of their threads wakes up.

    The other has its turn some milliseconds later. With half the switches between threads, this
    gives 6 to 10 % more requests a second.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with contextlib.suppress(OSError):  # a sandbox may not have it: all the rest works
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def binding(host: str, port: int) -> Callable[[], socket.socket]:
    """What makes the sockets of the processes.

    Linux spreads connections over all that listen at a port. Elsewhere, processes share one.
    """
    family, address = resolve(host, port)
    if sys.platform != "linux":
        return listen(family, address).dup

    def bind() -> socket.socket:
        each = socket.socket(family)
        if takes_both(family):
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        each.bind(address)
        return each

    return bind


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Where to listen, IPv4 where a name has both. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # of a..b, whose middle part is empty, or of too long a part
        raise OSError(errno.EINVAL, "not a valid host name") from error
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def listen(family: socket.AddressFamily, address: Any) -> socket.socket:
    """A socket that has an address for itself. Raises OSError."""
    return socket.create_server(address, family=family, dualstack_ipv6=takes_both(family))


def takes_both(family: socket.AddressFamily) -> bool:
    """Whether a socket at all addresses of a family is reached by IPv4, too."""
    return family == socket.AF_INET6 and socket.has_dualstack_ipv6()


def check(settings: Settings) -> None:
    """End the program with one line about what would stop every process."""
    from rest_api.classifier import read_bundles

    host, port = settings.host, settings.port
    try:
        for bundle in read_bundles(settings.models).values():
            bundle.file(settings.engine or bundle.engine)
    except BundleError as error:
        sys.exit(f"error: {error}")
    try:
        listen(*resolve(host, port)).close()
    except OSError as error:
        airplay = sys.platform == "darwin" and port == 5000
        sys.exit(
            f"error: cannot listen on {host}:{port}: {error.strerror}. "
            "Choose another port with --port, such as --port 8000, or another --host."
            + airplay
            * " On macOS, AirPlay Receiver takes port 5000."
        )


def main() -> None:
    on_reload(lambda: None)  # until there is something to reload
    settings = parse_arguments()
    check(settings)
    sys.exit(serve(settings))


if __name__ == "__main__":
    main()

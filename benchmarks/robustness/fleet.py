"""Four servers behind HAProxy: `python -m benchmarks.robustness.fleet` (`apt install haproxy`).

The proxy's configuration is deploy/haproxy.cfg. 16 clients ask on connections that they keep open,
and once more a second after a request that failed, while in three phases

    restart    each server in turn is stopped by SIGTERM and started again
    kill       one server, all its processes, dies by SIGKILL, and is started again later
    freeze     one server, all its processes, is halted by SIGSTOP, and goes on later

Prints, for each phase, the clients' requests, how many failed, how many after the retry, too.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.common import ROOT, command_line
from benchmarks.robustness.attack import GoodClient, going_on, report
from benchmarks.serving.load import first_response, free_port, own_server

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
SERVERS = 4
CONNECTIONS = 16


class Server:
    """One server of the fleet, of one process, at a port that it keeps."""

    def __init__(self, port: int, *options: str):
        self.address = f"http://127.0.0.1:{port}"
        command = own_server("--workers", "1", "--drain", "2", *options)
        self.command = [part.format(port=port) for part in command]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        first_response(f"{self.address}/health/ready")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def signal_all(self, which: int) -> None:
        """Send a signal to all of its processes."""
        os.killpg(self.process.pid, which)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.signal_all(signal.SIGKILL)
        server.process.wait()


@contextmanager
def proxy(servers: Sequence[int]) -> Iterator[int]:
    """HAProxy in front of the servers at these ports; yields its own port."""
    port = free_port()
    text = CONFIGURATION.read_text(encoding="utf-8")
    for number, actual in enumerate((port, *servers)):
        text = text.replace(f":{5000 + number}\n", f":{actual}\n")
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(text)
        file.flush()
        process = subprocess.Popen(["haproxy", "-db", "-q", "-f", file.name])
        try:
            first_response(f"http://127.0.0.1:{port}/health/ready")
            yield port
        finally:
            process.kill()
            process.wait()


@contextmanager
def fleet() -> Iterator[tuple[int, list[Server]]]:
    """Four servers behind the proxy; yields its port and the servers."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(SERVERS)]
        servers = [stack.enter_context(running(Server(port, "--proxies", "1"))) for port in ports]
        yield stack.enter_context(proxy(ports)), servers


def restart(servers: Sequence[Server], seconds: float) -> None:
    """Restart each, with a pause in which the proxy finds it again."""
    pause = seconds / (len(servers) + 1)
    time.sleep(pause)
    for server in servers:
        began = time.monotonic()
        server.stop()
        server.start()
        server.wait_until_ready()
        time.sleep(max(2.0, pause - (time.monotonic() - began)))


def kill(servers: Sequence[Server], seconds: float) -> None:
    time.sleep(seconds / 4)
    servers[0].signal_all(signal.SIGKILL)
    servers[0].process.wait()
    time.sleep(seconds / 2)
    servers[0].start()
    servers[0].wait_until_ready()
    time.sleep(seconds / 4)


def freeze(servers: Sequence[Server], seconds: float) -> None:
    time.sleep(seconds / 4)
    servers[0].signal_all(signal.SIGSTOP)
    time.sleep(seconds / 2)
    servers[0].signal_all(signal.SIGCONT)
    time.sleep(seconds / 4)


PHASES: dict[str, Callable[[Sequence[Server], float], None]] = {
    each.__name__: each for each in (restart, kill, freeze)
}


def load(port: int, harm: Callable[[], None]) -> list[GoodClient]:
    """The clients that ask through the proxy at `port` while `harm` is done to the fleet."""
    clients = [GoodClient(("127.0.0.1", port), keep_alive=True) for _ in range(CONNECTIONS)]
    with going_on([client.ask for client in clients], patience=60):
        harm()
    return clients


def need_haproxy() -> None:
    if not shutil.which("haproxy"):
        sys.exit("error: this needs HAProxy: apt install haproxy")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each phase (%(default)s)")
    args = parser.parse_args()
    need_haproxy()
    with fleet() as (port, servers):
        for name, harm in PHASES.items():
            clients = load(port, lambda harm=harm: harm(servers, args.seconds))
            print(f"{name}: {report(clients)}", flush=True)


if __name__ == "__main__":
    main()

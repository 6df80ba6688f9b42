"""Several servers as one: behind the proxy that is configured in deploy/, with one rate limit."""

import shutil
import signal
import socket
import subprocess
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.robustness import fleet
from benchmarks.serving.load import free_port
from tests.support import ask, server

pytestmark = pytest.mark.slow

LIMIT = 12


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[int, list[fleet.Server]]]:
    if not shutil.which("haproxy"):
        pytest.skip("needs HAProxy: apt install haproxy")
    with fleet.fleet() as running:
        yield running


def test_rolling_restart_fails_no_request(servers):
    port, running = servers
    clients = fleet.load(port, lambda: fleet.restart(running[:2], 3))
    assert sum(len(client.seconds) for client in clients) > 100
    assert not sum((client.failures for client in clients), Counter())


def test_death_of_a_server_loses_no_request_that_is_sent_again(servers):
    port, running = servers
    clients = fleet.load(port, lambda: fleet.kill(running, 4))
    assert sum(len(client.seconds) for client in clients) > 100
    # Only what the dead server was working on can fail.
    assert sum(client.failures.total() for client in clients) <= fleet.CONNECTIONS
    assert not sum(client.lost for client in clients)


def test_frozen_server_is_found_and_asked_no_more(servers):
    port, running = servers
    running[0].signal_all(signal.SIGSTOP)
    try:
        time.sleep(4)  # by then its health check has failed twice
        clients = fleet.load(port, lambda: time.sleep(3))
    finally:
        running[0].signal_all(signal.SIGCONT)
    assert sum(len(client.seconds) for client in clients) > 50
    assert not sum((client.failures for client in clients), Counter())
    assert max(max(client.seconds) for client in clients) < 10  # of 13 that a server may take


@contextmanager
def redis(port: int) -> Iterator[subprocess.Popen]:
    """A Redis that keeps nothing on disk."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not is_open(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def status(port: int) -> int:
    try:
        ask(port)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def test_rate_limit_is_of_all_servers_while_redis_lives_and_of_each_when_it_dies():
    if not shutil.which("redis-server"):
        pytest.skip("needs Redis: apt install redis-server")
    pytest.importorskip("redis", reason="needs Redis's client: pip install redis")
    options = ["--workers", "1", "--rate-limit", f"{LIMIT}/hour", "--rate-storage"]
    storage = free_port()
    with redis(storage) as process:
        options.append(f"redis://127.0.0.1:{storage}")
        with server(*options) as (one, first), server(*options) as (other, second):
            shared = Counter(status(port) for _ in range(LIMIT) for port in (first, second))
            assert shared == {200: LIMIT, 429: LIMIT}
            process.kill()
            process.wait()
            for port in (first, second):
                assert Counter(status(port) for _ in range(LIMIT + 5)) == {200: LIMIT, 429: 5}
            for each in (one, other):
                assert each.stdout.read().count("unreachable") == 1

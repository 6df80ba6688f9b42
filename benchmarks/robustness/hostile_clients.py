"""Clients that try to keep others from being served: one generator for each kind.

A client is a function of a server's address that does its harm once, for up to `seconds`, and then
returns. Add one by writing a function and naming it in CLIENTS.
"""

import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack

Address = tuple[str, int]

GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
MALFORMED = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 50,  # HTTP/2
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost : x\r\n\r\n",
    HEAD + b"Content-Length: " + b"0" * 5000 + b"\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc",
    bytes(range(256)) * 20,
)


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def hold(client: socket.socket, seconds: float) -> None:
    """Keep a connection until the server closes it, or so long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        client.settimeout(left)
        if not client.recv(65536):
            return


def silent(address: Address, seconds: float) -> None:
    """Connects and says nothing."""
    with connect(address) as client:
        hold(client, seconds)


def keep_alive_idle(address: Address, seconds: float) -> None:
    """Asks once, then holds the connection."""
    with connect(address) as client:
        client.sendall(GET)
        hold(client, seconds)


def drip(client: socket.socket, data: bytes, seconds: float) -> None:
    """Send a byte each second."""
    for at in range(min(len(data), int(seconds))):
        client.sendall(data[at : at + 1])
        time.sleep(1)


def slow_header(address: Address, seconds: float) -> None:
    with connect(address) as client:
        drip(client, HEAD + b"X-Slow: " + b"x" * 10_000, seconds)


def slow_body(address: Address, seconds: float) -> None:
    with connect(address) as client:
        client.sendall(HEAD + b"Content-Length: 10000000\r\n\r\n")
        drip(client, bytes(10_000), seconds)


def slow_reader(address: Address, seconds: float) -> None:
    """Asks for the largest file that there is, and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the system takes it all
        client.connect(address)
        client.sendall(GET.replace(b"/health/live", b"/docs/swagger-ui-bundle.js"))
        time.sleep(seconds)


def half_closed(address: Address, seconds: float) -> None:
    """Closes its side in the middle of a request."""
    with connect(address) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
        client.shutdown(socket.SHUT_WR)
        hold(client, seconds)


def flood(address: Address, seconds: float) -> None:
    """Connects as fast as it can, fifty times a turn."""
    clients = [connect(address) for _ in range(50)]
    for client in clients:
        client.close()


def malformed(address: Address, seconds: float) -> None:
    """Sends what is no request."""
    with connect(address) as client:
        client.sendall(random.choice(MALFORMED))  # noqa: S311
        hold(client, min(seconds, 1))


def oversized(address: Address, seconds: float) -> None:
    """A method, a target or headers without an end."""
    start = random.choice([b"", b"GET /", b"GET / HTTP/1.1\r\nX: "])  # noqa: S311
    with connect(address) as client:
        client.sendall(start + b"A" * 1_000_000)
        hold(client, min(seconds, 1))


def many_headers(address: Address, seconds: float) -> None:
    """As many headers as fit into what a head may take, the same or not."""
    names = [b"X", *(b"%x" % number for number in range(10_000))]
    lines = random.choice([b"X:\r\n" * 20_000, b":\r\n".join(names)])  # noqa: S311
    with connect(address) as client:
        client.sendall(HEAD + lines[:60_000])
        hold(client, min(seconds, 1))


def endless_body(address: Address, seconds: float) -> None:
    """Announces no length, and sends on and on."""
    end = time.monotonic() + min(seconds, 1)
    with connect(address) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while time.monotonic() < end:
            client.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


def announced(address: Address, seconds: float) -> None:
    """Announces fifty bodies of a megabyte, and sends a byte of each."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(50)]
        for client in clients:
            client.sendall(HEAD + b"Content-Length: 1000000\r\n\r\nx")
        hold(clients[0], seconds)


def tiny_chunks(address: Address, seconds: float) -> None:
    """A body of ten megabytes in chunks of five bytes."""
    with connect(address) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"5\r\nabcde\r\n" * 2_000_000)
        hold(client, min(seconds, 1))


def rapid_reset(address: Address, seconds: float) -> None:
    """Asks for a prediction and resets the connection, twenty times a turn."""
    for _ in range(20):
        with connect(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(HEAD + b"Content-Length: 3\r\n\r\nabc")


def pipelined(address: Address, seconds: float) -> None:
    """Sends a thousand requests, and reads no answer."""
    with connect(address) as client:
        client.sendall(GET * 1000)
        time.sleep(min(seconds, 1))


CLIENTS: dict[str, Callable[[Address, float], None]] = {
    each.__name__: each
    for each in (
        silent,
        keep_alive_idle,
        slow_header,
        slow_body,
        slow_reader,
        half_closed,
        flood,
        malformed,
        oversized,
        many_headers,
        endless_body,
        announced,
        tiny_chunks,
        rapid_reset,
        pipelined,
    )
}

"""The door of a server process: an event loop takes requests in, a thread answers them.

A request is waited for on the event loop until all of it is there: a slow client holds no thread.
What is too much is refused before it is looked at. Granian comes in by its own interface, RSGI
(https://github.com/emmett-framework/granian, docs/spec/RSGI.md), and Flask is called by WSGI.
"""

import asyncio
import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Protocol

import msgspec
from granian.rsgi import ProtocolClosed

from rest_api import telemetry
from rest_api.schema import Failure, Problem

READ_TIMEOUT = 30.0  # seconds that a client has to send its request
QUEUE_TIMEOUT = 10.0  # seconds that a request waits for its turn
MAX_BUFFERED = 128 * 2**20  # bytes of all requests, from their arrival until they are answered
MAX_DISCARDED = 200 * 2**20  # bytes of a request that are read in vain
TOO_SLOW = (
    f"The request took over {READ_TIMEOUT:g} seconds to arrive. Send less, or send it faster."
)
BUSY = "The server is busy. Ask again after the seconds that Retry-After gives."

Wsgi = Callable[[dict[str, Any], Callable], Iterable[bytes]]
Headers = list[tuple[str, str]]
Answer = tuple[int, Headers, bytes]
Jobs = SimpleQueue  # of (environ, deadline, the future of its Answer)


class Scope(Protocol):
    """What RSGI tells of a request."""

    http_version: str
    server: str
    client: str
    scheme: str
    method: str
    path: str
    query_string: str
    headers: Any


class Gateway:
    """The RSGI application around a WSGI one.

    `threads` requests to /predict are worked on at a time, and `queue` more may wait. All other
    routes share one more thread: the health of a busy server can be asked.
    """

    def __init__(self, wsgi: Wsgi, threads: int, queue: int, max_body: int):
        self.max_body = max_body
        self.predictions = answer_in_turn(wsgi, threads, "predict")
        self.others = answer_in_turn(wsgi, 1, "other")
        self.max_held = max(MAX_BUFFERED, max_body)
        # Only the event loop counts these.
        self.places = threads + queue
        self.held = 0  # bytes

    async def __rsgi__(self, scope: Scope, protocol: Any) -> None:
        with contextlib.suppress(ProtocolClosed):  # the client has gone
            protocol.response_bytes(*await self.answer(scope, protocol))

    async def answer(self, scope: Scope, protocol: Any) -> Answer:
        """Take a request in, then have it answered; of what is too much, keep nothing."""
        keep = self.max_body if scope.method == "POST" else 0
        held = min(int(scope.headers.get("content-length", keep)), keep)
        crowded = self.held + held > self.max_held
        if crowded:
            keep = held = 0
        self.held += held
        try:
            body, size = await read(scope, protocol, keep)
        except TimeoutError:
            return refusal(scope.path, 408, "too_slow", TOO_SLOW)
        else:
            return await self.pass_on(wsgi_environ(scope, body, size), crowded)
        finally:
            self.held -= held

    async def pass_on(self, environ: dict[str, Any], crowded: bool) -> Answer:
        """Have a request answered by a thread, if there is a place for it."""
        path = environ["PATH_INFO"]
        if path != "/predict":
            return await have_answered(environ, self.others)
        if crowded or not self.places:
            return refusal(path, 503, "overloaded", BUSY)
        self.places -= 1
        try:
            return await have_answered(environ, self.predictions)
        finally:
            self.places += 1


async def have_answered(environ: dict[str, Any], jobs: Jobs) -> Answer:
    """Have a thread answer a request, unless that is too late by then."""
    answered = asyncio.get_running_loop().create_future()
    jobs.put((environ, time.monotonic() + QUEUE_TIMEOUT, answered))
    return await answered


def answer_in_turn(wsgi: Wsgi, threads: int, name: str) -> Jobs:
    """Start threads that answer what is put into the queue returned.

    A ThreadPoolExecutor would do the same, and take a twentieth of the server's time for it.
    """
    jobs: Jobs = SimpleQueue()

    def answer(environ: dict[str, Any], deadline: float, answered: asyncio.Future) -> None:
        try:
            if time.monotonic() > deadline:
                outcome = refusal(environ["PATH_INFO"], 503, "overloaded", BUSY)
            else:
                outcome = call_wsgi(wsgi, environ)
            settle = answered.set_result
        except Exception as error:
            settle, outcome = answered.set_exception, error
        answered.get_loop().call_soon_threadsafe(settle, outcome)

    def work() -> None:
        while True:
            answer(*jobs.get())

    for number in range(threads):
        threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
    return jobs


async def read(scope: Scope, protocol: Any, keep: int) -> tuple[bytes, int]:
    """The body of a request and its size; of one larger than `keep` bytes, nothing is kept.

    That one is read to its end all the same: a client that is still sending when the connection
    closes would see no answer. Raises TimeoutError.
    """
    async with asyncio.timeout(READ_TIMEOUT):
        if int(scope.headers.get("content-length", keep + 1)) <= keep:
            body = await protocol()  # less than half the cost of its chunks
            return body, len(body)
        chunks, size = [], 0
        async for chunk in protocol:
            size += len(chunk)
            if size <= keep:
                chunks.append(chunk)
            elif size > MAX_DISCARDED:
                break
    return b"".join(chunks) if size <= keep else b"", size


def wsgi_environ(scope: Scope, body: bytes, size: int) -> dict[str, Any]:
    """A request as WSGI (PEP 3333) has it."""
    server, _, port = scope.server.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": server,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        if "_" in name:
            continue  # x_forwarded_for would pass for what a proxy says in X-Forwarded-For
        if name == "transfer-encoding":
            continue  # what came in chunks is whole now: Flask would take it for endless
        key = "HTTP_" + name.upper().replace("-", "_")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")
    environ["CONTENT_LENGTH"] = str(size)
    return environ


def call_wsgi(wsgi: Wsgi, environ: dict[str, Any]) -> Answer:
    """The whole answer of a WSGI application."""
    status, headers = 0, []

    def start_response(line: str, given: Headers, exc_info: Any = None) -> None:
        nonlocal status, headers
        status, headers = int(line[:3]), given

    parts = wsgi(environ, start_response)
    try:
        return status, headers, b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()


def refusal(path: str, status: int, code: str, message: str) -> Answer:
    """An answer that the application is not asked for."""
    telemetry.REJECTED.labels(code).inc()
    telemetry.REQUESTS.labels("/predict" if path == "/predict" else "none", status).inc()
    body = msgspec.json.encode(Failure(False, Problem(code, message)))
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if status == 503:
        headers.append(("Retry-After", "1"))  # seconds
    return status, headers, body

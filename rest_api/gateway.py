"""The gateway of a server process: an event loop takes requests in, a thread answers them.

The event loop waits until all of a request has arrived: a slow client occupies no thread. What is
too much is refused before the application sees it. Granian calls by its own interface, RSGI
(https://github.com/emmett-framework/granian, docs/spec/RSGI.md), and Flask is called by WSGI.
"""

import asyncio
import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any
from wsgiref.types import WSGIApplication, WSGIEnvironment

from granian.rsgi import HTTPProtocol, ProtocolClosed, Scope  # type: ignore[attr-defined]

from rest_api.errors import RequestError
from rest_api.schema import classifying_route

READ_TIMEOUT = 30.0  # seconds that a client has to send its request
QUEUE_TIMEOUT = 10.0  # seconds that a request waits for its turn
MAX_BUFFERED = 128 * 2**20  # bytes of all requests, from their arrival until they are answered
MAX_DISCARDED = 200 * 2**20  # bytes of a refused request that are still read
TOO_SLOW = (
    f"The request took over {READ_TIMEOUT:g} seconds to arrive. Send less, or send it faster."
)
BUSY = "The server is busy. Ask again after the seconds that Retry-After gives."

Headers = list[tuple[str, str]]
Answer = tuple[int, Headers, bytes]
Jobs = SimpleQueue[tuple[WSGIEnvironment, float, "asyncio.Future[Answer]"]]  # with the deadline


class Gateway:
    """The RSGI application around a WSGI one.

    `threads` requests to classify are worked on at a time, and `queue` more may wait. All other
    routes share one more thread, so that a busy server still tells its health. `refuse` makes the
    WSGI application that answers with an error.
    """

    def __init__(
        self,
        wsgi: WSGIApplication,
        refuse: Callable[[RequestError], WSGIApplication],
        threads: int,
        queue: int,
        max_body: int,
    ):
        self.refuse = refuse
        self.max_body = max_body  # bytes to keep of a request; the application refuses a larger one
        self.max_buffered = max(MAX_BUFFERED, max_body)
        self.predictions = start_threads(wsgi, threads, "predict")
        self.others = start_threads(wsgi, 1, "other")
        # Only the event loop counts these.
        self.slots = threads + queue
        self.buffered_bytes = 0

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        with contextlib.suppress(ProtocolClosed):  # the client has gone
            try:
                answer = await self.answer(scope, protocol)
            except RequestError as error:
                answer = call_wsgi(self.refuse(error), wsgi_environ(scope, b"", 0))
            protocol.response_bytes(*answer)

    async def answer(self, scope: Scope, protocol: HTTPProtocol) -> Answer:
        """Read a request and have a thread answer it. Raises RequestError on what is too much."""
        keep = self.max_body if scope.method == "POST" else 0
        expected = min(int(scope.headers.get("content-length", keep)), keep)
        over_budget = self.buffered_bytes + expected > self.max_buffered
        if over_budget:
            keep = expected = 0
        self.buffered_bytes += expected
        try:
            body, size = await read(scope, protocol, keep)
            environ = wsgi_environ(scope, body, size)
            if not classifying_route(scope.path):
                return await submit(environ, self.others)
            if over_budget or not self.slots:
                raise overloaded()
            self.slots -= 1
            try:
                return await submit(environ, self.predictions)
            finally:
                self.slots += 1
        finally:
            self.buffered_bytes -= expected


def overloaded() -> RequestError:
    return RequestError(503, "overloaded", BUSY, {"Retry-After": "1"})  # seconds


async def submit(environ: WSGIEnvironment, jobs: Jobs) -> Answer:
    """Have a thread answer a request. Raises RequestError if its turn comes too late."""
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    jobs.put((environ, time.monotonic() + QUEUE_TIMEOUT, answered))
    return await answered


def start_threads(wsgi: WSGIApplication, threads: int, name: str) -> Jobs:
    """Start threads that answer what is put into the queue returned.

    A ThreadPoolExecutor would do the same, and take a twentieth of the server's time for it.
    """
    jobs: Jobs = SimpleQueue()

    def answer(
        environ: WSGIEnvironment, deadline: float, answered: "asyncio.Future[Answer]"
    ) -> None:
        finish: Callable[[Any], None] = answered.set_result
        outcome: Answer | Exception
        try:
            if time.monotonic() > deadline:
                raise overloaded()
            outcome = call_wsgi(wsgi, environ)
        except Exception as error:
            finish, outcome = answered.set_exception, error
        answered.get_loop().call_soon_threadsafe(finish, outcome)

    def work() -> None:
        while True:
            answer(*jobs.get())

    for number in range(threads):
        threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
    return jobs


async def read(scope: Scope, protocol: HTTPProtocol, keep: int) -> tuple[bytes, int]:
    """The body of a request and its size; of one larger than `keep` bytes, nothing is kept.

    That one is read to its end all the same: a client that is still sending when the connection
    closes would see no answer. Raises RequestError if the client is too slow.
    """
    try:
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
    except TimeoutError as error:
        raise RequestError(408, "too_slow", TOO_SLOW) from error
    return b"".join(chunks) if size <= keep else b"", size


def wsgi_environ(scope: Scope, body: bytes, size: int) -> WSGIEnvironment:
    """A request as WSGI (PEP 3333) has it."""
    server, _, port = scope.server.rpartition(":")
    environ: WSGIEnvironment = {
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


def call_wsgi(wsgi: WSGIApplication, environ: WSGIEnvironment) -> Answer:
    """The whole answer of a WSGI application."""
    status, headers = 0, []

    def start_response(line: str, given: Headers, exc_info: Any = None) -> Any:
        nonlocal status, headers
        status, headers = int(line[:3]), given

    parts = wsgi(environ, start_response)
    try:
        return status, headers, b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()

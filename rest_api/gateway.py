"""The gateway of a server process: an event loop takes requests in, threads answer them.

The event loop waits until all of a request has arrived: a slow client occupies no thread. What is
too much is refused before the application, which is called by WSGI (PEP 3333), sees it.
"""

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication, WSGIEnvironment

from rest_api.connection import MAX_HEAD, Answer, Connection, Headers, State, overloaded
from rest_api.errors import RequestError
from rest_api.processes import refuse_connections
from rest_api.schema import HEALTH, classifying_route

READ_TIMEOUT = 30.0  # seconds for a request to begin, to arrive, and for its answer to be taken
STOP_TIMEOUT = 2.5  # the same, once the server stops
QUEUE_TIMEOUT = 10.0  # seconds that a request waits for its turn
# Seconds until a request that finds the queue full is refused. Clients that retry at once would
# otherwise take the time, and every free place in the queue, from those that wait.
REFUSAL_DELAY = 0.05
MAX_BUFFERED = 128 * 2**20  # bytes of requests until they are answered, of answers until taken
PATIENCE = 10.0  # seconds that a client may keep them in memory where there is too little
BACKLOG = 1024  # connections that wait to be accepted
ACCEPTED_AT_ONCE = 8  # connections; those too many are open files for some turns of the loop
FAILED = "The server failed; its log says why."
# Headers of the answer where even the application that refuses has failed.
LAST_RESORT = [("Content-Type", "text/plain"), ("Content-Length", str(len(FAILED)))]

log = logging.getLogger("rest_api")


class Job(NamedTuple):
    """A request that waits for a thread."""

    connection: Connection
    deadline: float  # for its turn
    slots: int  # that it takes


class Gateway:
    """Between a process's connections and the WSGI application; it belongs to the event loop.

    `threads` requests to classify are worked on at a time, and `queue` more may wait. All other
    routes share one more thread, those that tell the server's health another, so that a busy server
    still tells it. `refuse` makes the WSGI application that answers with an error. Of more than
    `max_connections`, the one whose client has kept us waiting longest is closed.
    """

    def __init__(
        self,
        wsgi: WSGIApplication,
        refuse: Callable[[RequestError], WSGIApplication],
        threads: int,
        queue: int,
        max_body: int,
        max_connections: int,
    ):
        self.wsgi, self.refuse = wsgi, refuse
        self.max_body = max_body  # bytes to keep of a request; the application refuses a larger one
        self.max_buffered = max(MAX_BUFFERED, max_body + MAX_HEAD)
        self.max_connections = max_connections
        self.predictions = self.start_threads(threads, "predict")
        self.others = self.start_threads(1, "other")
        self.health = self.start_threads(1, "health")
        self.slots = threads + queue
        self.buffered_bytes = 0
        self.stopping = False
        self.timeout = READ_TIMEOUT
        self.connections: set[Connection] = set()
        self.waiting: dict[Connection, float] = {}  # for the client, and since when; longest first
        self.environ: WSGIEnvironment = {
            "REQUEST_METHOD": "",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections to `listener`."""
        self.loop, self.listener = asyncio.get_running_loop(), listener
        name, port = listener.getsockname()[:2]
        self.environ |= {"SERVER_NAME": name, "SERVER_PORT": str(port)}
        self.server = await self.loop.create_server(
            lambda: Connection(self), sock=listener, backlog=ACCEPTED_AT_ONCE
        )
        listener.listen(BACKLOG)  # asyncio has one number for both

    async def work(self) -> None:
        """Run until stop() is called and all connections are closed."""
        while not self.stopping or self.connections:
            self.expire()
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        """Accept no more, close the connections that ask for nothing, answer the others."""
        self.stopping, self.timeout = True, STOP_TIMEOUT
        refuse_connections(self.listener)
        self.server.close()
        for connection in list(self.waiting):
            self.wait(connection)
            if connection.state is State.IDLE:
                connection.transport.close()

    def expire(self) -> None:
        """Deal with the clients whose time is over."""
        due = time.monotonic() - self.timeout
        while self.waiting:
            connection, since = next(iter(self.waiting.items()))
            if since > due:
                return
            del self.waiting[connection]
            connection.expire()

    # Called by the connections.

    def connected(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.wait(connection)
        if len(self.connections) > self.max_connections and self.waiting:
            longest = next(iter(self.waiting))
            del self.waiting[longest]  # it is lost a turn of the loop later
            longest.transport.abort()

    def disconnected(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.waiting.pop(connection, None)
        with suppress(IndexError):  # no request is queued: a thread has taken it, or none came
            self.slots += connection.queued.pop().slots
            connection.begin()
        if connection.state is not State.ANSWERING:  # else the request is still in memory
            self.count_bytes(connection, 0)

    def wait(self, connection: Connection) -> None:
        """Give the client its time, from now on."""
        self.waiting.pop(connection, None)
        self.waiting[connection] = time.monotonic()

    def too_slow(self) -> RequestError:
        if self.stopping:
            message = "The server stopped before the request had arrived. Send it again."
            return RequestError(408, "too_slow", message)
        message = f"The request took over {READ_TIMEOUT:g} seconds to arrive."
        return RequestError(408, "too_slow", f"{message} Send less, or send it faster.")

    def count_bytes(self, connection: Connection, size: int) -> bool:
        """Count the bytes that a connection keeps in memory; whether there is room for them."""
        self.buffered_bytes += size - connection.buffered
        connection.buffered = size
        if self.buffered_bytes > self.max_buffered:
            self.make_room()
        return self.buffered_bytes <= self.max_buffered

    def make_room(self) -> None:
        """Drop clients that have kept bytes in memory for long, as many as it takes."""
        due = time.monotonic() - PATIENCE
        for connection, since in list(self.waiting.items()):
            if since > due or self.buffered_bytes <= self.max_buffered:
                return
            if connection.buffered:
                connection.transport.abort()  # it is lost a turn of the loop later
                self.buffered_bytes -= connection.buffered
                connection.buffered = 0

    def take(self, connection: Connection) -> None:
        """Have a thread answer a request that has arrived whole."""
        self.waiting.pop(connection, None)
        path, method = connection.environ["PATH_INFO"], connection.environ["REQUEST_METHOD"]
        classifies = method == "POST" and classifying_route(path)
        # Answered however full the memory is: of any method but POST, no body is kept.
        probes = method != "POST" and path.startswith(HEALTH)
        if not connection.fits() and not probes:
            connection.send(self.refusal(overloaded(), connection.environ))
        elif classifies and not self.slots:
            refusal = self.refusal(overloaded(), connection.environ)
            self.loop.call_later(REFUSAL_DELAY, connection.send, refusal)
        else:
            job = Job(connection, time.monotonic() + QUEUE_TIMEOUT, 1 if classifies else 0)
            self.slots -= job.slots
            connection.queued = [job]
            others = self.health if probes else self.others
            (self.predictions if classifies else others).put(connection.queued)

    def done(self, job: Job, answer: Answer) -> None:
        self.slots += job.slots
        job.connection.send(answer)

    def start_threads(self, threads: int, name: str) -> SimpleQueue[list[Job]]:
        """Start threads that take jobs from the queue returned.

        Its entries hold one job, or none once the client has disconnected, which frees the slot. A
        ThreadPoolExecutor would do the same, and take a twentieth of the server's time for it.
        """
        entries: SimpleQueue[list[Job]] = SimpleQueue()

        def work() -> None:
            while True:
                try:
                    job = entries.get().pop()
                except IndexError:
                    continue
                answer = self.answer(job)
                self.loop.call_soon_threadsafe(self.done, job, answer)

        for number in range(threads):
            threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
        return entries

    def answer(self, job: Job) -> Answer:
        """The application's answer to a request, or why there is none; in a thread."""
        environ = job.connection.environ
        try:
            if time.monotonic() > job.deadline:
                return self.refusal(overloaded(), environ)
            return call_wsgi(self.wsgi, self.environ | environ)
        except Exception:
            log.exception("The application failed.")
            return self.refusal(RequestError(500, "internal_server_error", FAILED), environ)

    def refusal(self, error: RequestError, environ: WSGIEnvironment) -> Answer:
        """The answer to a request of which no more than `environ` is known."""
        try:
            return call_wsgi(self.refuse(error), self.environ | environ)
        except Exception:  # else it would end a thread, or leave a connection open for ever
            log.exception("The refusal failed.")
            head = environ.get("REQUEST_METHOD") == "HEAD"
            return 500, LAST_RESORT, b"" if head else FAILED.encode()


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

"""A bound on the requests that are being answered or wait for their turn."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from flask import Flask

from rest_api import observe
from rest_api.errors import RequestError
from rest_api.schema import Failure, Problem

MAX_WAIT = 10.0  # seconds that a request waits for its turn
MAX_DRAIN = 200 * 2**20  # bytes
RETRY_AFTER = {"Retry-After": "1"}  # seconds
MESSAGE = "The server is busy. Ask again after the seconds that Retry-After gives."
REFUSAL = msgspec.json.encode(Failure(False, Problem("overloaded", MESSAGE)))

Wsgi = Callable[[dict[str, Any], Callable], Iterable[bytes]]


def limit_requests(app: Flask, threads: int, queue: int) -> None:
    """Let `threads` requests to /predict work at a time and `queue` more wait.

    The others are refused at once, their body read but not looked at: that must cost next to
    nothing, or refusing would be the overload. Who works, `Turns` decide.
    """
    places = threading.BoundedSemaphore(threads + queue)
    inner: Wsgi = app.wsgi_app

    def gated(environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/predict":
            return inner(environ, start_response)
        if not places.acquire(blocking=False):
            observe.REJECTED.labels("overloaded").inc()
            observe.REQUESTS.labels("/predict", 503).inc()
            drain(environ)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(REFUSAL))}
            start_response("503 SERVICE UNAVAILABLE", list((headers | RETRY_AFTER).items()))
            return [REFUSAL]
        try:
            return inner(environ, start_response)
        finally:
            places.release()

    app.wsgi_app = gated
    app.extensions["turns"] = Turns(threads)


class Turns:
    """A context manager in which `threads` requests work at a time."""

    def __init__(self, threads: int):
        self.free = threading.BoundedSemaphore(threads)

    def __enter__(self) -> None:
        """Wait for a turn. Raises RequestError (503) where it takes too long."""
        if not self.free.acquire(timeout=MAX_WAIT):
            raise RequestError(503, "overloaded", MESSAGE, RETRY_AFTER)

    def __exit__(self, *_: object) -> None:
        self.free.release()


def drain(environ: dict[str, Any]) -> None:
    """Read what is left of a request's body.

    A client that is still sending when the connection closes would never see the answer.
    """
    stream, chunk = environ["wsgi.input"], 2**16
    for _ in range(MAX_DRAIN // chunk):
        if not stream.read(chunk):
            return

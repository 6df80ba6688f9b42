"""A bound on the requests that are being answered or wait for their turn."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rest_api.errors import RequestError

MAX_WAIT = 10.0  # seconds that a request waits for its turn
RETRY_AFTER = 1  # seconds after which an overloaded server may be asked again


def make_gate(threads: int, queue: int) -> Callable[[], AbstractContextManager[None]]:
    """A gate that lets `threads` requests work at a time and `queue` more wait.

    To enter it raises RequestError (503) at once where all places are taken.
    """
    places = threading.BoundedSemaphore(threads + queue)
    turns = threading.BoundedSemaphore(threads)

    @contextmanager
    def gate() -> Iterator[None]:
        if not places.acquire(blocking=False):
            raise overloaded()
        try:
            if not turns.acquire(timeout=MAX_WAIT):
                raise overloaded()
            try:
                yield
            finally:
                turns.release()
        finally:
            places.release()

    return gate


def overloaded() -> RequestError:
    message = "The server is busy. Ask again after the seconds that Retry-After gives."
    return RequestError(503, "overloaded", message, {"Retry-After": str(RETRY_AFTER)})

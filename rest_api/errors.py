"""What ends as an answer or in one line, and not as a traceback."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class RequestError(Exception):
    """What a client did that cannot be answered.

    Becomes the answer `{"success": false, "error": {"code", "message"}}`.

    `code` is stable, `message` says what was wrong and what would be right.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class JobError(Exception):
    """A cluster's job cannot start or go on; the message is one line that says why."""


@contextmanager
def interruptible(then: str) -> Iterator[None]:
    """Exit with "Stopped." and what happens `then` where Ctrl+C interrupts what is inside.

    A KeyboardInterrupt in compiled code, such as NumPy's, arrives as the context of another error.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__context__
        if not cause:
            raise
        sys.exit(f"\nStopped. {then}".rstrip())

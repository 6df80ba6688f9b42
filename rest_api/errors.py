"""What a client did that cannot be answered."""

from collections.abc import Mapping


class RequestError(Exception):
    """Becomes the answer `{"success": false, "error": {"code", "message"}}`.

    `code` is stable, `message` says what was wrong and what would be right.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class JobError(Exception):
    """A cluster's job cannot start or go on; the message is one line that says why."""

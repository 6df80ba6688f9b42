"""The one kind of error that a client causes."""


class RequestError(Exception):
    """A request that is refused: `status` (HTTP), `code` (stable, for programs) and a message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code

"""A client's connection: HTTP/1.1 (RFC 9112), one request after another.

llhttp, the parser of Node.js, reads the requests; httptools brings it to Python.
"""

import asyncio
import io
import time
from contextlib import suppress
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIEnvironment

from httptools import (
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

from rest_api.errors import RequestError

if TYPE_CHECKING:
    from rest_api.gateway import Gateway, Job

MAX_HEAD = 64 * 2**10  # bytes of a request that are not its body: head, frames of chunks
MAX_HEADERS = 200  # of a request: each takes memory beside its bytes; browsers send some 20
CHUNK = 64  # bytes of memory that a chunk of a body takes besides its content
HEADER = 130  # and a header
MAX_DISCARDED = 200 * 2**20  # bytes of a body too large that are still read
BUSY = "The server is busy. Try again later: Retry-After says in how many seconds."
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Headers = list[tuple[str, str]]
Answer = tuple[int, Headers, bytes]


class State(Enum):
    IDLE = "nothing of a request has come"
    READING = "a part of it has come"
    ANSWERING = "it has come whole and waits for its answer"
    DONE = "no other request will be answered"


class Connection(asyncio.Protocol):
    """Reads requests for the gateway and writes its answers; the event loop calls it.

    A request that comes before the last one is answered is not read: the connection closes, and
    the client sends it again (RFC 9112, section 9.3.2).
    """

    def __init__(self, gateway: "Gateway"):
        self.gateway = gateway
        self.parser = HttpRequestParser(self)
        self.lost = False  # the client has gone
        self.last = False  # close after the answer
        self.unread = False  # the client may have sent more than was read
        self.unsent = 0  # bytes of answers that the client had not taken when it was looked at
        self.buffered = 0  # bytes of requests and answers that the gateway counts
        self.begin()

    def begin(self) -> None:
        """Wait for a request."""
        self.state = State.IDLE
        self.environ: WSGIEnvironment = {}
        self.target = b""
        self.head = 0  # bytes of the target and the headers
        self.headers = 0  # their number, trailers among them
        self.overhead = 0  # bytes that have come and are not body
        self.keep = -1  # bytes of a body that are kept; -1 until the head has come
        self.chunks: list[bytes] = []
        self.size = 0  # bytes of the body so far, kept or not
        self.queued: list[Job] = []  # its entry in the queue, empty once a thread has taken the job

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(0)  # hear of all that a client does not take
        self.address = (transport.get_extra_info("peername") or ("",))[0]
        self.gateway.connected(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = True
        self.gateway.disconnected(self)

    def data_received(self, data: bytes) -> None:
        if self.state is State.ANSWERING:
            self.last = self.unread = True
            self.transport.pause_reading()
        elif self.state is not State.DONE:
            self.read(data)

    def eof_received(self) -> bool:
        """Whether to keep our side open: a client may close its own side after a request."""
        self.last = True
        return self.state is State.ANSWERING

    def pause_writing(self) -> None:
        self.transport.pause_reading()  # who takes no answers asks for no more
        if not self.fits():
            self.transport.abort()

    def resume_writing(self) -> None:
        self.transport.resume_reading()
        self.fits()

    def read(self, data: bytes) -> None:
        self.overhead += len(data)
        try:
            self.parse(data)
        except HttpParserError as error:
            if self.state in (State.ANSWERING, State.DONE):
                self.last = self.unread = True
            elif isinstance(error.__context__, RequestError):
                self.refuse(error.__context__)
            else:
                self.refuse(malformed(str(error)))
        else:
            if self.state in (State.ANSWERING, State.DONE):
                return
            if self.overhead > MAX_HEAD + self.size:
                self.refuse(head_too_large())
            elif not self.fits():
                self.refuse(overloaded())

    def parse(self, data: bytes) -> None:
        """Feed the parser, and after a wish for another protocol one of the body alone.

        Raises HttpParserError.
        """
        try:
            self.parser.feed_data(data)
            return
        except HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        if self.unread:
            return
        # Java's clients want HTTP/2 with every POST. The parser takes what follows for that; so
        # another reads it, which is told that it is a body, and the last.
        names = "on_header", "on_body", "on_message_complete"
        self.parser = HttpRequestParser(SimpleNamespace(**{n: getattr(self, n) for n in names}))
        self.headers -= 2  # those that follow
        head = f"POST / HTTP/1.1\r\nConnection: close\r\n{self.framing}\r\n\r\n".encode()
        self.parser.feed_data(head + rest)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.state is not State.IDLE:
            raise malformed("a request came before the answer to the last")
        self.state = State.READING
        self.gateway.wait(self)

    def on_url(self, part: bytes) -> None:
        self.target += part
        self.head += len(part)
        if self.head > MAX_HEAD:
            raise head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head += len(name) + len(value)
        self.headers += 1
        if self.head > MAX_HEAD or self.headers > MAX_HEADERS:
            raise head_too_large()
        key = environ_key(name)
        if key and self.keep < 0:  # later, it is a trailer
            text = value.decode("latin-1").rstrip(" \t")  # the parser leaves what follows
            self.environ[key] = f"{self.environ[key]},{text}" if key in self.environ else text

    def on_headers_complete(self) -> None:
        environ = self.environ
        environ["REQUEST_METHOD"] = self.parser.get_method().decode()
        environ["SERVER_PROTOCOL"] = f"HTTP/{self.parser.get_http_version()}"
        if environ["SERVER_PROTOCOL"] not in ("HTTP/1.1", "HTTP/1.0"):
            raise malformed(f"its version is {environ['SERVER_PROTOCOL']}")
        environ["REMOTE_ADDR"] = self.address
        environ["PATH_INFO"], environ["QUERY_STRING"] = split_target(self.target)
        if self.parser.should_upgrade():  # we go on in HTTP/1.1, and may (RFC 9110, section 7.8)
            self.last = True
            self.unread = environ["REQUEST_METHOD"] != "POST"  # the parser skips a body
        # What came in chunks will be whole: Flask would take it for endless.
        coding = environ.pop("HTTP_TRANSFER_ENCODING", "")
        if coding and environ["SERVER_PROTOCOL"] == "HTTP/1.0":
            raise malformed("HTTP/1.0 has no chunks")  # a proxy may have read it otherwise
        if coding.lower() not in ("", "chunked"):
            raise malformed(f"its Transfer-Encoding is {coding[:99]}, and only chunked is read")
        length = environ.get("CONTENT_LENGTH", "0")
        self.framing = "Transfer-Encoding: chunked" if coding else f"Content-Length: {length}"
        if not (length.isdecimal() and len(length) < 20):
            raise malformed("Content-Length must be a number")
        limit = self.gateway.max_body if environ["REQUEST_METHOD"] == "POST" else 0
        self.keep = limit if int(length) <= limit else 0
        if environ["SERVER_PROTOCOL"] == "HTTP/1.0":
            return
        if environ.get("HTTP_HOST", ",").count(","):  # RFC 9112, section 3.2
            raise malformed("it must have one Host")
        if environ.get("HTTP_EXPECT", "").lower() == "100-continue":
            if environ["REQUEST_METHOD"] == "POST" and int(length) > limit:  # 405 to others
                raise too_large(limit)
            self.transport.write(CONTINUE)

    def on_body(self, chunk: bytes) -> None:
        self.overhead -= len(chunk)
        self.size += len(chunk)
        if self.size <= self.keep:
            self.chunks.append(chunk)
        elif self.size <= MAX_DISCARDED:
            self.chunks.clear()  # read on: who still sends when we close would see no answer
        else:
            raise too_large(self.gateway.max_body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and not self.unread:
            return  # the body is still to come
        self.last |= not self.parser.should_keep_alive()
        self.state = State.ANSWERING
        self.environ["CONTENT_LENGTH"] = str(self.size)
        self.environ["wsgi.input"] = io.BytesIO(b"".join(self.chunks))
        self.chunks.clear()
        self.gateway.take(self)

    def fits(self) -> bool:
        """Tell the gateway what is in memory; whether it has room for that."""
        head = min(self.overhead, MAX_HEAD) + HEADER * self.headers
        body = self.size if self.size <= self.keep else 0
        unsent = self.transport.get_write_buffer_size()
        return self.gateway.count_bytes(self, head + body + CHUNK * len(self.chunks) + unsent)

    # Called by the gateway.

    def refuse(self, error: RequestError) -> None:
        """Answer to a request that has not come whole, or is none."""
        self.last = self.unread = True
        self.send(self.gateway.refusal(error, self.environ))

    def send(self, answer: Answer) -> None:
        """Write an answer, then wait for the next request or close."""
        environ = self.environ
        self.begin()  # the request is no longer in memory
        self.fits()
        if self.lost:
            return
        self.last |= self.gateway.stopping
        head = response_head(answer, environ, self.last)
        # Not writelines(): in some versions of Python it does not say what is left unsent.
        self.transport.write(head + answer[2])
        self.unsent = self.transport.get_write_buffer_size()
        self.gateway.wait(self)
        if self.last:
            self.close()

    def close(self) -> None:
        self.state = State.DONE
        if self.unread:  # the client reads the answer, then closes: else it might be reset
            with suppress(OSError):  # it has gone since we wrote
                self.transport.write_eof()
            self.transport.resume_reading()
        else:
            self.transport.close()

    def expire(self) -> None:
        """The client has not done in time what we wait for."""
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < self.unsent:  # slow, but it takes its answer
            self.unsent = unsent
            self.gateway.wait(self)
        elif self.state is State.READING and not unsent:
            self.refuse(self.gateway.too_slow())
        else:
            self.transport.abort()


def response_head(answer: Answer, environ: WSGIEnvironment, last: bool) -> bytes:
    """Status line and headers of an answer, after which the connection may close."""
    status, headers, body = answer
    lines = [status_line(status), *[f"{name}: {value}\r\n" for name, value in headers]]
    given = dict(headers)
    if "Content-Length" not in given and status not in (204, 304):
        lines.append(f"Content-Length: {len(body)}\r\n")
    if "Date" not in given:
        lines.append(date_line(int(time.time())))
    if last:
        lines.append("Connection: close\r\n")
    elif environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        lines.append("Connection: keep-alive\r\n")
    return "".join([*lines, "\r\n"]).encode("latin-1")


def overloaded() -> RequestError:
    return RequestError(503, "overloaded", BUSY, {"Retry-After": "1"})  # seconds


def head_too_large() -> RequestError:
    message = f"Send at most {MAX_HEADERS} headers, and less than {MAX_HEAD // 2**10} KiB of them."
    return RequestError(431, "headers_too_large", message)


def too_large(limit: int) -> RequestError:
    message = f"The request is too large. Send at most {limit / 2**20:g} MiB."
    return RequestError(413, "too_large", message)


def malformed(what: str) -> RequestError:
    return RequestError(400, "bad_request", f"This is not an HTTP/1.1 request: {what}.")


def split_target(target: bytes) -> tuple[str, str]:
    """Path and query of a request target, as WSGI has them. Raises RequestError."""
    if not target.startswith(b"/"):  # http://host/path, as to a proxy
        try:
            url = parse_url(target)
        except HttpParserInvalidURLError:
            raise malformed("its target has no path") from None
        target = (url.path or b"/") + b"?" + (url.query or b"")
    path, _, query = target.partition(b"?")
    # One slash, as the application's router reads several.
    path = b"/" + unquote_to_bytes(path).lstrip(b"/")
    return path.decode("latin-1"), query.decode("latin-1")


@lru_cache(maxsize=128)
def environ_key(name: bytes) -> str:
    """What WSGI calls a header; empty for one that the application must not see."""
    key = name.decode("latin-1").upper()
    if "_" in key:
        return ""  # x_forwarded_for would pass for what a proxy says in X-Forwarded-For
    key = key.replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


@lru_cache
def status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


@lru_cache(maxsize=1)
def date_line(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\n"

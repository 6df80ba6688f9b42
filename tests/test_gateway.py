"""The gateway: how requests are taken in, and which of them reach the application."""

import asyncio
import json
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from types import SimpleNamespace

import pytest

from rest_api import connection, gateway
from rest_api.api import refusal
from rest_api.app import create_app
from rest_api.gateway import Gateway
from rest_api.settings import Settings
from tests.support import until


def application(environ, start_response):
    """Answers with what it was sent."""
    start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
    return [environ["CONTENT_LENGTH"].encode(), b":", environ["wsgi.input"].read()]


@contextmanager
def gate(
    wsgi=application, refuse=refusal, threads=1, queue=0, max_body=100, max_connections=100
) -> Iterator[SimpleNamespace]:
    """A gateway at work in a thread: itself, its port, and a way to stop it."""
    made = Gateway(wsgi, refuse, threads, queue, max_body, max_connections)
    listener = socket.create_server(("127.0.0.1", 0))
    listens = threading.Event()

    async def work() -> None:
        await made.listen(listener)
        listens.set()
        await made.work()

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    assert listens.wait(10)

    def stop() -> None:
        if not made.stopping:
            made.loop.call_soon_threadsafe(made.stop)

    try:
        yield SimpleNamespace(
            gateway=made, port=listener.getsockname()[1], stop=stop, thread=thread
        )
    finally:
        stop()
        thread.join(20)
        assert not thread.is_alive()


H2C = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAA"}


def request(body: bytes = b"", path="/predict", method="POST", **headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    if "transfer_encoding" not in headers:
        headers = {"content_length": str(len(body)), **headers}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer_of(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer."""
    response = HTTPResponse(client)
    response.begin()
    return response.status, dict(response.getheaders()), response.read()


def ask(port: int, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(port) as client:
        client.sendall(sent)
        return answer_of(client)


def code(answer: tuple) -> str:
    status, headers, body = answer
    assert headers["Content-Length"] == str(len(body))
    return f"{status} {json.loads(body)['error']['code']}"


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed; waits for it."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_application_gets_the_whole_request():
    seen = {}

    def wsgi(environ, start_response):
        seen.update(environ)
        return application(environ, start_response)

    sent = request(b"abcdef", "/pr%C3%A9?top=3", content_type="image/png", x_forwarded_for="a")
    sent = sent.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: b\r\n\r\n")
    with gate(wsgi) as server, connect(server.port) as client:
        for part in (sent[:30], sent[30:-3], sent[-3:]):
            client.sendall(part)
            time.sleep(0.02)
        status, headers, body = answer_of(client)
    assert (status, headers["X-Path"], body) == (200, "/pr\xc3\xa9", b"6:abcdef")
    assert seen["CONTENT_TYPE"] == "image/png"
    assert seen["HTTP_X_FORWARDED_FOR"] == "a,b"
    assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"]) == ("127.0.0.1", str(server.port))
    assert (seen["QUERY_STRING"], seen["REQUEST_METHOD"]) == ("top=3", "POST")


def test_one_connection_serves_many_requests():
    with gate() as server, connect(server.port) as client:
        for number in (b"1", b"22", b"333"):
            client.sendall(request(number))
            assert answer_of(client)[2] == b"%d:%s" % (len(number), number)


def test_address_of_a_whole_url_is_its_path():
    with gate() as server:
        assert ask(server.port, request(path="http://x/predict?top=3"))[1]["X-Path"] == "/predict"


def test_header_with_an_underscore_does_not_pass_for_a_proxys():
    seen = {}

    def wsgi(environ, start_response):
        seen.update(environ)
        return application(environ, start_response)

    sent = request(b"x", x_forwarded_for="a").replace(
        b"Host: x", b"Host: x\r\nX_Forwarded_For: forged"
    )
    with gate(wsgi) as server:
        ask(server.port, sent)
    assert seen["HTTP_X_FORWARDED_FOR"] == "a"


CHUNKS = b"3\r\nabc\r\n3\r\ndef\r\n0\r\nX-Trailer: late\r\n\r\n"


def test_chunks_are_not_announced_to_the_application_that_gets_them_whole():
    def wsgi(environ, start_response):
        assert not {name for name in environ if "TRANSFER" in name or "TRAILER" in name}
        return application(environ, start_response)

    with gate(wsgi) as server:
        answer = ask(server.port, request(transfer_encoding="chunked") + CHUNKS)
    assert answer[2] == b"6:abcdef"


def test_body_over_the_limit_is_read_to_its_end_and_not_kept():
    chunks = b"3c\r\n" + b"x" * 60 + b"\r\n3c\r\n" + b"y" * 60 + b"\r\n0\r\n\r\n"
    with gate() as server:
        for sent in (request(b"x" * 120), request(transfer_encoding="chunked") + chunks):
            assert ask(server.port, sent)[2] == b"120:"
        assert server.gateway.buffered_bytes == 0


def test_endless_body_is_given_up(monkeypatch):
    monkeypatch.setattr(connection, "MAX_DISCARDED", 1000)
    with gate() as server:
        head = request(content_length="1000000")
        assert code(ask(server.port, head + b"x" * 2000)) == "413 too_large"


def test_client_that_asks_before_it_sends_is_told_to_go_on():
    with gate() as server, connect(server.port) as client:
        client.sendall(request(expect="100-continue", content_length="3"))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert answer_of(client)[2] == b"3:abc"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(expect="100-continue", content_length="101"), 413),
        (request(b"abc", expect="100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    ],
)
def test_client_is_not_told_to_go_on_where_that_is_of_no_use(sent, status):
    with gate() as server:
        assert ask(server.port, sent)[0] == status


def test_put_is_answered_the_same_whether_it_asks_before_it_sends():
    with gate() as server:
        answers = [
            ask(server.port, request(b"x" * 101, method="PUT", **headers))
            for headers in ({}, {"expect": "100-continue"})
        ]
    assert [(status, body) for status, _, body in answers] == [(200, b"101:")] * 2


def test_client_that_closes_its_side_after_the_request_is_answered():
    def wsgi(environ, start_response):
        time.sleep(0.2)
        return application(environ, start_response)

    with gate(wsgi) as server, connect(server.port) as client:
        client.sendall(request(b"abc"))
        client.shutdown(socket.SHUT_WR)
        assert answer_of(client)[2] == b"3:abc"
        assert is_closed(client)


def test_request_before_the_last_answer_closes_the_connection_after_it():
    with gate() as server, connect(server.port) as client:
        client.sendall(request(b"one") + request(b"two"))
        status, headers, body = answer_of(client)
        assert (status, headers["Connection"], body) == (200, "close", b"3:one")
        assert is_closed(client)


@pytest.mark.parametrize(("version", "kept"), [("1.0", False), ("1.1", True)])
def test_old_clients_connection_is_kept_only_where_it_asks(version, kept):
    sent = request(b"abc").replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    with gate() as server:
        assert ask(server.port, sent)[1].get("Connection") == (None if kept else "close")
        kept_alive = sent.replace(b"Host: x", b"Host: x\r\nConnection: keep-alive")
        expected = None if version == "1.1" else "keep-alive"
        assert ask(server.port, kept_alive)[1].get("Connection") == expected


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # HTTP/2
        b"X" * 400_000 + b" / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        request(host="another"),
        request(b"abc", content_length="0" * 5000),
        request(b"abc", content_length="-3"),
        request(b"abc", content_length=""),
        request(b"abc", content_length="3\r\nContent-Length: 4"),
        request(b"abc", content_length="3\r\nTransfer-Encoding: chunked"),
        request(b"abc", content_length="99999999999999999999999"),
        request(transfer_encoding="chunked") + b"ffffffffffffffffff\r\n",
        request(transfer_encoding="chunked") + b"xyz\r\n",
        request(transfer_encoding="gzip, chunked") + b"0\r\n\r\n",
        request(b"abc", **H2C, content_length="3\r\nTransfer-Encoding: chunked"),
        request(transfer_encoding="chunked").replace(b"/1.1", b"/1.0") + b"0\r\n\r\n",
    ],
)
def test_malformed_request_is_refused_and_logged_in_a_short_line(sent, caplog):
    caplog.set_level("INFO", "rest_api.requests")
    app = create_app()
    with gate(app.wsgi_app, app.refuse) as server:
        status, headers, body = ask(server.port, sent)
    assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")
    assert headers["Connection"] == "close"
    assert headers["X-Request-ID"]
    (record,) = caplog.records
    assert len(record.message) < 300


def test_endless_headers_are_refused():
    header = b"X-Long: " + b"x" * 1000 + b"\r\n"
    trailers = request(transfer_encoding="chunked") + b"0\r\n" + header * 200
    frames = request(transfer_encoding="chunked") + b"1;" + b"x" * 200_000
    with gate() as server:
        for sent in (b"GET / HTTP/1.1\r\n" + header * 200, trailers, frames):
            assert code(ask(server.port, sent)) == "431 headers_too_large"
        assert server.gateway.buffered_bytes == 0


@pytest.mark.parametrize("name", ["X", "X-%d"])
def test_headers_without_number_are_refused(name):
    headers = "".join(f"{name.replace('%d', str(i))}:\r\n" for i in range(300)).encode()
    with gate() as server:
        assert code(ask(server.port, b"GET / HTTP/1.1\r\n" + headers)) == "431 headers_too_large"
        few = headers[: headers.index(b"\r\n", len(headers) // 2)]
        assert ask(server.port, b"GET / HTTP/1.1\r\nHost: x\r\n" + few + b"\r\n\r\n")[0] == 200
        assert server.gateway.buffered_bytes == 0


def test_endless_headers_that_come_at_once_are_refused_once(caplog):
    sent = request(path="/file", method="GET", x_long="x" * 100_000)
    with gate() as server, connect(server.port) as client:
        client.sendall(sent)
        assert code(answer_of(client)) == "431 headers_too_large"
        assert ask(server.port, request(b"abc"))[0] == 200
        assert client.recv(1) == b""
    assert not caplog.records


def test_what_follows_an_upgrade_is_no_request():
    upgrade = {"connection": "Upgrade", "upgrade": "h2c"}
    with gate() as server, connect(server.port) as client:
        client.sendall(request(method="GET", **upgrade, content_length="99"))
        assert answer_of(client)[0] == 200
        client.sendall(request(method="GET"))
        assert is_closed(client)


IN_CHUNKS = request(transfer_encoding="chunked", **H2C) + b"3\r\nabc\r\n0\r\nX-Trailer: x\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "body"),
    [(request(b"abc", **H2C), b"abc"), (request(**H2C), b""), (IN_CHUNKS, b"abc")],
    ids=["with a length", "empty", "in chunks"],
)
@pytest.mark.parametrize(
    "after",
    [b"", request(b"other"), request(b"other", **H2C), request(method="GET") * 99],
    ids=["alone", "before another", "before another of the kind", "before many"],
)
@pytest.mark.parametrize("step", [1, 7, 10**6], ids=lambda step: f"{step} bytes at a time")
def test_post_that_would_rather_have_http2_is_answered_once_in_http1(sent, body, after, step):
    bodies = []

    def wsgi(environ, start_response):
        bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"thanks"]

    sent += after
    with gate(wsgi) as server, connect(server.port) as client:
        with suppress(ConnectionError):  # it is answered before all has been sent
            for start in range(0, len(sent), step):
                client.sendall(sent[start : start + step])
        status, headers, content = answer_of(client)
        assert (status, content, headers["Connection"]) == (200, b"thanks", "close")
        assert is_closed(client)
    assert bodies == [body]


@pytest.mark.parametrize(("number", "status"), [(200, 200), (201, 431)])
def test_wish_for_http2_takes_none_of_the_headers_that_a_request_may_have(number, status):
    of_its_own = len(request(b"abc", **H2C).split(b"\r\n")) - 3
    more = {f"x_{i}": "x" for i in range(number - of_its_own)}
    with gate() as server:
        assert ask(server.port, request(b"abc", **H2C, **more))[0] == status


def test_refusal_of_trailers_is_the_same_with_a_wish_for_http2():
    trailers = IN_CHUNKS.replace(b"X-Trailer: x\r\n", b"X-Trailer: x\r\n" * 300)
    with gate() as server:
        assert code(ask(server.port, trailers)) == "431 headers_too_large"


def test_spaces_after_a_header_do_not_count():
    seen = []

    def wsgi(environ, start_response):
        seen.append(environ["HTTP_X_API_KEY"])
        return application(environ, start_response)

    with gate(wsgi) as server:
        answer = ask(server.port, request(b"abc", content_length="3 \t", x_api_key="a key "))
    assert answer[2] == b"3:abc"
    assert seen == ["a key"]


def test_silent_client_is_closed_and_slow_one_told_so(monkeypatch):
    monkeypatch.setattr(gateway, "READ_TIMEOUT", 2.0)
    with (
        gate() as server,
        connect(server.port) as silent,
        connect(server.port) as idle,
        connect(server.port) as slow_head,
        connect(server.port) as slow_body,
    ):
        idle.sendall(request(b"abc"))
        answer_of(idle)
        slow_head.sendall(b"GET / HT")
        slow_body.sendall(request(content_length="10") + b"abc")
        assert ask(server.port, request(b"abc"))[0] == 200  # with one thread
        answer = answer_of(slow_head)
        assert code(answer) == "408 too_slow"
        assert b"over 2 seconds" in answer[2]
        assert code(answer_of(slow_body)) == "408 too_slow"
        assert is_closed(silent)
        assert is_closed(idle)
        until(lambda: server.gateway.buffered_bytes == 0)


def test_of_too_many_connections_the_one_that_waits_longest_is_closed():
    with gate(max_connections=2) as server, connect(server.port) as first:
        until(lambda: len(server.gateway.connections) == 1)
        with connect(server.port) as second, connect(server.port) as third:
            assert is_closed(first)
            for client in (third, second):
                client.sendall(request(b"abc"))
                assert answer_of(client)[0] == 200


def test_client_that_takes_no_answers_holds_a_limited_memory(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_BUFFERED", 20_000_000)

    def wsgi(environ, start_response):
        start_response("200 OK", [])
        return [bytes(13_000_000)]  # of which the system's buffers take up to half

    with gate(wsgi) as server:
        clients = [connect(server.port) for _ in range(8)]
        for client in clients:
            client.sendall(request(path="/file", method="GET"))
        until(lambda: server.gateway.buffered_bytes > 5_000_000)
        time.sleep(0.5)  # the others come: they are dropped, or refused as it is full
        assert server.gateway.buffered_bytes <= 20_000_000
        for client in clients:
            client.close()
        until(lambda: not server.gateway.connections)
        until(lambda: server.gateway.buffered_bytes == 0)


def test_full_queue_is_refused_after_a_moment_and_told_when_to_come_back():
    leave = threading.Event()

    def wsgi(environ, start_response):
        if environ["PATH_INFO"] == "/predict":
            assert leave.wait(30)
        return application(environ, start_response)

    with gate(wsgi, threads=1, queue=1) as server:
        accepted = [connect(server.port) for _ in range(2)]
        for client in accepted:
            client.sendall(request(b"x"))
        until(lambda: server.gateway.slots == 0)
        for _ in range(2):
            began = time.monotonic()
            refused = ask(server.port, request(b"x"))
            assert code(refused) == "503 overloaded"
            assert refused[1]["Retry-After"] == "1"
            assert time.monotonic() - began >= gateway.REFUSAL_DELAY
        # Another route is answered while all of /predict is busy.
        assert ask(server.port, request(path="/health", method="GET"))[0] == 200
        leave.set()
        for client in accepted:
            assert answer_of(client)[0] == 200
            client.close()
        assert server.gateway.slots == 2


def test_request_queues_however_many_slashes_its_path_begins_with():
    leave = threading.Event()

    def wsgi(environ, start_response):
        assert leave.wait(30)
        return application(environ, start_response)

    with gate(wsgi, threads=1, queue=0) as server, connect(server.port) as client:
        client.sendall(request(b"x", "//predict"))
        until(lambda: server.gateway.slots == 0)
        assert code(ask(server.port, request(b"x", "/%2F/predict"))) == "503 overloaded"
        leave.set()
        assert answer_of(client)[1]["X-Path"] == "/predict"


def test_only_what_is_posted_queues():
    leave = threading.Event()

    def wsgi(environ, start_response):
        assert environ["REQUEST_METHOD"] != "POST" or leave.wait(30)
        return application(environ, start_response)

    with gate(wsgi, threads=1, queue=0) as server, connect(server.port) as client:
        client.sendall(request(b"x"))
        until(lambda: server.gateway.slots == 0)
        for method in ("GET", "OPTIONS"):  # a browser asks with OPTIONS whether it may post
            assert ask(server.port, request(method=method))[0] == 200
        leave.set()


def test_health_is_told_while_other_routes_hang():
    leave = threading.Event()

    def wsgi(environ, start_response):
        assert "health" in environ["PATH_INFO"] or leave.wait(30)
        return application(environ, start_response)

    with gate(wsgi) as server, connect(server.port) as client:
        client.sendall(request(path="/models", method="GET"))
        for path in ("/health/live", "/v2/health/ready"):
            assert ask(server.port, request(path=path, method="GET"))[0] == 200
        leave.set()


def test_thread_outlives_an_application_that_cannot_even_refuse(caplog):
    def wsgi(environ, start_response):
        raise RuntimeError

    with gate(wsgi, refuse=lambda error: wsgi) as server:
        for _ in range(2):
            status, _, body = ask(server.port, request(b"x"))
            assert (status, body) == (500, gateway.FAILED.encode())
    assert "The refusal failed." in caplog.text


def test_answer_of_last_resort_to_head_leaves_the_connection_usable():
    def wsgi(environ, start_response):
        if environ["REQUEST_METHOD"] == "HEAD":
            raise RuntimeError
        return application(environ, start_response)

    with gate(wsgi, refuse=lambda error: wsgi) as server, connect(server.port) as client:
        client.sendall(request(method="HEAD"))
        answer = client.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert f"Content-Length: {len(gateway.FAILED)}\r\n".encode() in answer
        assert answer.endswith(b"\r\n\r\n")  # a body would be read as the next answer
        client.sendall(request(b"abc"))
        assert answer_of(client)[2] == b"3:abc"


def test_slot_is_free_again_after_a_failure(caplog):
    def wsgi(environ, start_response):
        raise RuntimeError

    with gate(wsgi) as server:
        for _ in range(2):
            assert code(ask(server.port, request(b"x"))) == "500 internal_server_error"
        assert server.gateway.slots == 1
    assert "RuntimeError" in caplog.text


def test_nobody_works_for_a_client_that_has_reset_its_connection():
    begun, leave, worked = threading.Event(), threading.Event(), []

    def wsgi(environ, start_response):
        worked.append(environ["wsgi.input"].read())
        begun.set()
        assert leave.wait(30)
        return application(environ, start_response)

    with gate(wsgi, queue=1) as server:
        with connect(server.port) as stays, connect(server.port) as goes:
            stays.sendall(request(b"stays"))
            assert begun.wait(10)
            goes.sendall(request(b"goes"))
            until(lambda: server.gateway.slots == 0)
            held = server.gateway.buffered_bytes  # of both
            # Reset: a client that closes in peace may have closed its own side alone.
            goes.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            goes.close()
            until(lambda: len(server.gateway.connections) == 1)
            # Its slot and its bytes are free at once, for another client.
            until(lambda: server.gateway.slots == 1)
            comes = connect(server.port)
            comes.sendall(request(b"comes"))
            until(lambda: server.gateway.slots == 0)
            assert server.gateway.buffered_bytes <= held + 1  # its name is one letter longer
            leave.set()
            assert answer_of(stays)[0] == answer_of(comes)[0] == 200
            comes.close()
        until(lambda: server.gateway.slots == 2)
        until(lambda: server.gateway.buffered_bytes == 0)
    assert worked == [b"stays", b"comes"]


@pytest.mark.parametrize("more", [b"", b"more"])
def test_client_that_goes_before_its_answer_does_no_harm(more, caplog):
    begun, leave = threading.Event(), threading.Event()

    def wsgi(environ, start_response):
        begun.set()
        assert leave.wait(30)
        return application(environ, start_response)

    with gate(wsgi) as server:
        with connect(server.port) as client:
            client.sendall(request(b"x"))
            assert begun.wait(10)
            client.sendall(more)
            until(lambda: next(iter(server.gateway.connections)).unread == bool(more))
        leave.set()
        until(lambda: not server.gateway.connections)
    assert not caplog.records


def test_slow_clients_that_go_when_they_are_refused_do_not_end_the_process(monkeypatch):
    clients, refused = [], threading.Event()

    def refuse(error):
        for client in clients:
            client.close()
        refused.set()
        return refusal(error)

    monkeypatch.setattr(gateway, "READ_TIMEOUT", 2.0)
    with gate(refuse=refuse) as server:
        clients += [connect(server.port) for _ in range(2)]
        for client in clients:
            client.sendall(b"GET / HT")
        assert refused.wait(20)
        assert ask(server.port, request(b"abc"))[0] == 200


def test_refusal_carries_the_headers_of_every_answer_and_is_logged(monkeypatch, caplog):
    caplog.set_level("INFO", "rest_api.requests")
    monkeypatch.setattr(gateway, "QUEUE_TIMEOUT", -1)
    app = create_app(Settings(cors_origins=("https://shop.example",)))
    sent = request(b"x", origin="https://shop.example", x_request_id="abc-1")
    with gate(app.wsgi_app, app.refuse) as server:
        status, headers, _ = ask(server.port, sent)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert headers["X-Request-ID"] == "abc-1"
    assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert headers["X-Content-Type-Options"] == "nosniff"
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert (line["id"], line["route"], line["status"]) == ("abc-1", "/predict", 503)


def test_bodies_that_are_announced_and_not_sent_keep_nobody_out():
    with gate(max_body=2**20, max_connections=200) as server:
        clients = [connect(server.port) for _ in range(gateway.MAX_BUFFERED // 2**20)]
        for client in clients:
            client.sendall(request(content_length=str(2**20)) + b"x")
        until(lambda: all(each.keep > 0 for each in list(server.gateway.connections)))
        assert ask(server.port, request(b"abc"))[2] == b"3:abc"
        for client in clients:
            client.close()


def test_requests_that_are_being_sent_hold_a_limited_memory():
    with gate() as server:
        server.gateway.max_buffered = 1800
        clients = [connect(server.port) for _ in range(4)]
        for client in clients[:3]:
            client.sendall(request(b"x" * 90)[:-1])
        until(lambda: server.gateway.buffered_bytes > 1300)
        clients[3].sendall(request(b"x" * 90)[:-1])
        assert code(answer_of(clients[3])) == "503 overloaded"
        for client in clients[:3]:
            client.sendall(b"x")
            assert answer_of(client)[0] == 200
        assert server.gateway.buffered_bytes == 0
        for client in clients:
            client.close()


def test_who_keeps_memory_for_long_makes_room_for_others(monkeypatch):
    monkeypatch.setattr(gateway, "PATIENCE", 0.2)
    with gate() as server, connect(server.port) as slow, connect(server.port) as quick:
        server.gateway.max_buffered = 700
        slow.sendall(request(b"x" * 90)[:-1])
        until(lambda: server.gateway.buffered_bytes > 400)
        time.sleep(0.3)
        quick.sendall(request(b"x" * 90))
        assert answer_of(quick)[0] == 200
        assert is_closed(slow)
        assert server.gateway.buffered_bytes == 0


def test_health_is_told_however_full_the_memory_is():
    with gate() as server, connect(server.port) as slow:
        server.gateway.max_buffered = 700
        slow.sendall(request(b"x" * 90)[:-1])
        until(lambda: server.gateway.buffered_bytes > 400)
        assert ask(server.port, b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n")[0] == 200
        assert code(ask(server.port, b"GET /else HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n")) == (
            "503 overloaded"
        )
        assert code(ask(server.port, request(b"x" * 90, "/health/live"))) == "503 overloaded"


def test_headers_are_counted_with_what_they_take():
    with gate() as server, connect(server.port) as client:
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d:\r\n" % i for i in range(100))
        client.sendall(head)
        until(lambda: server.gateway.buffered_bytes > 100 * 130)


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_body_of_tiny_chunks_is_counted_with_what_they_take():
    def chunks(size: int) -> bytes:
        chunk = b"%x\r\n%s\r\n" % (size, bytes(size))
        return request(transfer_encoding="chunked") + chunk * (10**6 // size) + b"0\r\n\r\n"

    with gate(max_body=10**6) as server:
        server.gateway.max_buffered = 2 * 10**6
        assert ask(server.port, chunks(1000))[2].startswith(b"1000000:")
        assert code(ask(server.port, chunks(5))) == "503 overloaded"


@pytest.mark.parametrize(
    ("sent", "status"), [(request(b"x" * 10**7) + b"more", 200), (request(b"x" * 10**7)[:-1], 408)]
)
def test_body_is_gone_once_it_is_answered_whoever_stays_connected(sent, status, monkeypatch):
    def wsgi(environ, start_response):
        start_response("200 OK", [])
        return [b"thanks"]

    if status == 408:
        monkeypatch.setattr(gateway, "READ_TIMEOUT", 3.0)
    with gate(wsgi, max_body=10**7) as server, connect(server.port) as client, traced():
        before, _ = tracemalloc.get_traced_memory()
        client.sendall(sent)
        assert answer_of(client)[0] == status
        ask(server.port, request(b"x"))  # the thread forgets the request before
        assert server.gateway.connections
        assert tracemalloc.get_traced_memory()[0] - before < 10**6


@pytest.mark.slow
def test_stop_closes_idle_connections_and_answers_what_was_accepted(monkeypatch):
    monkeypatch.setattr(gateway, "STOP_TIMEOUT", 6.0)
    begun, leave = threading.Event(), threading.Event()

    def wsgi(environ, start_response):
        begun.set()
        assert leave.wait(30)
        return application(environ, start_response)

    with (
        gate(wsgi, queue=1) as server,
        connect(server.port) as idle,
        connect(server.port) as slow,
        connect(server.port) as accepted,
    ):
        slow.sendall(b"POST /predict")
        accepted.sendall(request(b"abc"))
        assert begun.wait(10)
        started = time.monotonic()
        others = server.gateway.listener.dup()  # as another process holds it
        server.stop()
        assert is_closed(idle)
        with pytest.raises(ConnectionRefusedError):
            connect(server.port)
        others.close()
        assert time.monotonic() - started < 5
        answer = answer_of(slow)
        assert code(answer) == "408 too_slow"
        assert b"The server stopped" in answer[2]
        leave.set()
        status, headers, body = answer_of(accepted)
        assert (status, headers["Connection"], body) == (200, "close", b"3:abc")
        server.thread.join(15)
        assert not server.thread.is_alive()
        assert time.monotonic() - started < 15

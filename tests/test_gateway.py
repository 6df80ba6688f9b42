"""The gateway: how requests are taken in, and which of them reach the application."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from granian.rsgi import ProtocolClosed

from rest_api import gateway
from rest_api.api import refusal
from rest_api.app import create_app
from rest_api.gateway import Gateway
from rest_api.settings import Settings


class Client:
    """RSGI's scope and protocol of one request, whose body comes in these chunks."""

    def __init__(self, *chunks: bytes, path="/predict", method="POST", pause=0.0, **scope):
        headers = {"content-length": str(sum(map(len, chunks)))}
        self.scope = SimpleNamespace(
            http_version="1.1",
            server="127.0.0.1:5000",
            client="10.0.0.7:54321",
            scheme="http",
            method=method,
            path=path,
            query_string="top=3",
            headers=headers,
        )
        vars(self.scope).update(scope)
        self.chunks, self.pause, self.read, self.answer = chunks, pause, 0, None

    async def __call__(self) -> bytes:
        await asyncio.sleep(self.pause)
        self.read = sum(map(len, self.chunks))
        return b"".join(self.chunks)

    async def __aiter__(self):
        for chunk in self.chunks:
            await asyncio.sleep(self.pause)
            self.read += len(chunk)
            yield chunk

    def response_bytes(self, status, headers, body):
        self.answer = status, dict(headers), body


def application(environ, start_response):
    """Answers with what it was sent."""
    start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
    return [environ["CONTENT_LENGTH"].encode(), b":", environ["wsgi.input"].read()]


def ask(*clients: Client, wsgi=application, threads=1, queue=0, max_body=100) -> list:
    """The answers to clients that come at the same time."""
    gate = Gateway(wsgi, refusal, threads, queue, max_body)

    async def all_at_once() -> None:
        await asyncio.gather(*(gate.__rsgi__(client.scope, client) for client in clients))

    asyncio.run(all_at_once())
    return [client.answer for client in clients]


def code(answer: tuple) -> str:
    status, headers, body = answer
    assert headers["Content-Length"] == str(len(body))
    return f"{status} {json.loads(body)['error']['code']}"


def test_application_gets_the_whole_request():
    seen = {}

    def wsgi(environ, start_response):
        seen.update(environ)
        return application(environ, start_response)

    headers = [("content-type", "image/png"), ("x-forwarded-for", "a"), ("x-forwarded-for", "b")]
    client = Client(
        b"abc",
        b"def",
        path="/pré",
        headers=SimpleNamespace(
            **{
                "items": lambda: headers,
                "get": lambda name, default: default,
            }
        ),
    )
    assert ask(client, wsgi=wsgi) == [(200, {"X-Path": "/pr\xc3\xa9"}, b"6:abcdef")]
    assert seen["CONTENT_TYPE"] == "image/png"
    assert seen["HTTP_X_FORWARDED_FOR"] == "a,b"
    assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"]) == ("10.0.0.7", "5000")
    assert (seen["QUERY_STRING"], seen["REQUEST_METHOD"]) == ("top=3", "POST")


def test_header_with_an_underscore_does_not_pass_for_a_proxys():
    seen = {}

    def wsgi(environ, start_response):
        seen.update(environ)
        return application(environ, start_response)

    headers = {"content-length": "1", "x-forwarded-for": "a", "x_forwarded_for": "forged"}
    ask(Client(b"x", headers=headers), wsgi=wsgi)
    assert seen["HTTP_X_FORWARDED_FOR"] == "a"


def test_chunks_are_not_announced_to_the_application_that_gets_them_whole():
    def wsgi(environ, start_response):
        assert not {name for name in environ if "TRANSFER" in name}
        return application(environ, start_response)

    client = Client(b"abc", b"def", headers={"transfer-encoding": "chunked"})
    assert ask(client, wsgi=wsgi)[0][2] == b"6:abcdef"


def test_body_over_the_limit_is_read_to_its_end_and_not_kept():
    for headers in ({"content-length": "120"}, {}):  # announced, and not
        client = Client(b"x" * 60, b"y" * 60, headers=headers)
        assert ask(client) == [(200, {"X-Path": "/predict"}, b"120:")]
        assert client.read == 120


def test_body_without_a_length_is_taken_up_to_the_limit():
    assert ask(Client(b"x" * 60, b"y" * 40, headers={}))[0][2] == b"100:" + b"x" * 60 + b"y" * 40


def test_endless_body_is_given_up(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_DISCARDED", 1000)
    client = Client(*[b"x" * 100] * 50, headers={})
    ask(client)
    assert client.read == 1100


def test_slow_client_is_told_so_and_holds_no_thread(monkeypatch):
    monkeypatch.setattr(gateway, "READ_TIMEOUT", 0.1)
    slow, quick = Client(b"abc", pause=30), Client(b"abc")
    refused, answered = ask(slow, quick)  # with one thread
    assert code(refused) == "408 too_slow"
    assert answered[0] == 200


def test_full_queue_is_refused_at_once_and_told_when_to_come_back():
    leave = threading.Event()

    def wsgi(environ, start_response):
        if environ["PATH_INFO"] == "/predict":
            assert leave.wait(30)
        else:
            leave.set()  # another route is answered while all of /predict is busy
        return application(environ, start_response)

    clients = [Client(b"x") for _ in range(4)] + [Client(path="/health", method="GET")]
    *answers, health = ask(*clients, wsgi=wsgi, threads=1, queue=1)
    assert [answer[0] for answer in answers] == [200, 200, 503, 503]
    assert code(answers[2]) == "503 overloaded"
    assert answers[2][1]["Retry-After"] == "1"
    assert health[0] == 200


def test_slot_is_free_again_after_a_failure():
    def wsgi(environ, start_response):
        raise RuntimeError

    gate = Gateway(wsgi, refusal, threads=1, queue=0, max_body=100)
    for _ in range(2):
        client = Client(b"x")
        with pytest.raises(RuntimeError):
            asyncio.run(gate.__rsgi__(client.scope, client))
    assert gate.slots == 1


def test_refusal_carries_the_headers_of_every_answer_and_is_logged(monkeypatch, caplog):
    caplog.set_level("INFO", "rest_api.requests")
    monkeypatch.setattr(gateway, "QUEUE_TIMEOUT", 0)
    app = create_app(Settings(cors_origins=("https://shop.example",)))
    headers = {"content-length": "1", "origin": "https://shop.example", "x-request-id": "abc-1"}
    client = Client(b"x", headers=headers)
    gate = Gateway(app.wsgi_app, app.refuse, threads=1, queue=0, max_body=100)
    asyncio.run(gate.__rsgi__(client.scope, client))
    status, headers, _ = client.answer
    assert (status, headers["Retry-After"]) == (503, "1")
    assert headers["X-Request-ID"] == "abc-1"
    assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert headers["X-Content-Type-Options"] == "nosniff"
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert (line["id"], line["route"], line["status"]) == ("abc-1", "/predict", 503)


def test_request_that_has_waited_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(gateway, "QUEUE_TIMEOUT", 0)
    assert code(ask(Client(b"x"))[0]) == "503 overloaded"


def test_requests_that_are_being_sent_hold_a_limited_memory(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_BUFFERED", 200)
    clients = [Client(b"x" * 90, pause=0.05) for _ in range(3)]
    answers = ask(*clients, threads=3)
    assert [answer[0] for answer in answers] == [200, 200, 503]
    assert clients[2].read == 90  # so that it sees the answer


def test_requests_that_wait_hold_it_until_they_are_answered(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_BUFFERED", 200)
    leave = threading.Event()

    def wsgi(environ, start_response):
        assert leave.wait(30)
        return application(environ, start_response)

    gate = Gateway(wsgi, refusal, threads=1, queue=9, max_body=100)
    waiting, late, after = [Client(b"x" * 90) for _ in range(2)], Client(b"x" * 90), Client(b"x")

    async def one_after_another() -> None:
        tasks = [asyncio.create_task(gate.__rsgi__(each.scope, each)) for each in waiting]
        while not all(each.read for each in waiting):
            await asyncio.sleep(0.01)
        await gate.__rsgi__(late.scope, late)
        leave.set()
        await asyncio.gather(*tasks)
        await gate.__rsgi__(after.scope, after)

    asyncio.run(one_after_another())
    assert code(late.answer) == "503 overloaded"
    assert [each.answer[0] for each in (*waiting, after)] == [200, 200, 200]
    assert gate.buffered_bytes == 0


def test_one_request_of_the_largest_size_is_always_taken(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_BUFFERED", 50)
    assert ask(Client(b"x" * 100))[0][0] == 200


def test_client_that_leaves_is_no_error():
    class Gone(Client):
        async def __call__(self) -> bytes:
            raise ProtocolClosed

    assert ask(Gone(b"abc"), Client(b"abc"))[0] is None

"""Answers a plain HTML form to POST /predict by a page, for browsers without JavaScript."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from jinja2 import Environment
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from rest_api import classifier
from rest_api.classifier import LEAST
from rest_api.gateway import call_wsgi
from rest_api.schema import PREDICT

PAGE = "text/html"
MAX_ACCEPT = 1000  # characters of an Accept that is read; browsers send some 150
SURE = 0.9  # probability from which a class is named without "probably"
percent = partial(classifier.percent, space="\u00a0")  # which keeps the sign on the number's line


def with_pages(wsgi: WSGIApplication, templates: Callable[[], Environment]) -> WSGIApplication:
    """Write the answers of POST /predict as pages where the client prefers pages to JSON."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PREDICT or not prefers_page(environ.get("HTTP_ACCEPT", "")):
            return wsgi(environ, start_response)
        began = time.perf_counter()
        status, headers, body = call_wsgi(wsgi, environ)
        response = Response(body, status, headers)
        if body and response.is_json:  # there is none to HEAD
            page = templates().get_template("answer.html")
            milliseconds = 1000 * (time.perf_counter() - began)
            answer = response.get_json()
            if busy := busy_message(response):
                answer["error"]["message"] = busy
            response.set_data(page.render(**shown(answer), milliseconds=milliseconds))
            response.content_type = f"{PAGE}; charset=utf-8"
        return response(environ, start_response)

    return call


def prefers_page(accept: str, other: str = "application/json") -> bool:
    """Whether a header Accept names pages, and likes them better: browsers' do, curl's does not."""
    if PAGE not in accept or len(accept) > MAX_ACCEPT:  # each item of it takes time to read
        return False  # to */* as well: programs send it
    return parse_accept_header(accept, MIMEAccept).best_match([other, PAGE]) == PAGE


def shown(answer: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of an answer of the API: a headline and the classes of each picture."""
    results = answer.get("results", [answer])
    pictures = [
        {
            "name": result.get("filename", ""),
            "headline": headline(result),
            "failed": not result["success"],
            "none": result.get("none_of_these", False),
            "unsure": result.get("uncertain", False),
            "classes": [
                (each["label"], each["probability"], percent(each["probability"]))
                for rank, each in enumerate(result.get("predictions", []))
                if rank == 0 or each["probability"] >= LEAST
            ],
        }
        for result in results
    ]
    return {"pictures": pictures, "model": answer.get("model")}


def busy_message(response: Response) -> str:
    """What a page, and page.js, say in place of the API's message, which names a header."""
    reason = {429: "Too many requests.", 503: "The server is busy."}.get(response.status_code)
    seconds = response.headers.get("Retry-After", type=int)
    if not (reason and seconds):
        return ""
    return f"{reason} Try again in {seconds} second{'s' * (seconds != 1)}."


def headline(result: dict[str, Any]) -> str:
    """The answer to a picture in a few words; page.js says the same."""
    if not result["success"]:
        return str(result["error"]["message"])
    if result["none_of_these"]:
        return "None of these"
    best = result["predictions"][0]
    if result["uncertain"]:
        likely = [each["label"] for each in result["predictions"][:2]]
        return f"Not sure: {' or '.join(likely)}"
    probably = "" if best["probability"] >= SURE else "Probably "
    return f"{probably}{best['label']}, {percent(best['probability'])}"

"""Who may send requests, how often, and what a browser is told about our pages."""

import hmac
import re
from collections.abc import Iterable
from functools import partial
from ipaddress import AddressValueError, IPv6Address, IPv6Network
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, Response, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from rest_api.errors import RequestError
from rest_api.schema import CARD, CLASSIFYING, PREDICT, V1, V1_VERSION, V2, V2_VERSION
from rest_api.settings import Settings, storage_options

SHARED = (PREDICT, "/models")  # the routes that pages of other origins may use
# Those that need a key where there are keys: what classifies, and what describes a model.
GUARDED = (
    *SHARED,
    *CLASSIFYING,
    CARD,
    *(V1, V1_VERSION, f"{V1}/metadata", f"{V1_VERSION}/metadata"),
    *(V2, V2_VERSION, f"{V2}/ready", f"{V2_VERSION}/ready"),
)
HEADERS = [
    # Nothing but our own files, no inline script; thumbnails are blob: URLs.
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(self), geolocation=(), microphone=()"),
]
ADDRESS_AND_PORT = re.compile(r"([\d.]+):\d+|\[(.+)\](?::\d+)?")
PREFLIGHT = [
    ("Access-Control-Allow-Methods", "GET, POST"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type, X-API-Key, X-Request-ID"),
    ("Access-Control-Max-Age", "3600"),  # seconds
]


def init_app(app: Flask, settings: Settings) -> None:
    """Ask for keys and limit the rate, where the settings say so."""
    if settings.rate_limit:
        app.after_request(only_refusals_say_when)  # after the limiter, which comes later
        limiter = Limiter(
            partial(client, settings.proxies),
            app=app,
            application_limits=[settings.rate_limit],  # one count for all routes
            storage_uri=settings.rate_storage,
            storage_options=storage_options(settings.rate_storage),
            in_memory_fallback_enabled=True,  # each process counts while the storage is away
            headers_enabled=True,
        )
        limiter.request_filter(lambda: not is_for(*CLASSIFYING))
    if settings.api_keys:  # after the limit, which counts those who try keys
        app.before_request(lambda: check_key(settings.api_keys))


def only_refusals_say_when(response: Response) -> Response:
    """Take away the Retry-After that the limiter gives every answer: clients would wait."""
    if response.status_code not in (429, 503):
        response.headers.pop("Retry-After", None)
    return response


def client(proxies: int) -> str:
    """Whose requests are counted together: an IPv4 address, or the 64 bits of a network in IPv6.

    Of X-Forwarded-For, only what so many `proxies` have added counts: they write it at its end. Not
    by Werkzeug's ProxyFix, for which a quote of the client's may hide what they wrote.
    """
    told = [each.strip() for each in request.headers.get("X-Forwarded-For", "").split(",")]
    behind = told[-proxies] if 0 < proxies <= len(told) else ""
    text = behind or get_remote_address()
    if with_port := ADDRESS_AND_PORT.fullmatch(text):  # as some proxies write it
        text = with_port[1] or with_port[2]
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return text
    return str(address.ipv4_mapped or IPv6Network((address.packed, 64), strict=False))


def is_for(*routes: str) -> bool:
    """Whether the request is for one of the routes, and more than a browser's preflight."""
    rule = request.url_rule
    return rule is not None and rule.rule in routes and request.method != "OPTIONS"


def check_key(keys: tuple[str, ...]) -> None:
    """Raise RequestError where a request needs one of the keys and has none."""
    if not is_for(*GUARDED):
        return
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # Either may be the key: a proxy that checks who asks sends a token of its own.
    given = [request.headers.get("X-API-Key", ""), token.strip() * (scheme.lower() == "bearer")]
    # Every key is compared, in constant time: how long it takes tells nothing about them.
    if not sum(hmac.compare_digest(g.encode(), key.encode()) for g in given for key in keys):
        message = "Send a valid key in the header X-API-Key, or as Authorization: Bearer KEY."
        raise RequestError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})


def with_headers(wsgi: WSGIApplication, origins: tuple[str, ...]) -> WSGIApplication:
    """Add the security headers to every answer, and CORS for the origins."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        added = HEADERS + cors_headers(environ, origins) if origins else HEADERS

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, *added], exc_info)

        return wsgi(environ, start)

    return call


def cors_headers(environ: WSGIEnvironment, origins: tuple[str, ...]) -> list[tuple[str, str]]:
    """What lets a page of one of the origins read the answer (https://fetch.spec.whatwg.org)."""
    if environ["PATH_INFO"] not in SHARED:
        return []
    headers = [("Vary", "Origin")]
    origin = environ.get("HTTP_ORIGIN", "")
    if origin in origins or (origin and "*" in origins):
        headers.append(("Access-Control-Allow-Origin", origin))
        headers.append(("Access-Control-Expose-Headers", "Retry-After, X-Request-ID"))
        headers += PREFLIGHT if environ["REQUEST_METHOD"] == "OPTIONS" else []
    return headers

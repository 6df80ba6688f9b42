"""Who may ask, how often, and what a browser is told about our pages."""

import hmac
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

from flask import Flask, request
from flask_cors import CORS
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from werkzeug.middleware.proxy_fix import ProxyFix

from rest_api.errors import RequestError
from rest_api.settings import Settings

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


def guard(app: Flask, settings: Settings) -> None:
    """Add the security headers; keys, rate limit, proxies and CORS where they are set."""
    if settings.api_keys:
        app.before_request(lambda: check_key(settings.api_keys))
    if settings.proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.proxies)
    if settings.rate_limit:
        limiter = Limiter(
            get_remote_address, app=app, storage_uri=settings.rate_storage, headers_enabled=True
        )
        limited = limiter.limit(settings.rate_limit)
        app.view_functions["api.predict"] = limited(app.view_functions["api.predict"])
    if settings.cors_origins:
        CORS(app, origins=list(settings.cors_origins), resources=["/predict", "/models"])

    app.wsgi_app = with_headers(app.wsgi_app)


def with_headers(wsgi: WSGIApplication) -> WSGIApplication:
    """Add the security headers to every answer."""

    def call(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        def start(reason: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(reason, [*headers, *HEADERS], exc_info)

        return wsgi(environ, start)

    return call


def check_key(keys: tuple[str, ...]) -> None:
    """Raise RequestError where a route that needs one of the keys is asked without."""
    if request.endpoint not in ("api.predict", "api.models") or request.method == "OPTIONS":
        return
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")
    # Every key is compared, in constant time: how long it takes tells nothing about them.
    if not sum(hmac.compare_digest(given.encode(), key.encode()) for key in keys):
        message = "Send a valid key in the header X-API-Key, or as Authorization: Bearer KEY."
        raise RequestError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

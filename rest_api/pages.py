"""The pages for people: the classifier at `/`, a model's card, the API documentation at `/docs`."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import flask
import flask_swagger_ui
from flask import Blueprint, Response, current_app, render_template, send_from_directory
from spectree import Response as Responses

from rest_api.api import find_model, this_app
from rest_api.errors import RequestError
from rest_api.forms import prefers_page
from rest_api.schema import CARD, Failure, spec

pages = Blueprint("pages", __name__)

NAMED = 15  # classes that are named of a model; as in page.js
SWAGGER = Path(flask_swagger_ui.__file__).parent / "dist"


@pages.get("/")
def index() -> str:
    app = this_app()
    # A form without JavaScript cannot send a key: it is offered no models then.
    models = [] if app.settings.api_keys else [model.bundle for model in app.models.values()]
    limits = {"max_body": app.settings.max_body, "max_files": app.settings.max_files}
    return render_template("index.html", models=models, listed=listed, **limits)


def listed(labels: Sequence[str]) -> str:
    """What a model knows, as page.js lists it."""
    more = len(labels) - NAMED
    return ", ".join(labels[:NAMED]) + (f" and {more} more" if more > 0 else "")


@pages.get(CARD)
@spec.validate(resp=Responses("HTTP_200", HTTP_401=Failure, HTTP_404=Failure), operation_id="card")
def card(name: str) -> Response:
    """The model's card: what it knows, how good it is, what it is not for.

    In Markdown, as the bundle has it; a browser gets a page.
    """
    text = find_model(name, this_app().models).bundle.card
    if not text:
        raise RequestError(404, "no_card", f"The model {name!r} has no card.")
    if prefers_page(flask.request.headers.get("Accept", ""), "text/markdown"):
        response = Response(render_template("card.html", name=name, content=as_html(text)))
    else:
        response = Response(text, content_type="text/markdown; charset=utf-8")
    response.vary.add("Accept")
    return response


@lru_cache(maxsize=16)
def as_html(text: str) -> str:
    """Markdown as HTML that is safe to show: no tags, scripts or styles of its own."""
    from markdown_it import MarkdownIt  # 20 ms that no other route needs

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type == "table_open":
            token.attrs["tabindex"] = 0  # scrolled sideways by keyboard, too
        if token.attrs.pop("style", "") == "text-align:right":  # which our own policy forbids
            token.attrs["class"] = "figure"
    return str(markdown.renderer.render(tokens, markdown.options, {}))


@pages.get("/docs")
def docs() -> Response:
    return current_app.send_static_file("docs.html")


@pages.get("/docs/<path:name>")
def swagger(name: str) -> Response:
    """Swagger UI's own files: the page works without the internet."""
    return send_from_directory(SWAGGER, name)

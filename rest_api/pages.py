"""The pages for people: the classifier at `/`, the API's documentation at `/docs`."""

from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Response, current_app, send_from_directory

pages = Blueprint("pages", __name__)

SWAGGER = Path(flask_swagger_ui.__file__).parent / "dist"


@pages.get("/")
def index() -> Response:
    return current_app.send_static_file("index.html")


@pages.get("/docs")
def docs() -> Response:
    return current_app.send_static_file("docs.html")


@pages.get("/docs/<path:name>")
def swagger(name: str) -> Response:
    """Swagger UI's own files: the page works without the internet."""
    return send_from_directory(SWAGGER, name)

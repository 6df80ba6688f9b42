"""The HTTP routes."""

from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from rest_api.errors import RequestError
from rest_api.images import decode, fit

api = Blueprint("api", __name__)


@api.post("/predict")
def predict() -> Response:
    """Classify the image in the multipart field `image`; `?top=N` cuts the list of classes."""
    bundle = current_app.extensions["bundle"]
    top = requested_top(len(bundle.labels))
    image = decode(uploaded_image(), bundle.input_size)
    pixels = fit(image, bundle.input_size, bundle.resize)[None]  # (1, side, side, 3)
    probabilities = current_app.extensions["predict"](pixels)[0]
    best = probabilities.argsort()[::-1][:top]
    predictions = [
        {"label": bundle.labels[i], "probability": round(float(probabilities[i]), 6)} for i in best
    ]
    return jsonify(success=True, predictions=predictions)


def uploaded_image() -> bytes:
    """The bytes of the one file in the field `image`. Raises RequestError."""
    if "image" in request.files:
        return request.files["image"].read()
    message = (
        "Send the image as a file in the multipart form field 'image': "
        "curl -X POST -F image=@photo.jpg …/predict"
    )
    raise RequestError(400, "no_image", message)


def requested_top(classes: int) -> int:
    """How many classes the query asks for; all by default. Raises RequestError."""
    value = request.args.get("top", str(classes))
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise RequestError(400, "invalid_top", f"top must be a whole number from 1, not {value!r}.")
    return min(int(value), classes)


@api.app_errorhandler(RequestError)
def refused(error: RequestError) -> tuple[dict[str, Any], int]:
    return failure(error.code, str(error)), error.status


@api.app_errorhandler(HTTPException)
def http_error(error: HTTPException) -> tuple[dict[str, Any], int]:
    """Flask's own refusals (404, 405, 413, …) in the same shape."""
    if error.code == 413:
        limit = current_app.config["MAX_CONTENT_LENGTH"] / 2**20
        message = f"The request is too large. Send one image of at most {limit:g} MiB."
        return failure("too_large", message), 413
    code = (error.name or "error").lower().replace(" ", "_")
    return failure(code, error.description or error.name), error.code


def failure(code: str, message: str) -> dict[str, Any]:
    return {"success": False, "error": {"code": code, "message": message}}

"""The HTTP routes: bytes → image → square of pixels → probabilities → JSON."""

import base64
import binascii
import inspect
from typing import Any

import msgspec
from flask import Blueprint, Flask, Request, Response, current_app, request
from multipart import MultipartError, MultipartSegment, PushMultipartParser
from spectree import Response as Responses
from werkzeug.exceptions import HTTPException

from rest_api import schema, telemetry
from rest_api.classifier import LoadedModel
from rest_api.errors import RequestError
from rest_api.schema import spec
from rest_api.settings import Settings

api = Blueprint("api", __name__)

MAX_PARTS = 2000  # of a form: twice the most images that --max-files can allow

WHAT_TO_SEND = (
    "Send an image as a file in the form field 'image' (curl -F image=@photo.jpg), as the body "
    'itself with a Content-Type of image/…, or as JSON {"image": "<base64>"}.'
)
FAILURES = {
    f"HTTP_{status}": schema.Failure
    for status in (400, 401, 404, 405, 408, 413, 415, 422, 429, 503)
}


@api.post("/predict")
@spec.validate(
    query=schema.PredictQuery,
    json=schema.Base64Image,
    resp=Responses(HTTP_200=schema.Answer, **FAILURES),
    skip_validation=True,
    operation_id="predict",
)
def predict() -> Response:
    """Classify one image, or several.

    One image is answered by its predictions, several files in the form field `image` by a result
    for each, in their order: an image that cannot be read spoils its own result alone.
    """
    asked = request._get_current_object()  # the proxy would look it up at each use
    served = requested_model(asked)
    top = requested_top(asked, len(served.bundle.labels))
    images = sent_images(asked)
    model = schema.Model(served.bundle.name, served.bundle.version)
    if len(images) == 1:
        predictions, uncertain = classify(asked, images[0][1], served, top)
        content = schema.Answer(
            success=True, predictions=predictions, uncertain=uncertain, model=model
        )
        return answer(content)
    results = [result(asked, name, data, served, top) for name, data in images]
    return answer(schema.Answer(success=True, results=results, model=model))


def result(
    asked: Request, filename: str, data: bytes, served: LoadedModel, top: int
) -> schema.Result:
    """Classify one image of several."""
    try:
        predictions, uncertain = classify(asked, data, served, top)
    except RequestError as error:
        telemetry.REJECTED.labels(error.code).inc()
        problem = schema.Problem(error.code, str(error))
        return schema.Result(filename, success=False, error=problem)
    return schema.Result(filename, success=True, predictions=predictions, uncertain=uncertain)


def classify(
    asked: Request, data: bytes, served: LoadedModel, top: int
) -> tuple[list[schema.Prediction], bool]:
    """The `top` most probable classes of an image file, and whether the first is uncertain.

    Raises RequestError.
    """
    prediction = served.classify(data, top)
    best, uncertain = prediction.classes, prediction.uncertain
    telemetry.classified(
        asked,
        served.bundle.name,
        best[0][0],
        uncertain,
        prediction.decode_seconds,
        prediction.inference_seconds,
    )
    predictions = [schema.Prediction(label, round(share, 6)) for label, share in best]
    return predictions, uncertain


def sent_images(asked: Request) -> list[tuple[str, bytes]]:
    """Name and bytes of each image of a request. Raises RequestError."""
    body, kind = sent_body(asked), asked.mimetype
    if kind.startswith("image/"):
        return [("", body)]
    if kind == "application/json":
        return [("", image_in_json(body))]
    boundary = asked.mimetype_params.get("boundary")
    images = images_in_form(body, boundary) if kind == "multipart/form-data" and boundary else []
    if not images:
        raise RequestError(400, "no_image", WHAT_TO_SEND)
    if len(images) > (limit := settings().max_files):
        message = f"{len(images)} images are too many for one request. Send at most {limit}."
        raise RequestError(413, "too_many_files", message)
    return images


def sent_body(asked: Request) -> bytes:
    """The body of a request. Raises RequestEntityTooLarge.

    Straight from the server: get_data() takes 3 ms for a large photo, which it reads in pieces.
    """
    size = asked.content_length
    if size is None or size > settings().max_body:  # sent in chunks, or for Flask to refuse
        return asked.get_data(cache=False)
    return asked.environ["wsgi.input"].read(size)


def images_in_form(body: bytes, boundary: str) -> list[tuple[str, bytes]]:
    """Name and bytes of each file in the form field `image`. Raises RequestError.

    Not by Flask's own parser, which takes six times as long for a small photo.
    """
    images = []
    try:
        with PushMultipartParser(boundary, len(body), max_segment_count=MAX_PARTS) as parser:
            for event in parser.parse(body):  # of each part: its head, its content, None
                if isinstance(event, MultipartSegment):
                    part, content = event, b""
                elif event is not None:
                    content += event
                elif part.name == "image" and part.filename is not None:
                    images.append((part.filename, content))
    except MultipartError as error:
        raise RequestError(400, "no_image", f"The form is damaged: {error}.") from error
    return images


def image_in_json(body: bytes) -> bytes:
    """The image of `{"image": "<base64>"}`; a data: URL serves too. Raises RequestError."""
    try:
        text = msgspec.json.decode(body, type=schema.Base64Image).image
        return base64.b64decode(
            text.rpartition(",")[2] if text[:5] == "data:" else text, validate=True
        )
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise RequestError(400, "invalid_json", f"{error}. {WHAT_TO_SEND}") from error


def requested_model(asked: Request) -> LoadedModel:
    """The model that the query names, or else the first. Raises RequestError."""
    models = current_app.extensions["models"]
    name = asked.args.get("model") or next(iter(models))
    if name not in models:
        known = ", ".join(models)
        raise RequestError(404, "unknown_model", f"There is no model {name!r}. There are: {known}.")
    return models[name]


def requested_top(asked: Request, classes: int) -> int:
    """How many classes the query asks for; all by default. Raises RequestError."""
    value = asked.args.get("top", str(classes))
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) >= 1):
        raise RequestError(400, "invalid_top", f"top must be a whole number from 1, not {value!r}.")
    return min(int(value), classes)


@api.get("/models")
@spec.validate(resp=Responses(HTTP_200=schema.Models), operation_id="models", skip_validation=True)
def models() -> Response:
    """The models that can be asked, the default first."""
    served = [
        schema.ServedModel(
            name=name,
            version=model.bundle.version,
            default=position == 0,
            labels=list(model.bundle.labels),
            input_size=model.bundle.input_size,
            score=model.bundle.score,
            threshold=model.bundle.threshold,
            accuracy=model.bundle.manifest.get("accuracy", {}),
        )
        for position, (name, model) in enumerate(current_app.extensions["models"].items())
    ]
    return answer(schema.Models(True, served))


@api.get("/health/live")
@spec.validate(resp=Responses(HTTP_200=schema.Health), operation_id="live", skip_validation=True)
def live() -> Response:
    """Whether the process answers at all."""
    return answer(schema.Health("live"))


@api.get("/health/ready")
@spec.validate(
    resp=Responses(HTTP_200=schema.Health, HTTP_503=schema.Failure),
    operation_id="ready",
    skip_validation=True,
)
def ready() -> Response:
    """Whether it should be sent requests: its models are loaded, and it is not about to stop."""
    if not current_app.extensions["models"]:
        raise RequestError(503, "not_ready", "The model is being loaded.")
    if current_app.extensions["draining"]():
        raise RequestError(503, "draining", "The server is about to stop.")
    return answer(schema.Health("ready"))


@api.get("/metrics")
def metrics() -> Response:
    return telemetry.metrics()


def describe(app: Flask) -> None:
    """Make the description of the API from the declarations above, then take them off the views.

    SpecTree wraps each view, which would cost every request a fortieth of its time.
    """
    with app.app_context():
        app.extensions["description"] = spec.spec
    for endpoint, view in app.view_functions.items():
        app.view_functions[endpoint] = inspect.unwrap(view)


@api.get("/openapi.json")
def openapi() -> Response:
    """The description of this API."""
    document = current_app.extensions["description"]
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    binary = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": binary, "minItems": 1, "maxItems": settings().max_files}
    body["multipart/form-data"] = {
        "schema": {"type": "object", "properties": {"image": files}, "required": ["image"]}
    }
    body["image/*"] = {"schema": binary}
    return answer(document)


def settings() -> Settings:
    return current_app.extensions["settings"]


def answer(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, content_type="application/json")


@api.app_errorhandler(RequestError)
def refused(error: RequestError) -> Response:
    return failure(error.status, error.code, str(error), error.headers)


@api.app_errorhandler(HTTPException)
def http_error(error: HTTPException) -> Response:
    """Flask's own refusals (404, 405, 413, …) in the same shape."""
    status = error.code or 500
    if status == 413:
        limit = settings().max_body / 2**20
        message = f"The request is too large. Send at most {limit:g} MiB."
        return failure(status, "too_large", message)
    code = (error.name or "error").lower().replace(" ", "_")
    return failure(status, code, error.description or error.name, dict(error.get_headers()))


def failure(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    telemetry.REJECTED.labels(code).inc()
    response = answer(schema.Failure(False, schema.Problem(code, message)), status)
    for name in ("Allow", "Retry-After", "WWW-Authenticate"):
        if name in (headers or {}):
            response.headers[name] = headers[name]
    return response

"""The HTTP routes: bytes → image → square of pixels → probabilities → JSON."""

import base64
import copy
import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import flask
import msgspec
from flask import Blueprint, Flask, Request, Response
from multipart import MultipartError, MultipartSegment, PushMultipartParser
from spectree import Response as Responses
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, TooManyRequests

from rest_api import __version__, schema, telemetry
from rest_api.bundle import BundleError
from rest_api.classifier import LoadedModel, Prediction, load_models
from rest_api.connection import too_large
from rest_api.errors import RequestError
from rest_api.forms import with_pages
from rest_api.sandbox import Budget
from rest_api.schema import PREDICT, spec
from rest_api.security import GUARDED, with_headers
from rest_api.settings import Settings

api = Blueprint("api", __name__)
log = logging.getLogger("rest_api")

PARAMETERS = tuple(field.name for field in msgspec.structs.fields(schema.PredictQuery))
MAX_PARTS = 2000  # of a form: twice the most images that --max-files can allow

WHAT_TO_SEND = (
    "Send an image as a file in the form field 'image' (curl -F image=@photo.jpg), as the body "
    'itself with a Content-Type of image/…, or as JSON {"image": "<base64>"}.'
)
FAILURES = {
    f"HTTP_{status}": schema.Failure
    for status in (400, 401, 404, 405, 408, 413, 415, 422, 429, 503)
}
TAG = "Image classifier"  # of the routes that are not another server's
KEY_SCHEMES = {  # either serves
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


class App(Flask):
    """The Flask application, and what its routes use."""

    def __init__(self, settings: Settings, draining: Callable[[], bool]):
        super().__init__("rest_api", static_url_path="/static")
        self.url_map.merge_slashes = False  # or it would redirect to whatever Host was sent
        self.settings = settings
        self.draining = draining  # whether the server is about to stop
        self.models: dict[str, LoadedModel] = {}  # by name, the default first
        self.reloading = threading.Lock()
        self.description = b""  # of the API, in JSON
        self.wsgi_app = self.wrap(self.wsgi_app)  # type: ignore[method-assign, assignment]

    def wrap(self, wsgi: WSGIApplication) -> WSGIApplication:
        """Around the application, and around what the gateway refuses in its place."""
        pages = with_pages(wsgi, lambda: self.jinja_env)
        return telemetry.with_telemetry(with_headers(pages, self.settings.cors_origins))

    def refuse(self, error: RequestError) -> WSGIApplication:
        """An application whose every answer is the error."""

        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            return refusal(error, environ["PATH_INFO"])(environ, start_response)

        return self.wrap(answer)

    def load(self) -> None:
        """Load the models in place of those that are there. Raises BundleError.

        Requests that have begun keep the model that they began with.
        """
        models = load_models(self.settings)
        telemetry.count_models(self.models, 0)
        telemetry.count_models(models, 1)
        self.models = models

    def reload(self) -> None:
        """Load what has changed on disk; where a bundle is bad, keep the old models."""
        try:
            with self.reloading:  # else one that has read older files could end last
                self.load()
        except BundleError as error:
            log.error("The old models stay: %s", error)
            return
        names = [f"{name} {model.bundle.version}" for name, model in self.models.items()]
        log.warning("Now serving %s", ", ".join(names))


def this_app() -> App:
    return cast(App, flask.current_app._get_current_object())  # type: ignore[attr-defined]


@api.post(PREDICT)
@spec.validate(
    query=schema.PredictQuery,
    json=schema.Base64Image,
    resp=Responses(HTTP_200=schema.Answer, **FAILURES),
    operation_id="predict",
)
def predict() -> Response:
    """Classify one image, or several.

    One image is answered by its predictions, several files in the form field `image` by a result
    for each, in their order: an unreadable image affects only its own result.
    """
    app = this_app()
    # The proxy would look the request up at each use.
    request: Request = flask.request._get_current_object()  # type: ignore[attr-defined]
    check_query(request)
    model = requested_model(request, app.models)
    top = requested_top(request, len(model.bundle.labels))
    explained = requested_explanation(request, model, app.models)
    images = sent_images(request, app.settings)
    about = schema.Model(model.bundle.name, model.bundle.version)
    if len(images) > 1:
        budget = Budget()
        results = [result(name, data, model, top, budget, explained) for name, data in images]
        return answer(schema.Answer(success=True, results=results, model=about))
    prediction = classify(images[0][1], model, top, explained=explained)
    return answer(schema.Answer(success=True, model=about, **described(prediction)))


def result(
    filename: str, data: bytes, model: LoadedModel, top: int, budget: Budget, explained: bool
) -> schema.Result:
    """Classify one image of several."""
    try:
        prediction = classify(data, model, top, budget, explained)
        return schema.Result(filename, success=True, **described(prediction))
    except RequestError as error:
        telemetry.rejected(error.code)
        problem = schema.Problem(error.code, str(error))
        return schema.Result(filename, success=False, error=problem)


def classify(
    data: bytes,
    model: LoadedModel,
    top: int | None = None,
    budget: Budget | None = None,
    explained: bool = False,
) -> Prediction:
    """Classify an image file, and count it. Raises RequestError."""
    prediction = model.classify(data, top, budget, explained)
    telemetry.classified(model.bundle, prediction)
    return prediction


def described(prediction: Prediction) -> dict[str, Any]:
    """What an answer says about an image: the best classes, the verdicts, the explanation."""
    best = [schema.Prediction(label, round(share, 6)) for label, share in prediction.classes]
    said: dict[str, Any] = {
        "predictions": best,
        "uncertain": prediction.uncertain,
        "none_of_these": prediction.none_of_these,
    }
    if prediction.explanation is not None:
        grid = [[round(part, 3) for part in row] for row in prediction.explanation.tolist()]
        said["explanation"] = schema.Explanation(best[0].label, grid)
    return said


def sent_images(request: Request, settings: Settings) -> list[tuple[str, bytes]]:
    """Name and bytes of each image of a request. Raises RequestError."""
    body, kind = sent_body(request, settings.max_body), request.mimetype
    if kind.startswith("image/"):
        return [("", body)]
    if kind == "application/json":
        return [("", image_in_json(body))]
    boundary = request.mimetype_params.get("boundary")
    images = images_in_form(body, boundary) if kind == "multipart/form-data" and boundary else []
    if not images:
        raise RequestError(400, "no_image", WHAT_TO_SEND)
    check_number(len(images), settings.max_files)
    return images


def check_number(images: int, limit: int) -> None:
    """Raise RequestError where a request has more than `limit` images."""
    if images > limit:
        message = f"{images} images are too many for one request. Send at most {limit}."
        raise RequestError(413, "too_many_files", message)


def sent_body(request: Request, limit: int) -> bytes:
    """The body of a request, of `limit` bytes at most. Raises RequestError.

    Straight from the server: get_data() takes 3 ms for a large photo, which it reads in pieces.
    """
    coding = request.headers.get("Content-Encoding") or "identity"
    if coding.lower() != "identity":
        message = f"The body has the Content-Encoding {coding[:40]!r}. Send it as it is, without."
        raise RequestError(415, "encoded_body", message, {"Accept-Encoding": "identity"})
    size = request.content_length
    if size is None:  # sent in chunks, and not to the gateway
        body = request.stream.read(limit + 1)
    else:
        body = request.environ["wsgi.input"].read(size) if size <= limit else b""
    if (size or len(body)) > limit:
        raise too_large(limit)
    return body


def images_in_form(body: bytes, boundary: str) -> list[tuple[str, bytes]]:
    """Name and bytes of each file in the form field `image`. Raises RequestError.

    Not by Flask's own parser, which takes six times as long for a small photo.
    """
    images = []
    try:
        # strict: a header in many lines would be read anew for each of them
        with PushMultipartParser(
            boundary, len(body), max_segment_count=MAX_PARTS, header_charset="latin-1", strict=True
        ) as parser:
            for event in parser.parse(body):  # of each part: its head, its content, None
                if isinstance(event, MultipartSegment):
                    part, content = event, b""
                elif event is not None:
                    content += event
                elif part.name == "image" and part.filename is not None:
                    images.append((as_utf8(part.filename), content))
                else:
                    raise field_not_read(as_utf8(part.name))
    except MultipartError as error:
        raise RequestError(400, "no_image", f"The form is damaged: {error}.") from error
    return images


def as_utf8(text: str) -> str:
    """A text that was read as Latin-1, with U+FFFD for what is not UTF-8."""
    return text.encode("latin-1").decode(errors="replace")


def field_not_read(name: str) -> RequestError:
    """What is wrong with a field of a form that is no file, or not named `image`."""
    if name == "image":
        message = f"The form field 'image' is a text, not a file. {WHAT_TO_SEND}"
        return RequestError(400, "no_image", message)
    in_query = f"Put it into the address, as {PREDICT}?{name}=VALUE."
    right = in_query if name in PARAMETERS else WHAT_TO_SEND
    message = f"The form has a field {name!r}, and only 'image' is read. {right}"
    return RequestError(400, "unknown_field", message)


def image_in_json(body: bytes) -> bytes:
    """The image of `{"image": "<base64>"}`; a data: URL serves too. Raises RequestError."""
    try:
        text = msgspec.json.decode(body, type=schema.Base64Image).image
        if "\n" in text:  # in lines, as many programs write base64
            for space in " \t\r\n":  # split() would hold an object for each of a million lines
                text = text.replace(space, "")
        return base64.b64decode(
            text.rpartition(",")[2] if text.startswith("data:") else text, validate=True
        )
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RequestError(400, "invalid_json", f"{error}. {WHAT_TO_SEND}") from error


def check_query(request: Request) -> None:
    """Raise RequestError where the query has a parameter that nothing reads."""
    if unknown := sorted(request.args.keys() - PARAMETERS):
        message = f"There is no parameter {unknown[0][:40]!r}. There are: {', '.join(PARAMETERS)}."
        raise RequestError(400, "unknown_parameter", message)


def requested_model(request: Request, models: Mapping[str, LoadedModel]) -> LoadedModel:
    """The model that the query names, or else the first. Raises RequestError."""
    return find_model(request.args.get("model") or next(iter(models)), models)


def find_model(name: str, models: Mapping[str, LoadedModel]) -> LoadedModel:
    """The model of a name. Raises RequestError."""
    if name not in models:
        known = ", ".join(models)
        raise RequestError(404, "unknown_model", f"There is no model {name!r}. There are: {known}.")
    return models[name]


def requested_top(request: Request, classes: int) -> int:
    """How many classes the query asks for; all by default. Raises RequestError."""
    value = request.args.get("top", str(classes))
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) >= 1):
        raise RequestError(400, "invalid_top", f"top must be a whole number from 1, not {value!r}.")
    return min(int(value), classes)


def requested_explanation(
    request: Request, model: LoadedModel, models: Mapping[str, LoadedModel]
) -> bool:
    """Whether the query asks where the best class was seen. Raises RequestError."""
    value = request.args.get("explain", "false")
    if value not in ("true", "false"):
        raise RequestError(400, "invalid_explain", f"explain must be true or false, not {value!r}.")
    if value == "true" and not model.bundle.explains:
        able = ", ".join(name for name in models if models[name].bundle.explains) or "none"
        message = f"{model.bundle.name!r} cannot explain its predictions. Models that can: {able}."
        raise RequestError(400, "cannot_explain", message)
    return value == "true"


@api.get("/models")
@spec.validate(
    resp=Responses(HTTP_200=schema.Models, HTTP_401=schema.Failure), operation_id="models"
)
def models() -> Response:
    """The models that can be chosen, the default first."""
    listed = [
        schema.ServedModel(
            name=name,
            version=model.bundle.version,
            default=position == 0,
            labels=list(model.bundle.labels),
            input_size=model.bundle.input_size,
            threshold=model.bundle.threshold,
            ood=schema.OodScore(ood.score, ood.threshold) if (ood := model.bundle.ood) else None,
            explains=model.bundle.explains,
            engine=this_app().settings.engine or model.bundle.engine,
            accuracy=model.bundle.manifest.get("accuracy", {}),
            card=bool(model.bundle.card),
        )
        for position, (name, model) in enumerate(this_app().models.items())
    ]
    return answer(schema.Models(True, listed))


@api.get("/health/live")
@spec.validate(resp=Responses(HTTP_200=schema.Health), operation_id="live")
def live() -> Response:
    """Whether the process answers at all."""
    return answer(schema.Health("live", __version__))


@api.get("/health/ready")
@spec.validate(
    resp=Responses(HTTP_200=schema.Health, HTTP_503=schema.Failure), operation_id="ready"
)
def ready() -> Response:
    """Whether it should be sent requests: it is not about to stop."""
    check_ready(this_app())
    return answer(schema.Health("ready", __version__))


def check_ready(app: App) -> None:
    """Raise RequestError where the server should be sent no requests."""
    if app.draining():
        raise RequestError(503, "draining", "The server is about to stop.")


@api.get("/metrics")
def metrics() -> Response:
    return telemetry.metrics()


@api.get("/openapi.json")
def openapi() -> Response:
    """The description of this API."""
    return Response(this_app().description, content_type="application/json")


def describe(app: App) -> None:
    """Write the description of the API from the declarations above, then take them off the views.

    SpecTree wraps each view, which would cost every request a fortieth of its time. No other
    wrapper may be put on a view: it would be taken off as well. What runs before a view is
    registered by app.before_request, as security.py does.
    """
    with app.app_context():
        document = copy.deepcopy(spec.spec)  # made once, for all applications
    add_media_types(document, app.settings.max_files)
    for operation in (each for methods in document["paths"].values() for each in methods.values()):
        operation["tags"] = operation["tags"] or [TAG]
    document["tags"].insert(0, {"name": TAG})
    if app.settings.api_keys:
        document["components"]["securitySchemes"] = KEY_SCHEMES
        for rule in GUARDED:
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)
            for operation in document["paths"][path].values():
                operation["security"] = [{name: []} for name in KEY_SCHEMES]
    app.description = msgspec.json.encode(document)
    for endpoint, view in app.view_functions.items():
        app.view_functions[endpoint] = inspect.unwrap(view)


def add_media_types(document: dict[str, Any], max_files: int) -> None:
    """Complete the description by what is sent and answered in other formats than JSON."""
    binary, text = {"type": "string", "format": "binary"}, {"type": "string"}
    files = {"type": "array", "items": binary, "minItems": 1, "maxItems": max_files}
    form = {"type": "object", "properties": {"image": files}, "required": ["image"]}
    predict = document["paths"][PREDICT]["post"]
    predict["requestBody"]["content"] = {  # the documentation's page opens on the first
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": binary},
        **predict["requestBody"]["content"],
    }
    predict["responses"]["200"]["content"]["text/html"] = {"schema": text}
    card = document["paths"]["/models/{name}/card"]["get"]["responses"]["200"]
    card["content"] = {"text/markdown": {"schema": text}, "text/html": {"schema": text}}
    for path in document["paths"]:
        if path.endswith("/infer"):
            operation = document["paths"][path]["post"]
            for message in (operation["requestBody"], operation["responses"]["200"]):
                message["content"]["application/octet-stream"] = {"schema": binary}


def answer(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, content_type="application/json")


def refusal(error: RequestError, path: str = "") -> Response:
    """The answer to what cannot be answered, here and in the gateway, as the path's clients expect.

    Those of protocols.py read `{"error": "text"}`.
    """
    telemetry.rejected(error.code)
    failure: schema.Failure | schema.ErrorText
    if f"{path}/".startswith(("/v1/", "/v2/")):
        failure = schema.ErrorText(str(error))
    else:
        failure = schema.Failure(False, schema.Problem(error.code, str(error)))
    response = answer(failure, error.status)
    response.headers.update(error.headers)
    return response


@api.app_errorhandler(RequestError)
def refused(error: RequestError) -> Response:
    return refusal(error, flask.request.path)


@api.app_errorhandler(HTTPException)
def http_error(error: HTTPException) -> Response:
    """Flask's own refusals (404, 405, 429, …) in the same shape."""
    code = error.name.lower().replace(" ", "_")
    message = error.description or error.name
    if isinstance(error, TooManyRequests):  # the description is the limit alone
        message = f"The limit is {message}. Try again later: Retry-After says in how many seconds."
    elif isinstance(error, NotFound):
        message = "There is no such route. GET /docs describes those that there are."
    elif isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted({*(error.valid_methods or ())} - {"HEAD", "OPTIONS"}))
        message = f"{flask.request.method} is not allowed here. Allowed: {allowed}."
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    return refused(RequestError(error.code or 500, code, message, headers))

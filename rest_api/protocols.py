"""Routes for the clients of other servers: the models of /predict, with its limits and refusals.

/v2 is the Open Inference Protocol (https://github.com/kserve/open-inference-protocol) with the
binary tensor data extension of Triton's clients; /v1 is TensorFlow Serving's REST API
(https://www.tensorflow.org/tfx/serving/api_rest), whose status KServe's V1 clients read, too.
"""

import base64
import io
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import flask
import msgspec
import numpy as np
from flask import Blueprint, Response
from flask.blueprints import BlueprintSetupState
from msgspec import Meta
from numpy.typing import ArrayLike
from PIL import Image
from spectree import Response as Responses
from werkzeug.routing import BaseConverter

from rest_api import __version__
from rest_api.api import (
    FAILURES,
    answer,
    check_number,
    check_ready,
    classify,
    find_model,
    sent_body,
    this_app,
)
from rest_api.bundle import Bundle
from rest_api.classifier import LoadedModel, Prediction
from rest_api.errors import RequestError
from rest_api.sandbox import Budget
from rest_api.schema import V1, V1_VERSION, V2, V2_VERSION, ErrorText, spec

protocols = Blueprint("protocols", __name__)
T = TypeVar("T")

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before those of the tensors
OPEN_INFERENCE, TENSORFLOW_SERVING = "Open Inference Protocol v2", "TensorFlow Serving"
OUTPUTS = {"probabilities": "FP32", "label": "BYTES", "uncertain": "BOOL", "none_of_these": "BOOL"}
# Few, for their product is computed: that of many takes minutes.
Shape = Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=1, max_length=8)]


class Part(BaseConverter):
    """A part of a path, without the verb of TensorFlow Serving that may follow it."""

    regex = "(?:(?!:predict$)[^/])+"
    part_isolating = True


@protocols.record_once
def tell_verbs_apart(state: BlueprintSetupState) -> None:
    state.app.url_map.converters["default"] = Part


class Parameters(msgspec.Struct, omit_defaults=True):
    """Those of the binary extension."""

    binary_data_size: int | None = None  # of a tensor whose bytes follow the JSON
    binary_data: bool | None = None  # whether an output is to be sent in that way
    binary_data_output: bool | None = None  # the same for all outputs


class Tensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: Shape
    parameters: Parameters | None = None
    data: list[Any] | None = None


class RequestedOutput(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct):
    """One input: `image` of BYTES, or `pixels` of UINT8."""

    inputs: Annotated[list[Tensor], Meta(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestedOutput], Meta(max_length=len(OUTPUTS))] | None = None
    parameters: Parameters | None = None
    id: str | None = None


class InferAnswer(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str | None = None


class Base64(msgspec.Struct):
    b64: Annotated[str, Meta(description="the bytes of an image file in base64")]


class PredictRequest(msgspec.Struct):
    """Image files, or squares of pixels from 0 to 255."""

    instances: Annotated[list[Base64 | list[list[list[int | float]]]], Meta(min_length=1)]


class PredictAnswer(msgspec.Struct):
    """The probabilities of each image in the order of the model's labels, and the verdicts."""

    predictions: list[list[float]]
    label: list[str]
    uncertain: list[bool]
    none_of_these: list[bool]


def documented(
    tag: str, request: type | None = None, answered: type | None = None
) -> Callable[..., Any]:
    refusals = dict.fromkeys(FAILURES, ErrorText)
    return spec.validate(json=request, resp=Responses(HTTP_200=answered, **refusals), tags=[tag])


@protocols.get("/v2")
@documented(OPEN_INFERENCE)
def server() -> Response:
    """The server, and which extensions of the protocol it has."""
    extensions = ["binary_tensor_data"]
    return answer({"name": "cifar10-cnn", "version": __version__, "extensions": extensions})


@protocols.get("/v2/health/live")
@documented(OPEN_INFERENCE)
def live() -> Response:
    """Whether the process answers at all."""
    return answer({"live": True})


@protocols.get("/v2/health/ready")
@documented(OPEN_INFERENCE)
def ready() -> Response:
    """Whether it should be sent requests."""
    check_ready(this_app())
    return answer({"ready": True})


@protocols.get(f"{V2}/ready")
@protocols.get(f"{V2_VERSION}/ready")
@documented(OPEN_INFERENCE)
def model_ready(name: str, version: str = "") -> Response:
    """Whether a model should be sent requests."""
    requested_model(name, version)
    check_ready(this_app())
    return answer({"name": name, "ready": True})


@protocols.get(V2)
@protocols.get(V2_VERSION)
@documented(OPEN_INFERENCE)
def tensors(name: str, version: str = "") -> Response:
    """The inputs, of which a request has one, and the outputs of a model."""
    bundle = requested_model(name, version).bundle
    inputs: list[dict[str, Any]] = [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, *square_shape(bundle)]},
    ]
    outputs: list[dict[str, Any]] = [
        {"name": output, "datatype": OUTPUTS[output], "shape": [-1]} for output in OUTPUTS
    ]
    outputs[0] |= {"shape": [-1, len(bundle.labels)], "parameters": {"labels": bundle.labels}}
    model: dict[str, Any] = {
        "name": name,
        "versions": [bundle.version],
        "platform": this_app().settings.engine or bundle.engine,
    }
    return answer(model | {"inputs": inputs, "outputs": outputs})


@protocols.post(f"{V2}/infer")
@protocols.post(f"{V2_VERSION}/infer")
@documented(OPEN_INFERENCE, InferRequest, InferAnswer)
def infer(name: str, version: str = "") -> Response:
    """Classify image files or squares of pixels; files are in base64 where they are in JSON."""
    model = requested_model(name, version)
    limits = this_app().settings
    body = sent_body(flask.request, limits.max_body)
    size = size_of_json(flask.request.headers.get(HEADER_LENGTH), body)
    request = read_json(body[:size], InferRequest, model.bundle, limits.max_files)
    images = images_in(request.inputs[0], body[size:], model.bundle, limits.max_files)
    wanted = request.outputs or [RequestedOutput(output) for output in OUTPUTS]
    if unknown := [each.name for each in wanted if each.name not in OUTPUTS]:
        message = f"There is no output {unknown[0][:40]!r}. There are: {', '.join(OUTPUTS)}."
        raise RequestError(400, "invalid_tensor", message)
    values = outputs_of(classify_all(images, model), model.bundle)
    sent = InferAnswer(name, model.bundle.version, [], request.id)
    binary = b""
    for each in wanted:
        tensor, content = as_tensor(each.name, values[each.name], is_binary(each, request))
        sent.outputs.append(tensor)
        binary += content
    response = answer(sent)
    if binary:
        response.headers[HEADER_LENGTH] = str(response.content_length)
        response.data += binary
        response.content_type = "application/octet-stream"
    return response


def size_of_json(header: str | None, body: bytes) -> int:
    """How many bytes of a body are JSON: all without the header. Raises RequestError."""
    if header is None:
        return len(body)
    if not re.fullmatch(r"[0-9]{1,18}", header) or int(header) > len(body):
        message = f"{HEADER_LENGTH} is {header[:40]!r}, but the body has {len(body):,} bytes."
        raise RequestError(400, "invalid_json", message)
    return int(header)


def images_in(tensor: Tensor, binary: bytes, bundle: Bundle, limit: int) -> list[bytes]:
    """The image files of an input, whose data is JSON or, where that is absent, `binary`.

    Raises RequestError.
    """
    problem: object = "This is no input of the model"
    try:
        if (tensor.name, tensor.datatype) == ("image", "BYTES"):
            check_number(number := math.prod(tensor.shape), limit)
            if tensor.data is None:
                return elements(binary, number)
            texts = reshape(np.array(tensor.data, object), [number])
            return [base64.b64decode(text, validate=True) for text in texts]
        if (tensor.name, tensor.datatype) == ("pixels", "UINT8"):
            check_number(tensor.shape[0], limit)
            # As objects: of strings, NumPy would give each the room of the longest.
            given = tensor.data
            sent = np.frombuffer(binary, np.uint8) if given is None else np.array(given, object)
            return [as_file(pixels, bundle) for pixels in reshape(sent, tensor.shape)]
    except (ValueError, TypeError) as error:
        problem = error
    message = (
        f"{problem}. Send image files as 'image' of BYTES, in JSON as base64, "
        f"or 'pixels' of UINT8, of the shape [N, {', '.join(map(str, square_shape(bundle)))}]."
    )
    raise RequestError(400, "invalid_tensor", message)


def reshape(values: np.ndarray, shape: list[int]) -> np.ndarray:
    """The values in a shape. Raises ValueError."""
    if values.size != math.prod(shape):
        raise ValueError(f"The data has {values.size} elements, the shape {math.prod(shape)}")
    return values.reshape(shape)


def elements(binary: bytes, number: int) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its length. Raises ValueError."""
    found, start = [], 0
    for _ in range(number):
        end = start + 4 + int.from_bytes(binary[start : start + 4], "little")
        found.append(binary[start + 4 : end])
        start = end
    if start != len(binary) or not binary:
        raise ValueError(f"{len(binary)} bytes are not those of {number} elements")
    return found


def is_binary(output: RequestedOutput, request: InferRequest) -> bool:
    own, common = output.parameters or Parameters(), request.parameters or Parameters()
    return bool(common.binary_data_output if own.binary_data is None else own.binary_data)


def as_tensor(name: str, values: np.ndarray, binary: bool) -> tuple[Tensor, bytes]:
    """An output, and what follows the JSON."""
    tensor = Tensor(name, OUTPUTS[name], list(values.shape))
    if not binary:
        tensor.data = values.ravel().tolist()
        return tensor, b""
    if tensor.datatype == "BYTES":
        texts = [text.encode() for text in values]
        content = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    else:
        content = values.tobytes()
    tensor.parameters = Parameters(binary_data_size=len(content))
    return tensor, content


@protocols.get(V1)
@protocols.get(V1_VERSION)
@documented(TENSORFLOW_SERVING)
def model_status(name: str, version: str = "") -> Response:
    """Whether a model should be sent requests."""
    served = requested_model(name, version).bundle.version
    check_ready(this_app())
    status = {"error_code": "OK", "error_message": ""}
    versions = [{"version": served, "state": "AVAILABLE", "status": status}]
    return answer({"model_version_status": versions, "name": name, "ready": True})


@protocols.get(f"{V1}/metadata")
@protocols.get(f"{V1_VERSION}/metadata")
@documented(TENSORFLOW_SERVING)
def signatures(name: str, version: str = "") -> Response:
    """The signatures of a model: of image files, and of squares of pixels."""
    bundle = requested_model(name, version).bundle

    def tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
        dims = [{"size": str(size), "name": ""} for size in (-1, *shape)]
        return {name: {"dtype": dtype, "tensor_shape": {"dim": dims}, "name": name}}

    outputs = tensor("predictions", "DT_FLOAT", len(bundle.labels))
    of = {"outputs": outputs, "method_name": "tensorflow/serving/predict"}
    files = {"inputs": tensor("image", "DT_STRING")} | of
    squares = {"inputs": tensor("pixels", "DT_UINT8", *square_shape(bundle))} | of
    return answer(
        {
            "model_spec": {"name": name, "signature_name": "", "version": bundle.version},
            "metadata": {
                "signature_def": {"signature_def": {"serving_default": files, "pixels": squares}}
            },
        }
    )


@protocols.post(f"{V1}:predict")
@protocols.post(f"{V1_VERSION}:predict")
@documented(TENSORFLOW_SERVING, PredictRequest, PredictAnswer)
def predict(name: str, version: str = "") -> Response:
    """Classify image files in base64, or squares of pixels."""
    model = requested_model(name, version)
    limits = this_app().settings
    body = sent_body(flask.request, limits.max_body)
    request = read_json(body, PredictRequest, model.bundle, limits.max_files)
    check_number(len(request.instances), limits.max_files)
    try:
        images = [
            base64.b64decode(instance.b64, validate=True)
            if isinstance(instance, Base64)
            else as_file(np.array(instance), model.bundle)
            for instance in request.instances
        ]
    except ValueError as error:
        raise RequestError(400, "invalid_tensor", f"{error}.") from error
    values = outputs_of(classify_all(images, model), model.bundle)
    return answer(PredictAnswer(*(value.tolist() for value in values.values())))


def requested_model(name: str, version: str) -> LoadedModel:
    """The model of a name, which has the version if one is given. Raises RequestError."""
    model = find_model(name, this_app().models)
    served = model.bundle.version
    if version not in ("", served):
        message = f"{name} is served in the version {served!r}, not {version!r}."
        raise RequestError(404, "unknown_version", message)
    return model


def read_json(content: bytes, kind: type[T], bundle: Bundle, limit: int) -> T:
    """Raises RequestError, also on more lists than `limit` images have: they take seconds."""
    rows, columns, _ = square_shape(bundle)
    if content.count(b"[") + content.count(b"{") > limit * (rows * columns + rows + 1) + 100:
        raise RequestError(400, "invalid_json", f"These are more lists than {limit} images need.")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RequestError(400, "invalid_json", f"{error}.") from error


def square_shape(bundle: Bundle) -> tuple[int, int, int]:
    return (bundle.input_size, bundle.input_size, 3)


def as_file(pixels: ArrayLike, bundle: Bundle) -> bytes:
    """A square as an image file that holds the same pixels. Raises ValueError."""
    pixels, shape = np.asarray(pixels), square_shape(bundle)  # of one dimension, each is a number
    if pixels.shape != shape or not set(pixels.ravel().tolist()) <= set(range(256)):
        raise ValueError(f"pixels are whole numbers from 0 to 255, of the shape {list(shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def classify_all(images: list[bytes], model: LoadedModel) -> list[Prediction]:
    """Classify images; one that cannot be read refuses them all. Raises RequestError."""
    predictions, budget = [], Budget()
    for number, image in enumerate(images, 1):
        try:
            predictions.append(classify(image, model, budget=budget))
        except RequestError as error:
            which = f"Image {number} of {len(images)}: " if len(images) > 1 else ""
            raise RequestError(error.status, error.code, f"{which}{error}") from error
    return predictions


def outputs_of(predictions: list[Prediction], bundle: Bundle) -> dict[str, np.ndarray]:
    """The values of OUTPUTS for N images: (N, classes) in the order of the labels, then (N,)."""
    shares = [dict(prediction.classes) for prediction in predictions]
    return {
        "probabilities": np.array(
            [[each[label] for label in bundle.labels] for each in shares], "<f4"
        ),
        "label": np.array([prediction.classes[0][0] for prediction in predictions], object),
        "uncertain": np.array([prediction.uncertain for prediction in predictions]),
        "none_of_these": np.array([prediction.none_of_these for prediction in predictions]),
    }

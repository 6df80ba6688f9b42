"""The routes for the clients of other servers: TensorFlow Serving's, KServe's and Triton's."""

import base64
import io
import json
import shutil
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from werkzeug.test import Client, EnvironBuilder, TestResponse, run_wsgi_app

from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.connection import BUSY, overloaded
from rest_api.schema import classifying_route
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import FROG, encode, picture, post, rename, server

# Requests as their clients wrote them, tritonclient 2.73.0 and kserve 0.21.0: a small frog.
WIRE = sorted((Path(__file__).parent / "wire").glob("*.http"))
PHOTO = FROG.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
BUNDLE = load_bundle(DEFAULT_MODEL)
SIDE = BUNDLE.input_size
NUMBERS = 3 * SIDE**2  # of a square
SQUARE = np.asarray(picture(5, (SIDE, SIDE)))
LENGTH = "Inference-Header-Content-Length"
INFER, PREDICT = "/v2/models/cifar10/infer", "/v1/models/cifar10:predict"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server("--workers", "1") as (_, port):
        yield port


def files(*data: str, **changes: object) -> dict:
    """A v2 request of image files in base64."""
    return {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]
    } | changes


def squares(data: object, shape: list[int], datatype: str = "UINT8") -> dict:
    tensor = {"name": "pixels", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [tensor]}


def binary(tensor: dict, content: bytes, **request: object) -> dict:
    """Body and headers of a v2 request in the binary extension."""
    tensor = tensor | {"parameters": {"binary_data_size": len(content)}}
    head = json.dumps({"inputs": [tensor]} | request).encode()
    return {"data": head + content, "headers": {LENGTH: str(len(head))}}


def outputs_in(content: bytes, headers: object) -> dict:
    """The values of each output of a v2 answer."""
    size = int(headers.get(LENGTH) or len(content))
    values, rest = {}, content[size:]
    for tensor in json.loads(content[:size])["outputs"]:
        if "data" in tensor:
            values[tensor["name"]] = np.array(tensor["data"]).reshape(tensor["shape"])
            continue
        taken = tensor["parameters"]["binary_data_size"]
        own, rest = rest[:taken], rest[taken:]
        if tensor["datatype"] == "BYTES":
            (length,) = struct.unpack_from("<I", own)
            assert len(own) == 4 + length, "of one image"
            values[tensor["name"]] = np.array([own[4:].decode()])
        else:
            dtype = {"FP32": "<f4", "BOOL": "?"}[tensor["datatype"]]
            values[tensor["name"]] = np.frombuffer(own, dtype).reshape(tensor["shape"])
    assert not rest
    return values


def probabilities(client: Client, data: bytes) -> list[float]:
    """What /predict says, in the order of the labels."""
    predictions = post(client, data).get_json()["predictions"]
    shares = {each["label"]: each["probability"] for each in predictions}
    return [shares[label] for label in BUNDLE.labels]


def refused(response: TestResponse, status: int) -> str:
    """The text of a refusal, in which nothing else is."""
    assert response.status_code == status, response.get_data()
    body = response.get_json()
    assert set(body) == {"error"}
    return body["error"]


@pytest.fixture(scope="module")
def port_of_32_pixels(tmp_path_factory) -> Iterator[int]:
    """A server whose model takes squares of 32 pixels, as those recorded are."""
    bundle = tmp_path_factory.mktemp("models") / "cifar10"
    shutil.copytree(DEFAULT_MODEL.with_name("cifar10-fast94"), bundle)
    rename(bundle, "cifar10")
    with server("--workers", "1", "--model", str(bundle)) as (_, port):
        yield port


@pytest.mark.parametrize("path", WIRE, ids=[path.stem for path in WIRE])
def test_recorded_request_of_a_client_is_answered(path, port_of_32_pixels):
    with socket.create_connection(("127.0.0.1", port_of_32_pixels), timeout=30) as connection:
        connection.sendall(path.read_bytes())
        response = HTTPResponse(connection)
        response.begin()
        content = response.read()
    assert response.status == 200, content
    if path.stem == "kserve-v1":
        assert json.loads(content)["label"] == ["frog"]
        return
    values = outputs_in(content, response.headers)
    assert list(values["label"]) == ["frog"]
    assert values["probabilities"].argmax() == BUNDLE.labels.index("frog")
    assert b'"id":"9"' in content


@pytest.mark.parametrize("length", ["-1", "many", "99999999", "9" * 5000, "1.5"])
def test_length_of_json_that_the_body_has_not_is_refused(length, client):
    request = files(BASE64)
    message = refused(client.post(INFER, json=request, headers={LENGTH: length}), 400)
    assert message.startswith(f"{LENGTH} is '{length[:40]}'")


@pytest.mark.parametrize("as_binary", [True, False])
def test_tritonclient_gets_what_predict_says(as_binary, port, client):
    # No requirement: it allows no ml_dtypes newer than 0.5.4, which TensorFlow uses.
    reason = "needs Triton's client: pip install 'tritonclient[http]'"
    triton = pytest.importorskip("tritonclient.http", reason=reason)
    data = np.array([PHOTO if as_binary else BASE64] * 2, object)
    images = triton.InferInput("image", [2], "BYTES")
    images.set_data_from_numpy(data, binary_data=as_binary)
    pixels = triton.InferInput("pixels", [1, SIDE, SIDE, 3], "UINT8")
    pixels.set_data_from_numpy(SQUARE[None], binary_data=as_binary)
    names = ["label", "probabilities", "none_of_these"]
    wanted = [triton.InferRequestedOutput(name, binary_data=as_binary) for name in names]
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as asked:
        assert asked.is_server_live()
        assert asked.is_server_ready()
        assert asked.is_model_ready("cifar10", BUNDLE.version)
        assert not asked.is_model_ready("cifar10", "another")
        assert asked.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        outputs = asked.get_model_metadata("cifar10")["outputs"]
        of_files = asked.infer("cifar10", [images], outputs=wanted, request_id="7")
        of_pixels = asked.infer("cifar10", [pixels])
        with pytest.raises(triton.InferenceServerException, match="There is no model 'dog'"):
            asked.infer("dog", [images])
    assert outputs[0]["parameters"]["labels"] == list(BUNDLE.labels)
    assert of_files.get_response()["id"] == "7"
    assert [b"frog" if as_binary else "frog"] * 2 == list(of_files.as_numpy("label"))
    assert list(of_files.as_numpy("none_of_these")) == [False, False]
    expected = probabilities(client, PHOTO)
    assert of_files.as_numpy("probabilities") == pytest.approx(np.array([expected] * 2), abs=1e-6)
    same = probabilities(client, encode(Image.fromarray(SQUARE)))
    assert of_pixels.as_numpy("probabilities") == pytest.approx(np.array([same]), abs=1e-6)


def test_program_of_tensorflow_servings_documentation_runs(port):
    """The tutorial's lines, with our squares as its test_images."""
    test_images = np.array([Image.open(io.BytesIO(PHOTO)).resize((SIDE, SIDE)), SQUARE])
    data = json.dumps({"signature_name": "serving_default", "instances": test_images.tolist()})
    headers = {"content-type": "application/json"}
    json_response = requests.post(
        f"http://localhost:{port}/v1/models/cifar10:predict", data=data, headers=headers
    )
    predictions = json.loads(json_response.text)["predictions"]
    assert BUNDLE.labels[np.argmax(predictions[0])] == "frog"


def test_client_of_tensorflow_servings_examples_and_its_curl_are_answered(port):
    """The lines of its resnet_client.py, and `curl -d`, which calls the JSON a form."""
    url = f"http://localhost:{port}/v1/models/cifar10:predict"
    predict_request = '{"instances" : [{"b64": "%s"}]}' % BASE64  # noqa: UP031
    response = requests.post(url, data=predict_request)
    response.raise_for_status()
    prediction = response.json()["predictions"][0]
    assert BUNDLE.labels[np.argmax(prediction)] == "frog"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(url, data=predict_request, headers=form).json() == response.json()


def test_every_way_to_send_an_image_gets_what_predict_says(client):
    length = struct.pack("<I", len(PHOTO))
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}
    expected = [pytest.approx(probabilities(client, PHOTO), abs=1e-6)]
    answers = [
        client.post(INFER, json=files(BASE64)),
        client.post(f"/v2/models/cifar10/versions/{BUNDLE.version}/infer", json=files(BASE64)),
        client.post(INFER, **binary(image, length + PHOTO)),
        client.post(
            INFER, **binary(image, length + PHOTO, parameters={"binary_data_output": True})
        ),
    ]
    for response in answers:
        values = outputs_in(response.get_data(), response.headers)
        assert values["probabilities"].tolist() == expected
        assert list(values["label"]) == ["frog"]
        assert values["uncertain"].tolist() == values["none_of_these"].tolist() == [False]
    for path in (PREDICT, f"/v1/models/cifar10/versions/{BUNDLE.version}:predict"):
        answer = client.post(path, json={"instances": [{"b64": BASE64}]}).get_json()
        assert answer["predictions"] == expected
        assert answer["label"] == ["frog"]
        assert answer["uncertain"] == answer["none_of_these"] == [False]


def test_squares_are_classified_pixel_by_pixel(client):
    expected = [pytest.approx(probabilities(client, encode(Image.fromarray(SQUARE))), abs=1e-6)]
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
    for response in (
        client.post(INFER, json=squares(SQUARE.ravel().tolist(), [1, SIDE, SIDE, 3])),
        client.post(INFER, json=squares([SQUARE.tolist()], [1, SIDE, SIDE, 3])),
        client.post(INFER, **binary(tensor, SQUARE.tobytes())),
    ):
        values = outputs_in(response.get_data(), response.headers)
        assert values["probabilities"].tolist() == expected
    for numbers in (SQUARE.tolist(), SQUARE.astype(float).tolist()):
        assert client.post(PREDICT, json={"instances": [numbers]}).get_json()["predictions"] == (
            expected
        )


def test_images_of_other_things_are_told(client):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    answer = client.post(PREDICT, json={"instances": [noise.tolist()]}).get_json()
    verdicts = post(client, encode(Image.fromarray(noise))).get_json()
    assert answer["none_of_these"] == [verdicts["none_of_these"]] == [True]
    assert answer["uncertain"] == [True]


def test_only_the_outputs_that_are_asked_for_are_sent(client):
    wanted = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "uncertain"},
    ]
    request = files(BASE64, outputs=wanted, parameters={"binary_data_output": True}, id="x")
    response = client.post(INFER, json=request)
    head = json.loads(response.get_data()[: int(response.headers[LENGTH])])
    assert head == {
        "model_name": "cifar10",
        "model_version": BUNDLE.version,
        "id": "x",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["frog"]},
            {
                "name": "uncertain",
                "datatype": "BOOL",
                "shape": [1],
                "parameters": {"binary_data_size": 1},
            },
        ],
    }
    assert response.get_data().endswith(b"}\0")


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (b"{", 400, "truncated"),
        (b"[" * 5000, 400, "Expected `object`"),
        (b'{"x":' + b"[" * 16_000, 400, "recursion"),
        (b'{"x":[' + b"[]," * 1_000_000, 400, "more lists than 16 images need"),
        ({"inputs": []}, 400, "length >= 1"),
        ({"inputs": files(BASE64)["inputs"] * 2}, 400, "length <= 1"),
        (files("no"), 400, "base64"),
        (files(BASE64, "äöü"), 400, "Send image files as 'image' of BYTES"),
        (files(), 400, "Expected `int` >= 1"),
        (files(*["AA=="] * 17), 413, "17 images are too many"),
        (files(base64.b64encode(b"text").decode()), 415, "not an image"),
        (files(BASE64, base64.b64encode(PHOTO[:5000]).decode()), 422, "Image 2 of 2: The JPEG"),
        (files(""), 400, "The file is empty"),
        (files(BASE64, outputs=[{"name": "dog"}]), 400, "no output 'dog'. There are: probab"),
        (squares([5], [1]), 400, f"shape [N, {SIDE}, {SIDE}, 3]"),
        (squares([[1, 2], [3]], [2]), 400, "whole numbers from 0 to 255"),
        (squares([0] * NUMBERS, [1, 3, SIDE, SIDE]), 400, f"shape [N, {SIDE}, {SIDE}, 3]"),
        (squares([0] * NUMBERS, [1, SIDE, SIDE, 3], "FP32"), 400, "Send image files"),
        (squares([0] * (NUMBERS - 1), [1, SIDE, SIDE, 3]), 400, "elements, the shape"),
        (
            squares([256] + [0] * (NUMBERS - 1), [1, SIDE, SIDE, 3]),
            400,
            "whole numbers from 0 to 255",
        ),
        (squares([0] * 17 * NUMBERS, [17, SIDE, SIDE, 3]), 413, "17 images are too many"),
        (squares(["0"] * NUMBERS, [1, SIDE, SIDE, 3]), 400, "whole numbers from 0 to 255"),
        (squares([0] * NUMBERS, [-1, SIDE, SIDE, 3]), 400, "Expected `int` >= 1"),
        (squares([0] * NUMBERS, [1, 10**18, SIDE, 3]), 400, "Send image files"),
        (squares([0] * NUMBERS, [2**60] * 9), 400, "length <= 8"),
        (squares([[]] * SIDE, [1, SIDE, SIDE, 3]), 400, "elements, the shape"),
        (files(BASE64, outputs=[{"name": "label"}] * 5), 400, "length <= 4"),
    ],
)
def test_bad_request_for_inference_is_refused_with_what_would_be_right(
    request_, status, text, client
):
    sent = {"data": request_} if isinstance(request_, bytes) else {"json": request_}
    assert text in refused(client.post(INFER, **sent), status)


@pytest.mark.parametrize(
    ("instances", "status", "text"),
    [
        ([], 400, "length >= 1"),
        ([BASE64], 400, "got `str`"),
        ([{"b64": "no"}], 400, "padding"),
        ([{"b64": BASE64}] * 17, 413, "17 images are too many"),
        ([(SQUARE / 255).tolist()], 400, "whole numbers from 0 to 255"),
        ([SQUARE[:-1].tolist()], 400, f"shape [{SIDE}, {SIDE}, 3]"),
        ([[[[1, 2], [3]]]], 400, "inhomogeneous"),
        ([{"b64": base64.b64encode(PHOTO[:5000]).decode()}], 422, "truncated"),
    ],
)
def test_bad_instances_are_refused_with_what_would_be_right(instances, status, text, client):
    assert text in refused(client.post(PREDICT, json={"instances": instances}), status)


def test_long_string_among_many_takes_no_more_memory_than_it_has(client):
    sent = squares(["x" * 20_000] + ["y"] * 20_000, [1, SIDE, SIDE, 3])
    tracemalloc.start()
    try:
        assert "elements, the shape" in refused(client.post(INFER, json=sent), 400)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20  # of 1.6 GB for an array of strings
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"\1", b"\2\0\0\0x", b"\0\0\0\0x", b"\xff" * 8])
def test_binary_elements_that_do_not_fit_are_refused(content, client):
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    assert "Send image files" in refused(client.post(INFER, **binary(tensor, content)), 400)


def test_binary_length_that_is_no_number_or_too_large_is_refused(client):
    image = {"name": "image", "datatype": "BYTES", "shape": [1]}
    sent = binary(image, struct.pack("<I", len(PHOTO)) + PHOTO)
    for length in ("many", "-5", "99999999", "3"):
        refused(client.post(INFER, data=sent["data"], headers={LENGTH: length}), 400)


@pytest.mark.parametrize("path", [INFER, PREDICT])
def test_limits_are_those_of_predict(path):
    limits = Settings(max_body=1000, max_pixels=100)
    client = create_app(limits).test_client()
    assert "Send at most" in refused(client.post(path, data=b"x" * 1001), 413)
    tiny = base64.b64encode(encode(picture(1, (11, 10)), "JPEG", quality=1)).decode()
    sent = files(tiny) if path == INFER else {"instances": [{"b64": tiny}]}
    assert "megapixels" in refused(client.post(path, json=sent), 413)


def test_unknown_models_versions_and_routes_are_refused(client):
    for path in ("/v2/models/dog", "/v2/models/dog/ready", "/v1/models/dog"):
        assert "There is no model 'dog'" in refused(client.get(path), 404)
    for path in ("/v2/models/cifar10/versions/7", "/v1/models/cifar10/versions/7/metadata"):
        assert f"in the version '{BUNDLE.version}', not '7'" in refused(client.get(path), 404)
    refused(client.post("/v1/models/cifar10/versions/7:predict", json={}), 404)
    refused(client.get("/v2/repository/index"), 404)
    refused(client.post("/v2"), 405)
    for path in (INFER, PREDICT):
        response = client.get(path)
        refused(response, 405)
        assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_models_are_described(client):
    status = client.get("/v1/models/cifar10").get_json()
    assert status["ready"] is True
    (version,) = status["model_version_status"]
    assert (version["version"], version["state"]) == (BUNDLE.version, "AVAILABLE")
    metadata = client.get("/v1/models/cifar10/metadata").get_json()
    assert metadata["model_spec"]["version"] == BUNDLE.version
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    pixels = signatures["pixels"]["inputs"]["pixels"]
    assert [dim["size"] for dim in pixels["tensor_shape"]["dim"]] == [
        "-1",
        str(SIDE),
        str(SIDE),
        "3",
    ]
    model = client.get(f"/v2/models/cifar10/versions/{BUNDLE.version}").get_json()
    assert model["versions"] == [BUNDLE.version]
    shapes = {tensor["name"]: tensor["shape"] for tensor in model["inputs"] + model["outputs"]}
    assert shapes["pixels"] == [-1, SIDE, SIDE, 3]
    assert shapes["probabilities"] == [-1, 10]


def test_keys_are_asked_for_as_predict_asks():
    client = create_app(Settings(api_keys=("secret",))).test_client()
    sent = {"instances": [{"b64": BASE64}]}
    for path, request_ in ((INFER, files(BASE64)), (PREDICT, sent)):
        assert "X-API-Key" in refused(client.post(path, json=request_), 401)
        given = {"X-API-Key": "secret"}
        assert client.post(path, json=request_, headers=given).status_code == 200
    for path in ("/v2/models/x", "/v2/models/x/ready", "/v1/models/x", "/v1/models/x/metadata"):
        assert "cifar10" not in refused(client.get(path), 401)
    for path in ("/v2", "/v2/health/ready"):
        assert client.get(path).status_code == 200


def test_rate_limit_counts_all_routes_that_classify_together():
    client = create_app(Settings(rate_limit="1/minute")).test_client()
    assert client.post(INFER, json=files(BASE64)).status_code == 200
    for path, sent in ((INFER, files(BASE64)), (PREDICT, {"instances": [{"b64": BASE64}]})):
        response = client.post(path, json=sent)
        assert "1 per 1 minute" in refused(response, 429)
        assert response.headers["Retry-After"]
    assert client.get("/v1/models/cifar10").status_code == 200


def test_images_and_refusals_are_counted(client):
    def counted(series: str) -> float:
        lines = client.get("/metrics").get_data(as_text=True).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(series))

    frogs = 'classifier_predictions_total{label="frog",model="cifar10"}'
    damaged = 'classifier_rejected_total{code="corrupt_image"}'
    route = 'classifier_requests_total{route="/v2/models/<name>/infer",status="200"}'
    before = counted(frogs), counted(damaged), counted(route)
    client.post(INFER, json=files(BASE64, BASE64))
    client.post(PREDICT, json={"instances": [{"b64": BASE64[:5000]}]})
    assert (counted(frogs), counted(damaged), counted(route)) == (
        before[0] + 2,
        before[1] + 1,
        before[2] + 1,
    )


def test_server_that_is_about_to_stop_is_not_ready():
    client = create_app(draining=lambda: True).test_client()
    for path in ("/v2/health/ready", "/v2/models/cifar10/ready", "/v1/models/cifar10"):
        assert "about to stop" in refused(client.get(path), 503)
    assert client.get("/v2/health/live").get_json() == {"live": True}


def test_gateway_knows_the_routes_that_classify():
    rules = {rule.rule for rule in create_app().url_map.iter_rules() if "POST" in rule.methods}
    for rule in rules:
        path = rule.replace("<name>", "my model").replace("<version>", "1.2")
        assert classifying_route(path) == rule
    assert len(rules) == 5
    for path in ("/v2/models/cifar10/ready", "/v2/health/ready", "/v1/models/cifar10", "/", ""):
        assert classifying_route(path) is None


def test_refusal_of_the_gateway_has_the_form_that_the_clients_of_its_path_read():
    refuse = create_app().refuse(overloaded())

    def body(path: str) -> dict:
        parts, status, headers = run_wsgi_app(refuse, EnvironBuilder(path).get_environ())
        assert status.startswith("503")
        assert headers["Retry-After"] == "1"
        return json.loads(b"".join(parts))

    assert body(INFER) == body(PREDICT) == {"error": BUSY}
    assert body("/predict")["error"]["code"] == "overloaded"

import base64
import gzip
import io
import json
import shutil
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from limits.storage import MemoryStorage
from PIL import Image

from rest_api import __version__, security
from rest_api.api import App, api, describe, image_in_json
from rest_api.app import create_app
from rest_api.bundle import OodScore
from rest_api.classifier import LoadedModel
from rest_api.engine import Outputs
from rest_api.protocols import protocols
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import FROG, encode, post, rename


def test_frog_is_a_frog(client):
    response = post(client, FROG.read_bytes())
    assert response.status_code == 200
    answer = response.get_json()
    assert answer["success"] is True
    assert answer["predictions"][0]["label"] == "frog"
    assert answer["predictions"][0]["probability"] > 0.9


def test_predictions_are_all_classes_sorted_and_sum_to_one(client):
    predictions = post(client, FROG.read_bytes()).get_json()["predictions"]
    probabilities = [prediction["probability"] for prediction in predictions]
    assert [set(prediction) for prediction in predictions] == [{"label", "probability"}] * 10
    assert len({prediction["label"] for prediction in predictions}) == 10
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("top", "count"), [("1", 1), ("3", 3), ("10", 10), ("99", 10)])
def test_top_cuts_the_list(client, top, count):
    predictions = post(client, FROG.read_bytes(), f"?top={top}").get_json()["predictions"]
    assert len(predictions) == count
    assert predictions[0]["label"] == "frog"


@pytest.mark.parametrize("top", ["0", "-1", "many", "", "1.5", "²"])
def test_senseless_top_is_refused(client, top):
    response = post(client, FROG.read_bytes(), f"?top={top}")
    assert response.status_code == 400
    assert response.get_json()["error"]["code"] == "invalid_top"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_any_colour_mode_is_answered(client, mode):
    image = Image.new(mode, (50, 70))
    # Pillow 12 cannot read the YCbCr TIFF that it writes.
    fmt = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    assert post(client, encode(image, fmt)).status_code == 200


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (32, 32), (3000, 2000)])
def test_any_size_is_answered(client, size):
    assert post(client, encode(Image.new("RGB", size), "JPEG")).status_code == 200


def refused(response, status: int, code: str) -> str:
    """The message of a refusal, once status, code and shape are right."""
    assert response.status_code == status
    answer = response.get_json()
    assert set(answer) == {"success", "error"}
    assert answer["success"] is False
    assert set(answer["error"]) == {"code", "message"}
    assert answer["error"]["code"] == code
    assert "Traceback" not in answer["error"]["message"]
    return answer["error"]["message"]


def test_missing_field_is_refused_saying_what_to_send(client):
    assert "'image'" in refused(client.post("/predict"), 400, "no_image")
    other = client.post("/predict", data={"photo": (io.BytesIO(FROG.read_bytes()), "frog.jpg")})
    assert "'photo', and only 'image'" in refused(other, 400, "unknown_field")


def test_field_that_is_no_file_is_refused(client):
    sent = {"data": {"image": "https://example.org/frog.jpg"}}
    response = client.post("/predict", **sent, content_type="multipart/form-data")
    assert "is a text, not a file" in refused(response, 400, "no_image")


def test_what_nothing_would_read_is_refused_saying_where_it_belongs(client):
    frog = FROG.read_bytes()
    for query in ("?modle=scenes", "?top=1&Top=1"):
        message = refused(post(client, frog, query), 400, "unknown_parameter")
        assert message.endswith("There are: top, model, explain.")
    form = {"image": (io.BytesIO(frog), "frog.jpg"), "model": "scenes"}
    message = refused(client.post("/predict", data=form), 400, "unknown_field")
    assert message.endswith("Put it into the address, as /predict?model=VALUE.")
    sent = {"image": base64.b64encode(frog).decode(), "top": 1}
    assert "unknown field `top`" in refused(client.post("/predict", json=sent), 400, "invalid_json")


def form(content: bytes, end: bytes = b"\r\n--x--\r\n") -> dict:
    """A form with one file, as curl sends it."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return {"data": head + content + end, "content_type": "multipart/form-data; boundary=x"}


def test_empty_file_is_refused(client):
    refused(client.post("/predict", **form(b"")), 400, "empty_file")


@pytest.mark.parametrize("end", [b"", b"\r\n--x\r\nrubbish"])
def test_damaged_form_is_refused_saying_so(client, end):
    response = client.post("/predict", **form(FROG.read_bytes(), end))
    assert "form is damaged" in refused(response, 400, "no_image")


def test_form_without_a_boundary_is_refused(client):
    response = client.post("/predict", data=b"anything", content_type="multipart/form-data")
    refused(response, 400, "no_image")


def test_file_that_is_no_image_is_refused(client):
    assert "PNG" in refused(post(client, b"hello"), 415, "unsupported_format")


def test_truncated_image_is_refused(client):
    data = FROG.read_bytes()
    assert "truncated" in refused(post(client, data[: len(data) // 2]), 422, "corrupt_image")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of what it skips
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_files_never_cause_a_server_error(client, fmt):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    options = {} if fmt in ("GIF", "BMP") else {"exif": exif}
    whole = encode(Image.open(FROG).resize((64, 64)), fmt, **options)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        # Headers and tables lie at the start, or at the end: damage those most often.
        for position in rng.geometric(0.01, size=rng.integers(1, 6)) * rng.choice((-1, 1)):
            damaged[position % len(whole)] = rng.integers(256)
        response = post(client, bytes(damaged))
        assert response.status_code in (200, 413, 415, 422), bytes(damaged)


def test_too_large_a_body_is_refused_naming_the_limit(client):
    message = refused(post(client, b"\xff" * (10 * 2**20 + 1)), 413, "too_large")
    assert "10 MiB" in message


def test_unknown_route_and_wrong_method_answer_in_json(client):
    assert "/docs" in refused(client.get("/nowhere"), 404, "not_found")
    message = refused(client.get("/predict"), 405, "method_not_allowed")
    assert message == "GET is not allowed here. Allowed: POST."


def test_own_failure_answers_in_json_without_a_trace(monkeypatch):
    app = create_app()

    def broken(images):
        raise RuntimeError("secret path /home/me")

    app.models["cifar10"] = replace(app.models["cifar10"], predict=broken)
    response = post(app.test_client(), FROG.read_bytes())
    message = refused(response, 500, "internal_server_error")
    assert "secret" not in message


def test_applications_do_not_share_state():
    first, second = create_app(), create_app()
    assert first.models["cifar10"] is not second.models["cifar10"]


def files(*contents: bytes) -> dict:
    """A form with several files in the field `image`."""
    return {"image": [(io.BytesIO(data), f"{i}.jpg") for i, data in enumerate(contents)]}


def test_answer_names_the_model_and_whether_it_is_uncertain(client):
    answer = post(client, FROG.read_bytes()).get_json()
    assert set(answer) == {"success", "predictions", "uncertain", "none_of_these", "model"}
    assert answer["model"]["name"] == "cifar10"
    assert answer["model"]["version"]
    assert answer["uncertain"] is False


def test_several_files_are_answered_in_their_order_and_a_bad_one_spoils_itself_alone(client):
    frog = FROG.read_bytes()
    response = client.post("/predict?top=1", data=files(frog, b"hello", frog[:3000], frog))
    assert response.status_code == 200
    answer = response.get_json()
    assert answer["success"] is True
    assert [result["filename"] for result in answer["results"]] == [f"{i}.jpg" for i in range(4)]
    assert [result["success"] for result in answer["results"]] == [True, False, False, True]
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes == [None, "unsupported_format", "corrupt_image", None]
    for i in (0, 3):
        assert answer["results"][i]["predictions"][0]["label"] == "frog"
    assert "predictions" not in answer["results"][1]


def test_more_files_than_allowed_are_refused_naming_the_limit(client):
    response = client.post("/predict", data=files(*[FROG.read_bytes()] * 17))
    assert "16" in refused(response, 413, "too_many_files")


def test_as_many_files_as_the_settings_allow_are_answered():
    pixel = encode(Image.new("RGB", (1, 1)))
    client = create_app(Settings(max_files=1000)).test_client()
    answer = client.post("/predict?top=1", data=files(*[pixel] * 1000)).get_json()
    assert len(answer["results"]) == 1000


def test_body_is_read_in_one_piece(client):
    reads = []

    class Body(io.BytesIO):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    frog = FROG.read_bytes() + bytes(2**20)  # what follows the image in its file is ignored
    response = client.post(
        "/predict", input_stream=Body(frog), content_type="image/jpeg", content_length=len(frog)
    )
    assert response.status_code == 200
    assert reads == [len(frog)]


def test_body_of_a_server_that_takes_chunks_is_read_to_its_end(client):
    chunked = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    frog = FROG.read_bytes()
    response = client.post(
        "/predict", data=frog, content_type="image/jpeg", environ_overrides=chunked
    )
    assert response.get_json()["predictions"][0]["label"] == "frog"


def test_raw_body_and_base64_are_answered_as_the_form_is(client):
    frog = FROG.read_bytes()
    expected = post(client, frog).get_json()
    assert client.post("/predict", data=frog, content_type="image/jpeg").get_json() == expected
    text = base64.b64encode(frog).decode()
    assert client.post("/predict", json={"image": text}).get_json() == expected
    lines = base64.encodebytes(frog).decode()
    assert client.post("/predict", json={"image": lines}).get_json() == expected
    url = f"data:image/jpeg;base64,{text}"
    assert client.post("/predict", json={"image": url}).get_json() == expected


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b" \t\n"])
def test_base64_in_short_lines_takes_little_memory(ends):
    line = b"AAAA" + json.dumps(ends.decode()).encode()[1:-1]
    body = b'{"image":"%s"}' % (line * 100_000)
    tracemalloc.start()
    try:
        assert len(image_in_json(body)) == 300_000
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"image": 3}', b'{"image": "***"}'])
def test_malformed_json_is_refused_saying_what_to_send(client, body):
    response = client.post("/predict", data=body, content_type="application/json")
    assert "base64" in refused(response, 400, "invalid_json")


def test_wrong_extension_and_content_type_do_not_matter(client):
    response = client.post("/predict", data=FROG.read_bytes(), content_type="image/png")
    assert response.get_json()["predictions"][0]["label"] == "frog"


@pytest.fixture
def two_bundles(tmp_path) -> Path:
    """A folder with the shipped bundle under two names."""
    for name in ("first", "second"):
        shutil.copytree(DEFAULT_MODEL, tmp_path / name)
        rename(tmp_path / name, name)
    return tmp_path


def test_models_are_listed_and_chosen_by_name_the_first_by_default(two_bundles):
    client = create_app(Settings(models=(two_bundles / "second", two_bundles / "first")))
    client = client.test_client()
    listed = client.get("/models").get_json()["models"]
    assert [(model["name"], model["default"]) for model in listed] == [
        ("second", True),
        ("first", False),
    ]
    assert listed[0]["labels"][6] == "frog"
    frog = FROG.read_bytes()
    assert post(client, frog).get_json()["model"]["name"] == "second"
    assert post(client, frog, "?model=first").get_json()["model"]["name"] == "first"
    message = refused(post(client, frog, "?model=third"), 404, "unknown_model")
    assert "first" in message
    assert "second" in message


@pytest.mark.parametrize(("wanted", "serves"), [(None, "litert"), ("keras", "keras")])
def test_models_name_the_engine_that_serves(wanted, serves):
    client = create_app(Settings(models=(DEFAULT_MODEL,), engine=wanted)).test_client()
    listed = client.get("/models").get_json()["models"][0]
    assert listed["engine"] == serves
    assert listed["accuracy"][serves] > 0.9


def test_name_of_a_file_that_is_not_utf8_is_no_reason_to_refuse_it(client):
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="%s.jpg"\r\n\r\n'
    names = "é".encode("latin-1"), "é".encode()
    body = b"".join(head % name + FROG.read_bytes() + b"\r\n" for name in names) + b"--x--\r\n"
    answer = client.post("/predict", data=body, content_type="multipart/form-data; boundary=x")
    assert [each["filename"] for each in answer.get_json()["results"]] == ["\ufffd.jpg", "é.jpg"]


def test_encoded_body_is_refused_by_the_name_of_its_encoding(client):
    headers = {"Content-Encoding": "gzip"}
    answer = client.post("/predict", data=gzip.compress(FROG.read_bytes()), headers=headers)
    assert "'gzip'" in refused(answer, 415, "encoded_body")
    assert answer.headers["Accept-Encoding"] == "identity"


def test_folder_of_bundles_stands_for_all_in_it(two_bundles):
    app = create_app(Settings(models=(two_bundles,)))
    assert list(app.models) == ["first", "second"]


def test_reload_takes_up_a_replaced_bundle_and_refuses_a_bad_one(two_bundles):
    app = create_app(Settings(models=(two_bundles / "first",)))
    client = app.test_client()
    rename(two_bundles / "first", "first", version="new")
    assert client.get("/models").get_json()["models"][0]["version"] != "new"
    app.reload()
    assert client.get("/models").get_json()["models"][0]["version"] == "new"
    (two_bundles / "first" / "model.int8.tflite").write_bytes(b"broken")
    app.reload()
    answer = post(client, FROG.read_bytes()).get_json()
    assert answer["predictions"][0]["label"] == "frog"
    assert answer["model"]["version"] == "new"


def test_answer_below_the_threshold_is_uncertain(two_bundles):
    rename(two_bundles / "first", "first", uncertainty={"threshold": 0.9999})
    client = create_app(Settings(models=(two_bundles / "first",))).test_client()
    answer = post(client, FROG.read_bytes()).get_json()
    assert answer["predictions"][0]["probability"] < 0.9999
    assert answer["uncertain"] is True
    assert answer["none_of_these"] is False


def test_health_tells_live_from_ready():
    stopping = threading.Event()
    app = create_app(draining=stopping.is_set)
    client = app.test_client()
    assert client.get("/health/live").get_json() == {"status": "live", "version": __version__}
    assert client.get("/health/ready").get_json() == {"status": "ready", "version": __version__}
    stopping.set()
    refused(client.get("/health/ready"), 503, "draining")
    assert client.get("/health/live").status_code == 200
    assert post(client, FROG.read_bytes()).status_code == 200  # it still answers
    stopping.clear()


def metric(client, line: str) -> float:
    text = client.get("/metrics").get_data(as_text=True)
    values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line + " ")]
    return float(values[0]) if values else 0.0


def test_metrics_count_requests_stages_refusals_and_predictions(client):
    lines = {
        'classifier_requests_total{route="/predict",status="200"}': 1,
        'classifier_requests_total{route="/predict",status="415"}': 1,
        'classifier_rejected_total{code="unsupported_format"}': 1,
        'classifier_seconds_count{stage="decode"}': 1,
        'classifier_seconds_count{stage="infer"}': 1,
        'classifier_predictions_total{label="frog",model="cifar10"}': 1,
        'classifier_verdicts_total{model="cifar10",verdict="answered"}': 1,
    }
    before = {line: metric(client, line) for line in lines}
    post(client, FROG.read_bytes())
    post(client, b"hello")
    assert {line: metric(client, line) - before[line] for line in lines} == lines
    assert metric(client, "classifier_in_flight") == 1  # the one that asks
    version = create_app().models["cifar10"].bundle.version
    assert metric(client, f'classifier_model{{name="cifar10",version="{version}"}}') == 1


@pytest.mark.parametrize(
    ("score", "threshold", "verdict"),
    [(-5.5, 0, "none_of_these"), (-4.5, 0.2, "unsure"), (-4.5, 0.1, "answered")],
)
def test_verdict_is_told_and_counted_beside_the_score(score, threshold, verdict):
    app = create_app()
    client, name = app.test_client(), f"of-{verdict}"
    bundle = replace(app.models["cifar10"].bundle, name=name, threshold=threshold)

    def predict(views: np.ndarray) -> Outputs:
        return Outputs(np.full((len(views), 10), 0.1), np.full(len(views), score))

    model = LoadedModel(replace(bundle, ood=OodScore("log odds", -5)), predict)
    app.models = {name: model}
    listed = client.get("/models").get_json()["models"][0]
    assert listed["ood"] == {"score": "log odds", "threshold": -5}
    assert listed["threshold"] == threshold
    answer = post(client, FROG.read_bytes()).get_json()
    assert answer["none_of_these"] is (verdict == "none_of_these")
    assert answer["uncertain"] is (verdict != "answered")
    several = client.post("/predict", data=files(*[FROG.read_bytes()] * 2)).get_json()["results"]
    assert [each["none_of_these"] for each in several] == [answer["none_of_these"]] * 2
    assert metric(client, f'classifier_verdicts_total{{model="{name}",verdict="{verdict}"}}') == 3
    for bound, count in ((-6, 0), (-5, 3 * (score < -5)), (-4, 3)):
        line = f'classifier_ood_score_bucket{{le="{bound:.1f}",model="{name}"}}'
        assert metric(client, line) == count


def test_keys_open_predict_and_nothing_opens_without_one():
    client = create_app(Settings(api_keys=("secret", "other"))).test_client()
    frog = FROG.read_bytes()
    response = client.post("/predict", data=frog, content_type="image/jpeg")
    assert "X-API-Key" in refused(response, 401, "unauthorized")
    for headers, status in (
        ({"X-API-Key": "secret"}, 200),
        ({"Authorization": "Bearer other"}, 200),
        ({"X-API-Key": "secret", "Authorization": "Bearer of-the-proxy"}, 200),
        ({"X-API-Key": "", "Authorization": "Bearer "}, 401),
        ({"X-API-Key": "wrong"}, 401),
        ({"X-API-Key": "gëheim"}, 401),
        ({"Authorization": "Basic c2VjcmV0"}, 401),
    ):
        answer = client.post("/predict", data=frog, content_type="image/jpeg", headers=headers)
        assert answer.status_code == status, headers
    assert client.get("/health/ready").status_code == 200
    with client.get("/") as page:
        assert page.status_code == 200


def test_rate_limit_is_refused_with_the_seconds_to_wait():
    client = create_app(Settings(rate_limit="2/minute")).test_client()
    statuses = [post(client, FROG.read_bytes()).status_code for _ in range(2)]
    assert statuses == [200, 200]
    response = post(client, FROG.read_bytes())
    message = refused(response, 429, "too_many_requests")
    assert message.startswith("The limit is 2 per 1 minute. Try again later")
    assert 0 < int(response.headers["Retry-After"]) <= 60
    assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("described_first", [True, False])
def test_rate_limit_holds_in_whichever_order_the_application_is_put_together(described_first):
    settings = Settings(rate_limit="1/minute")
    app = App(settings, draining=lambda: False)
    app.register_blueprint(api)
    app.register_blueprint(protocols)
    steps = [lambda: describe(app), lambda: security.init_app(app, settings)]
    for step in steps if described_first else reversed(steps):
        step()
    app.load()
    statuses = [post(app.test_client(), FROG.read_bytes()).status_code for _ in range(2)]
    assert statuses == [200, 429]


def test_rate_limit_holds_while_its_storage_is_away():
    class Away(MemoryStorage):
        STORAGE_SCHEME: ClassVar = ["away"]

        def incr(self, *_: object, **__: object) -> int:
            raise ConnectionError

        def check(self) -> bool:
            return False

    settings = Settings(rate_limit="2/minute", rate_storage="away://")
    client = create_app(settings).test_client()
    statuses = [post(client, FROG.read_bytes()).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


def test_rate_limit_counts_neither_preflights_nor_other_routes():
    client = create_app(Settings(rate_limit="1/minute")).test_client()
    for _ in range(3):
        assert client.options("/predict").status_code == 200
        assert client.get("/models").status_code == 200
    assert post(client, FROG.read_bytes()).status_code == 200


def test_rate_limit_counts_those_behind_a_trusted_proxy_apart():
    frog = FROG.read_bytes()

    def statuses(proxies: int) -> list[int]:
        client = create_app(Settings(rate_limit="1/minute", proxies=proxies)).test_client()
        return [
            client.post(
                "/predict",
                data=frog,
                content_type="image/jpeg",
                headers={"X-Forwarded-For": address},
            ).status_code
            for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
        ]

    assert statuses(1) == [200, 200, 429]
    assert statuses(0) == [200, 429, 429]  # without one, anybody could write that header


@pytest.mark.parametrize("sent", ['"x', "x\\", ",", "203.0.113.9"])
def test_what_a_client_writes_before_its_proxy_does_not_change_its_rate(sent):
    client = create_app(Settings(rate_limit="1/minute", proxies=1)).test_client()
    statuses = [
        client.post("/predict", data=b"", headers={"X-Forwarded-For": forwarded}).status_code
        for forwarded in ("203.0.113.5", f"{sent}, 203.0.113.5")
    ]
    assert statuses == [400, 429]


def test_double_slash_in_a_path_is_no_route_and_no_redirection(client):
    response = client.get("/models//cifar10/card", headers={"Host": "evil.example"})
    assert response.status_code == 404
    assert response.get_json()["error"]["code"] == "not_found"
    assert "Location" not in response.headers


def test_form_whose_headers_are_continued_on_other_lines_is_refused(client):
    body = (
        b"--b\r\nContent-Disposition: form-data;\r\n"
        b' name="image"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    )
    response = client.post("/predict", data=body, content_type="multipart/form-data; boundary=b")
    assert response.status_code == 400
    assert response.get_json()["error"]["message"].startswith("The form is damaged: ")


def test_rate_limit_counts_an_address_whatever_port_a_proxy_writes_behind_it():
    client = create_app(Settings(rate_limit="2/minute", proxies=1)).test_client()
    statuses = [
        client.post("/predict", data=b"", headers={"X-Forwarded-For": address}).status_code
        for address in (
            *("192.0.2.1:1", "192.0.2.1:2", "192.0.2.1"),
            *("[2001:db8::1]:1", "[2001:db8::1]", "2001:db8::1"),
        )
    ]
    assert statuses == [400, 400, 429, 400, 400, 429]


def test_rate_limit_counts_the_addresses_of_a_clients_ipv6_network_together():
    client = create_app(Settings(rate_limit="2/minute", proxies=1)).test_client()
    statuses = [
        client.post("/predict", data=b"", headers={"X-Forwarded-For": address}).status_code
        for address in (
            *("2001:db8::1", "2001:db8::ffff:0:2", "2001:db8::3", "2001:db8:0:1::1"),
            *("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"),
        )
    ]
    assert statuses == [400, 400, 429, 400, 400, 400, 429, 400]


def test_rate_limit_counts_those_who_try_keys():
    client = create_app(Settings(rate_limit="2/minute", api_keys=("secret",))).test_client()
    tried = [client.post("/predict", headers={"X-API-Key": key}) for key in ("a", "b", "secret")]
    assert [response.status_code for response in tried] == [401, 401, 429]


def test_cors_is_off_unless_an_origin_is_named(client):
    origin = {"Origin": "https://shop.example"}
    assert "Access-Control-Allow-Origin" not in client.get("/models", headers=origin).headers
    named = create_app(Settings(cors_origins=("https://shop.example",))).test_client()
    allowed = named.get("/models", headers=origin).headers["Access-Control-Allow-Origin"]
    assert allowed == "https://shop.example"
    other = named.get("/models", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    assert other.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Origin" not in named.get("/health/live", headers=origin).headers


def test_preflight_of_a_named_origin_needs_no_key_and_allows_to_send_one():
    settings = Settings(cors_origins=("https://shop.example",), api_keys=("secret",))
    client = create_app(settings).test_client()
    response = client.options("/predict", headers={"Origin": "https://shop.example"})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "X-API-Key" in response.headers["Access-Control-Allow-Headers"]
    assert "POST" in response.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("path", ["/", "/docs", "/models", "/nowhere"])
def test_every_answer_carries_the_security_headers(client, path):
    with client.get(path) as response:
        headers = response.headers
    assert "'unsafe-inline'" not in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_log_is_one_json_line_a_request_without_content(client, caplog):
    caplog.set_level("INFO", "rest_api.requests")
    response = client.post(
        "/predict", data=files(FROG.read_bytes()), headers={"X-Request-ID": "abc-1"}
    )
    assert response.headers["X-Request-ID"] == "abc-1"
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert line["id"] == "abc-1"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/predict", 200)
    assert line["bytes"] > 10_000
    assert line["ms"] >= line["decode_ms"] > 0
    assert "jpg" not in caplog.text


def test_request_id_that_could_forge_a_log_line_is_replaced(client):
    given = 'x", "status": 200'
    assert client.get("/models", headers={"X-Request-ID": given}).headers["X-Request-ID"] != given


def test_uploads_stay_in_memory(client, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))  # no file can be made there
    large = encode(Image.effect_noise((1500, 1500), 80))
    assert len(large) > 1_000_000
    assert client.post("/predict", **form(large)).status_code == 200

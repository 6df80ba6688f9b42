import io

import numpy as np
import pytest
from PIL import Image

from rest_api.app import create_app
from tests.conftest import FROG, encode, post


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
    fmt = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
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
    assert "'image'" in refused(other, 400, "no_image")


def test_field_that_is_no_file_is_refused(client):
    refused(client.post("/predict", data={"image": "frog.jpg"}), 400, "no_image")


def test_empty_file_is_refused(client):
    refused(post(client, b""), 400, "empty_file")


def test_file_that_is_no_image_is_refused(client):
    assert "PNG" in refused(post(client, b"hello"), 415, "unsupported_format")


def test_truncated_image_is_refused(client):
    data = FROG.read_bytes()
    assert "truncated" in refused(post(client, data[: len(data) // 2]), 422, "corrupt_image")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of what it skips
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
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


def test_malformed_multipart_is_refused(client):
    response = client.post(
        "/predict", data=b"--x\r\nrubbish", content_type="multipart/form-data; boundary=x"
    )
    refused(response, 400, "no_image")


def test_unknown_route_and_wrong_method_answer_in_json(client):
    refused(client.get("/nowhere"), 404, "not_found")
    refused(client.get("/predict"), 405, "method_not_allowed")


def test_own_failure_answers_in_json_without_a_trace(monkeypatch):
    app = create_app()

    def broken(images):
        raise RuntimeError("secret path /home/me")

    monkeypatch.setitem(app.extensions, "predict", broken)
    response = post(app.test_client(), FROG.read_bytes())
    message = refused(response, 500, "internal_server_error")
    assert "secret" not in message


def test_applications_do_not_share_state():
    first, second = create_app(), create_app()
    assert first.extensions["predict"] is not second.extensions["predict"]

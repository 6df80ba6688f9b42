"""Whatever is sent, the answer is a result or a refusal: never a failure of the server."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.robustness.fuzz import fuzz
from rest_api.app import create_app
from tests.support import encode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of what it skips
APP = create_app()
PNG = encode(Image.new("RGB", (8, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_files_find_nothing_above_4xx(seed):
    statuses, _, _ = fuzz(APP.test_client(), 1000, seed)  # raises at what is slow or above 4xx
    assert statuses[200] > 50
    assert statuses[422] > 50


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    body=st.binary(max_size=2000),
    kind=st.sampled_from(
        ["image/png", "application/json", "multipart/form-data; boundary=x", "text/plain", ""]
    ),
)
def test_any_bytes_of_any_kind_are_answered(body, kind):
    response = APP.test_client().post("/predict", data=body, content_type=kind)
    assert response.status_code in (200, 400, 413, 415, 422)
    assert response.get_json()["success"] is (response.status_code == 200)


@settings(max_examples=100, deadline=None)
@given(query=st.dictionaries(st.sampled_from(["top", "model", "other"]), st.text(max_size=20)))
def test_any_query_is_answered(query):
    response = APP.test_client().post(
        "/predict", query_string=query, data=PNG, content_type="image/png"
    )
    assert response.status_code in (200, 400, 404)


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
)
def test_any_size_and_mode_is_answered(width, height, mode):
    data = encode(Image.new(mode, (width, height)))
    response = APP.test_client().post("/predict", data=data, content_type="image/png")
    assert response.status_code == 200

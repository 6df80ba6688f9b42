"""From the bytes of a photo to a prediction."""

import numpy as np
import pytest

from rest_api.bundle import load_bundle
from rest_api.classifier import LoadedModel, load_model
from rest_api.engine import Outputs
from rest_api.errors import RequestError
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, encode, picture


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(DEFAULT_MODEL)


def test_classes_come_with_the_most_probable_first(model):
    prediction = model.classify(FROG.read_bytes())
    labels, shares = zip(*prediction.classes, strict=True)
    assert set(labels) == set(model.bundle.labels)
    assert labels[0] == "frog"
    assert list(shares) == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert model.classify(FROG.read_bytes(), top=2).classes == prediction.classes[:2]
    assert prediction.decode_seconds > 0
    assert prediction.inference_seconds > 0


@pytest.mark.parametrize(("score", "uncertain"), [(-1e-6, True), (1e-6, False)])
def test_score_below_the_threshold_is_uncertain(score, uncertain):
    bundle = load_bundle(DEFAULT_MODEL)
    given = []

    def predict(images: np.ndarray) -> Outputs:
        given.append(images)
        return Outputs(np.full((1, 10), 0.1), np.array([bundle.threshold + score]))

    prediction = LoadedModel(bundle, predict).classify(encode(picture(0)))
    assert prediction.score == pytest.approx(bundle.threshold + score)
    assert prediction.uncertain is uncertain
    assert given[0].shape == (1, 32, 32, 3)
    assert given[0].dtype == np.uint8


def test_photo_over_the_limit_of_pixels_is_refused():
    model = load_model(DEFAULT_MODEL, max_pixels=1000)
    with pytest.raises(RequestError, match=r"0\.001 megapixels"):
        model.classify(encode(picture(0)))

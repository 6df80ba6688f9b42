"""From the bytes of a photo to a prediction."""

from dataclasses import replace

import numpy as np
import pytest

from rest_api.bundle import Bundle, OodScore, View, load_bundle
from rest_api.classifier import LoadedModel, load_model, percent
from rest_api.engine import Outputs, Predict
from rest_api.errors import RequestError
from rest_api.images import decode, to_views
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


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0004, "under 0.1%"), (0.0006, "0.1%"), (0.9994, "99.9%"), (0.9996, "over 99.9%")],
)
def test_no_probability_is_printed_as_0_or_100_percent(probability, text):
    assert percent(probability) == text


TWO_VIEWS = View("stretch"), View("center_crop", mirror=True)


def bundle_of(threshold: float = 0.0, ood: OodScore | None = None, views=TWO_VIEWS) -> Bundle:
    return replace(load_bundle(DEFAULT_MODEL), threshold=threshold, ood=ood, views=views)


def of_dog(probability: float) -> np.ndarray:
    """The probabilities of a dog or else a cat."""
    return np.eye(10)[5] * probability + np.eye(10)[3] * (1 - probability)


def in_turn(*outputs: Outputs, shown: list | None = None) -> Predict:
    """A network that returns these for one image after another, whatever they are."""
    left = iter(outputs)

    def predict(images: np.ndarray) -> Outputs:
        if shown is not None:
            shown.append(images)
        return next(left)

    return predict


def output(dog: float, score: float) -> Outputs:
    return Outputs(of_dog(dog)[np.newaxis], np.array([score]))


def test_prediction_is_that_of_the_mean_logits_and_score_over_views():
    shown: list[np.ndarray] = []
    predict = in_turn(output(0.2, -3.0), output(0.9, 4.0), shown=shown)
    photo = picture(0)
    prediction = LoadedModel(bundle_of(), predict).classify(encode(photo), top=2)
    views = to_views(photo, bundle_of().input_size, TWO_VIEWS)
    for pixels, expected in zip(shown, views, strict=True):
        np.testing.assert_array_equal(pixels[0], expected)
    assert prediction.classes == [("dog", pytest.approx(0.6)), ("cat", pytest.approx(0.4))]
    assert prediction.score == 0.5


@pytest.mark.parametrize(
    ("ood_threshold", "threshold", "verdict"),
    [
        (0.49, 0.59, (False, False)),
        (0.49, 0.61, (False, True)),
        (0.51, 0.59, (True, True)),
        (None, 0.59, (False, False)),
        (None, 0.61, (False, True)),
    ],
)
def test_verdicts_compare_means_over_views_with_the_two_thresholds(
    ood_threshold, threshold, verdict
):
    predict = in_turn(output(0.2, -3.0), output(0.9, 4.0))

    ood = None if ood_threshold is None else OodScore("log odds", ood_threshold)
    prediction = LoadedModel(bundle_of(threshold, ood), predict).classify(encode(picture(0)))
    assert (prediction.none_of_these, prediction.uncertain) == verdict


@pytest.mark.parametrize(("dog", "calls"), [(0.97, 1), (0.93, 2)])
def test_photo_that_is_sure_in_its_first_view_is_shown_in_no_other(dog, calls):
    shown: list[np.ndarray] = []
    predict = in_turn(output(dog, 2.0), output(0.2, 0.0), shown=shown)
    model = LoadedModel(replace(bundle_of(), early_exit=0.95), predict)
    prediction = model.classify(encode(picture(0)), top=1)
    assert len(shown) == calls
    assert prediction.score == {1: 2.0, 2: 1.0}[calls]


def test_explanation_and_embedding_are_of_all_views_and_change_no_answer(model):
    data = FROG.read_bytes()
    quick = model.classify(data)
    whole = model.classify(data, explained=True, embedded=True)
    views = to_views(decode(data, 44), model.bundle.input_size, model.bundle.views)
    features = [model.predict(pixels[np.newaxis]).features[0] for pixels in views]
    assert quick.classes[0][1] > model.bundle.early_exit
    assert whole.classes == quick.classes
    np.testing.assert_allclose(whole.embedding, np.mean(features, 0), atol=1e-4)


@pytest.mark.parametrize("size", [(96, 72), (72, 96), (64, 64)])
def test_prediction_is_the_geometric_mean_of_those_of_each_view_alone(model, size):
    photo = picture(1, size)
    data = encode(photo)
    ours = dict(replace(model, bundle=bundle_of()).classify(data).classes)
    alone = [
        dict(replace(model, bundle=bundle_of(views=(view,))).classify(data).classes)
        for view in TWO_VIEWS
    ]
    means = {label: (alone[0][label] * alone[1][label]) ** 0.5 for label in ours}
    for label, share in ours.items():
        assert share == pytest.approx(means[label] / sum(means.values()), abs=1e-4)


def test_photo_over_the_limit_of_pixels_is_refused():
    model = load_model(DEFAULT_MODEL, max_pixels=1000)
    with pytest.raises(RequestError, match=r"0\.001 megapixels"):
        model.classify(encode(picture(0)))

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rest_api.bundle import BundleError, View, load_bundle
from rest_api.engine import Outputs, load_engine, mean_over_views, name_outputs
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, rename
from training import metrics
from training.evaluate import views_of

CLASSIC = DEFAULT_MODEL.with_name("cifar10-classic")  # without an OOD score


def random_images(bundle):
    side = load_bundle(bundle).input_size
    return np.random.default_rng(0).integers(0, 256, (40, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def images():
    return random_images(CLASSIC)


def test_rows_are_probabilities(images):
    probabilities, scores, *_ = load_engine(load_bundle(CLASSIC))(images)
    assert probabilities.shape == (40, 10)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(scores, probabilities.max(1))
    outputs = load_engine(load_bundle(DEFAULT_MODEL))(random_images(DEFAULT_MODEL))
    probabilities, scores, *_ = outputs
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert scores.shape == (40,)
    assert scores.min() < -1  # log odds


@pytest.mark.slow
def test_keras_and_litert_agree():
    bundle = load_bundle(DEFAULT_MODEL)
    with Image.open(FROG) as frog:
        parts = [frog.crop((i, i, i + 200, i + 150)) for i in range(40)]
    shown = views_of(parts, bundle.input_size, bundle.views)
    litert, keras = (
        mean_over_views([predict(view) for view in shown]).probabilities
        for predict in (load_engine(bundle, "litert"), load_engine(bundle, "keras"))
    )
    assert abs(litert - keras).mean() < 0.01
    assert (litert.argmax(1) == keras.argmax(1)).mean() >= 0.9


def test_answers_do_not_depend_on_the_batch():
    predict, images = load_engine(load_bundle(DEFAULT_MODEL)), random_images(DEFAULT_MODEL)
    one_by_one = np.concatenate([predict(image[None]).probabilities for image in images])
    np.testing.assert_allclose(predict(images).probabilities, one_by_one, atol=1e-4)


def test_many_threads_get_the_answers_of_one(images):
    predict = load_engine(load_bundle(DEFAULT_MODEL), threads=4)
    expected = [predict(image[None]).probabilities for image in images]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: predict(images[i % 40][None]), range(400)))
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.probabilities, expected[i % 40])


def test_score_that_the_network_does_not_return_is_refused(tmp_path):
    shutil.copytree(CLASSIC, tmp_path / "bundle")
    rename(tmp_path / "bundle", "bundle", ood={"score": "energy", "threshold": -3})
    with pytest.raises(BundleError, match="score 'energy', which the network does not return"):
        load_engine(load_bundle(tmp_path / "bundle"))


def test_features_that_the_network_does_not_return_are_refused(tmp_path):
    shutil.copytree(DEFAULT_MODEL, tmp_path / "bundle")
    bundle = load_bundle(DEFAULT_MODEL)
    size = bundle.embedding_size
    assert load_engine(bundle)(random_images(DEFAULT_MODEL)).features.shape == (40, size)
    rename(tmp_path / "bundle", "bundle", embedding_size=size + 1)
    with pytest.raises(BundleError, match=f"{size + 1} features, which the network does not"):
        load_engine(load_bundle(tmp_path / "bundle"))


def test_network_without_probabilities_is_refused():
    with pytest.raises(BundleError, match="class probabilities, which the network does not return"):
        name_outputs([np.zeros((1, 1, 10))], load_bundle(CLASSIC))


def test_means_are_over_the_views_of_each_image():
    logits = np.random.default_rng(0).normal(0, 3, (2, 5, 4))  # of 2 views of 5 images
    straight, mirrored = map(Outputs, metrics.softmax(logits), np.array([[1] * 5, [3] * 5]))
    mean = mean_over_views([straight, mirrored])
    np.testing.assert_allclose(mean.probabilities, metrics.softmax(logits.mean(0)))
    np.testing.assert_allclose(mean.scores, [2] * 5)


def test_mean_over_views_is_of_probabilities_also_where_one_view_excludes_a_class():
    sure = Outputs(np.array([[1, 0]], np.float32), np.array([0]))
    unsure = Outputs(np.array([[0.5, 0.5]], np.float32), np.array([0]))
    np.testing.assert_allclose(mean_over_views([sure, unsure]).probabilities, [[1, 0]], atol=1e-9)
    opposite = Outputs(np.array([[0, 1]], np.float32), np.array([0]))
    np.testing.assert_allclose(mean_over_views([sure, opposite]).probabilities, [[0.5, 0.5]])


def test_image_that_is_sure_in_its_first_view_has_what_that_view_says():
    first = Outputs(np.array([[0.96, 0.04], [0.94, 0.06]]), np.array([1.0, 1.0]))
    second = Outputs(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([3.0, 3.0]))
    outputs = mean_over_views([first, second], early_exit=0.95)
    np.testing.assert_allclose(outputs.probabilities[0], [0.96, 0.04])
    np.testing.assert_allclose(outputs.probabilities[1], [0.798, 0.202], atol=1e-3)
    np.testing.assert_allclose(outputs.scores, [1, 2])


def test_one_interpreter_is_made_for_each_thread_and_size_of_view(monkeypatch):
    from ai_edge_litert import interpreter

    made = []

    class Counted(interpreter.Interpreter):
        def __init__(self, *args, **kwargs):
            made.append(kwargs["num_threads"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(interpreter, "Interpreter", Counted)
    views = View("stretch"), View("center_crop", size=40), View("letterbox", size=40)
    bundle = replace(load_bundle(CLASSIC.with_name("cifar10-fast94")), views=views)
    predict = load_engine(bundle, threads=3)
    for side in (32, 40):
        assert predict(np.zeros((1, side, side, 3), np.uint8)).probabilities.shape == (1, 10)
    assert made == [1] * 6


@pytest.mark.slow
def test_keras_engine_never_calls_model_predict(monkeypatch):
    import keras

    def slow(*_, **__):
        raise AssertionError("tens of milliseconds of overhead")

    for method in ("predict", "predict_on_batch"):
        monkeypatch.setattr(keras.Model, method, slow, raising=False)
    predict = load_engine(load_bundle(DEFAULT_MODEL), "keras")
    assert predict(random_images(DEFAULT_MODEL)).probabilities.shape == (40, 10)


def test_serving_never_imports_tensorflow_nor_training():
    script = (
        "import sys; from rest_api.app import create_app; create_app();"
        "print([m for m in ('tensorflow', 'keras', 'training') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]"

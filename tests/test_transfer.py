"""A folder of photos in, a served classifier out."""

import io
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import applications
from PIL import Image

from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.engine import load_engine
from rest_api.settings import Settings
from tests.support import coloured, error_of, small_backbone
from training.ood import SCORES, Known
from training.photos import transfer, tuning
from training.photos.backbones import BACKBONES, WeightsError, load_backbone
from training.photos.features import cache_name, features, pooled, view_of
from training.photos.inspect import survey

SIDE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes that their colour tells apart, 40 photos each."""
    folder = tmp_path_factory.mktemp("photos")
    for channel, label in enumerate(("red", "green")):
        (folder / label).mkdir()
        for i in range(40):
            image = Image.fromarray(coloured(100 * channel + i, channel))
            image.save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def result(photos, tmp_path_factory):
    """A classifier trained on them."""
    folder = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "load_backbone", small_backbone)
        figures, _ = transfer.transfer(
            photos,
            folder / "bundle",
            side=SIDE,
            tuning=False,
            saved_model=True,
            runs=folder / "runs",
        )
    return figures, folder


def test_backbone_contains_its_own_preprocessing():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    for name in ("mobilenetv2", "vgg16", "densenet121"):
        network = load_backbone(name, "random")
        preprocess = getattr(applications, BACKBONES[name].module).preprocess_input
        expected = network.layers[-1](preprocess(images.copy()))
        np.testing.assert_allclose(network(images), expected, atol=1e-5)


def test_features_of_random_weights_do_not_vanish():
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.float32)
    maps = np.asarray(load_backbone("mobilenetv2", "random")(images))
    assert maps.std(0).mean() > 0.01


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_exists_in_keras(name):
    assert hasattr(applications, BACKBONES[name].constructor)
    assert hasattr(getattr(applications, BACKBONES[name].module), "preprocess_input")


def test_weights_that_cannot_be_had_are_explained(tmp_path, monkeypatch):
    def no_internet(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", no_internet)
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*Name or service.*--weights"):
        load_backbone("mobilenetv2")
    (tmp_path / "other.h5").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"does not fit mobilenetv2.*--width"):
        load_backbone("mobilenetv2", str(tmp_path / "other.h5"))
    with pytest.raises(WeightsError, match="does not fit mobilenetv2"):
        load_backbone("mobilenetv2", str(tmp_path / "absent.h5"))


def test_features_are_computed_once_for_each_content(photos, tmp_path, monkeypatch):
    network = pooled(small_backbone(), SIDE)
    some = survey(photos).photos[:40]
    cache = tmp_path / cache_name(network, "squash")
    first = features(network, some[:30], cache, views=3)
    assert first.shape == (30, 3, 24)

    computed = []
    original = view_of
    monkeypatch.setattr(
        "training.photos.features.view_of",
        lambda photo, *rest: computed.append(photo) or original(photo, *rest),
    )
    again = features(network, some, cache, views=3)
    np.testing.assert_array_equal(again[:30], first)
    assert {photo.digest for photo in computed} == {photo.digest for photo in some[30:]}


def test_damaged_cache_is_computed_anew(photos, tmp_path):
    network = pooled(small_backbone(), SIDE)
    some, cache = survey(photos).photos[:5], tmp_path / "features.npz"
    first = features(network, some, cache)
    cache.write_bytes(cache.read_bytes()[:500])
    np.testing.assert_array_equal(features(network, some, cache), first)


def test_other_weights_or_policies_have_other_caches():
    keras.utils.set_random_seed(0)
    one, other = (
        pooled(load_backbone("mobilenetv2", "random", width=0.35), SIDE) for _ in range(2)
    )
    assert cache_name(one, "squash") == cache_name(one, "squash")
    assert (
        len({cache_name(one, "squash"), cache_name(one, "pad"), cache_name(other, "squash")}) == 3
    )


def test_scores_are_those_of_numpy():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    known = Known(rng.normal(size=(200, 8)) + 3 * np.eye(3, 8)[labels], labels)
    inputs, logits = keras.Input((8,)), keras.Input((3,))
    network = keras.Model(
        [inputs, logits], {name: fit(known)(inputs, logits) for name, fit in SCORES.items()}
    )
    x, z = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    scores = {name: np.asarray(each) for name, each in network([x, z]).items()}

    exponentials = np.exp(z)
    np.testing.assert_allclose(scores["energy"], np.log(exponentials.sum(1)), rtol=1e-4)
    np.testing.assert_allclose(
        scores["probability"], (exponentials / exponentials.sum(1, keepdims=True)).max(1), rtol=1e-4
    )
    middle = known.features.mean(0)
    away, directions = x - middle, known.centroids - middle
    cosines = (away @ directions.T) / np.linalg.norm(away, axis=1)[:, None]
    cosines /= np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(scores["cosine"], cosines.max(1), atol=1e-4)
    covariance = np.cov(known.features - known.centroids[labels], rowvar=False)
    even = np.eye(8) * np.trace(covariance) / 8
    inverse = np.linalg.inv(0.9 * covariance + 0.1 * even)
    apart = x[:, None] - known.centroids  # (50, 3, 8)
    distances = np.einsum("ncd,de,nce->nc", apart, inverse, apart)
    np.testing.assert_allclose(scores["mahalanobis"], -distances.min(1), rtol=2e-3)


def test_heads_side_by_side_keep_each_its_own_penalty():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 3
    vectors = (rng.normal(size=(1000, 8)) + 4 * np.eye(3, 8)[labels]).astype(np.float32)

    def logits_with(*penalties: float) -> np.ndarray:
        heads = tuning.fit_heads(vectors[:900, None], labels[:900], 0, penalties)
        best = tuning.best_penalty(heads, vectors[900:], labels[900:])
        return np.asarray(heads[best](vectors))

    alone = logits_with(0.01)
    assert (alone[900:].argmax(1) == labels[900:]).mean() > 0.8
    np.testing.assert_allclose(logits_with(0.01, 1e3), alone, atol=0.05)
    np.testing.assert_allclose(logits_with(1e3, 0.01), alone, atol=0.05)
    assert abs(logits_with(1e3)).max() < 0.1 < abs(alone).max()


def test_tuning_sees_images_a_little_smaller_than_those_served():
    assert [tuning.side_of_tuning(side) for side in (32, 224, 256, 299)] == [32, 192, 224, 256]


def test_classes_are_learnt_and_figures_told(result):
    figures, folder = result
    assert figures["accuracy"] > 0.8
    low, high = figures["accuracy_interval"]
    assert low < figures["accuracy"] <= high
    manifest = load_bundle(folder / "bundle").manifest
    assert manifest["labels"] == ["green", "red"]
    assert manifest["input_size"] == SIDE
    assert manifest["uncertainty"]["score"] == "mahalanobis"
    assert manifest["accuracy"]["images"] == figures["test_photos"]


def test_bundle_is_served_with_nothing_else_to_do(result):
    _, folder = result
    client = create_app(Settings(models=(folder / "bundle",))).test_client()
    image = io.BytesIO()
    Image.fromarray(coloured(7, 0)).save(image, "PNG")
    answer = client.post("/predict", data=image.getvalue(), content_type="image/png").get_json()
    assert answer["predictions"][0]["label"] == "red"
    assert client.get("/models").get_json()["models"][0]["score"] == "mahalanobis"


def test_all_formats_and_the_saved_model_agree(result):
    import tensorflow as tf

    _, folder = result
    bundle = load_bundle(folder / "bundle")
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    reference = load_engine(bundle, "keras")(images)
    litert = load_engine(bundle, "litert-float32")(images)
    np.testing.assert_allclose(litert.probabilities, reference.probabilities, atol=1e-4)
    np.testing.assert_allclose(litert.scores, reference.scores, rtol=1e-3)
    saved = tf.saved_model.load(str(bundle.path / "saved_model"))
    probabilities, scores = saved.serve(images.astype(np.float32))
    np.testing.assert_allclose(probabilities, reference.probabilities, atol=1e-4)
    np.testing.assert_allclose(scores, reference.scores, rtol=1e-3)


def test_report_is_one_page_that_needs_no_other_file(result):
    _, folder = result
    page = next(folder.glob("runs/report-bundle/report.html")).read_text()
    assert "95 % interval" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") >= 3


def test_background_becomes_a_reason_to_reject(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    (tmp_path / "else").mkdir()
    for i in range(40):
        Image.fromarray(coloured(900 + i, 2)).save(tmp_path / "else" / f"{i}.png")
    figures, _ = transfer.transfer(
        photos,
        tmp_path / "bundle",
        background=tmp_path / "else",
        side=SIDE,
        tuning=False,
        runs=tmp_path / "runs",
    )
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest["labels"] == ["green", "red"]
    assert manifest["uncertainty"]["score"] == "above background"
    assert figures["background_auroc"] > 0.8


def test_fine_tuning_that_harms_is_taken_back(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "TUNE_EPOCHS", 2)
    monkeypatch.setattr(tuning, "TUNE_RATE", 1.0)
    _, gathered = transfer.gather(photos, None, 0)
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.float32)
    backbone = small_backbone()
    network = pooled(backbone, SIDE)
    how = {"resize": "squash", "runs": tmp_path, "seed": 0}
    head, _, _ = transfer.learn(transfer.Task(gathered, network, None, **how), ["train"])
    before = np.asarray(head(network(images)))
    task = transfer.Task(gathered, network, pooled(backbone), **how)
    head, choice, history = transfer.learn(task, ["train"])
    assert len(history) == len(choice.factors) == 2
    assert choice.share == 0
    np.testing.assert_allclose(head(network(images)), before, atol=1e-4)
    _, _, again = transfer.learn(task, ["train"])
    assert again == history  # a finished run is repeated, not trained again


def test_interrupted_tuning_ends_at_the_same_weights(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "TUNE_EPOCHS", 3)
    _, gathered = transfer.gather(photos, None, 0)

    def weights_of(runs: Path) -> list[np.ndarray]:
        backbone = small_backbone()
        how = {"resize": "squash", "runs": runs, "seed": 0}
        task = transfer.Task(gathered, pooled(backbone, SIDE), pooled(backbone), **how)
        transfer.learn(task, ["train"])
        (checkpoint,) = runs.glob("tuning-*/checkpoint.npz")
        with np.load(checkpoint) as state:
            return [state[name] for name in sorted(state.files) if name.startswith("network/")]

    saved = []

    def save_and_stop(*state, save=tuning.save):
        save(*state)
        saved.append(state)
        if len(saved) == 2:
            raise KeyboardInterrupt

    whole = weights_of(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            weights_of(tmp_path / "cut")
    for one, other in zip(whole, weights_of(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rate_is_halved_on_a_plateau_and_again_where_the_choice_is_repeated(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(tuning, "TUNE_EPOCHS", 5)
    monkeypatch.setattr(tuning, "PLATEAU", 2)
    _, gathered = transfer.gather(photos, None, 0)
    backbone = pooled(small_backbone())
    network = keras.Sequential([backbone, keras.layers.Dense(2)])
    numbers = gathered.numbers("train")
    shown = network, gathered.parts["train"], tuning.one_hot(numbers), SIDE, "squash"
    rates = []

    def fit_epoch(*how, original=tuning.fit_epoch):
        figures = original(*how)
        whole = float(how[2](int(network.optimizer.iterations) - 1))
        rates.append(float(network.optimizer.learning_rate) / whole)
        return figures

    monkeypatch.setattr(tuning, "fit_epoch", fit_epoch)
    history = tuning.tune(*shown, tmp_path / "first", watch=lambda: (1.0, 0.5))
    factors = [row["factor"] for row in history]
    assert factors == [1, 1, 1, 0.5, 0.5]
    tuning.tune(*shown, tmp_path / "second", factors=factors)
    np.testing.assert_allclose(rates, factors * 2, rtol=1e-5)


def test_plateaus_are_counted_from_each_best_epoch():
    assert tuning.plateaus([]) == 0
    assert tuning.plateaus([3, 2, 2.2, 2.1, 2.4]) == 0
    assert tuning.plateaus([3, 2, 2.2, 2.1, 2.4, 2.3, 1.0]) == 1
    assert tuning.plateaus([2, 3, 3, 3, 1, 3, 3, 3, 3]) == 1


def test_validation_photos_are_learnt_from_once_all_is_chosen(photos, tmp_path, monkeypatch):
    learnt = []

    def learn(task, parts, choice=None, original=transfer.learn):
        learnt.append((parts, choice))
        return original(task, parts, choice)

    monkeypatch.setattr(transfer, "learn", learn)
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)
    monkeypatch.setattr(tuning, "TUNE_EPOCHS", 2)
    transfer.transfer(photos, tmp_path / "bundle", side=SIDE, runs=tmp_path / "runs")
    (first, nothing), (second, choice) = learnt
    assert (first, nothing) == (["train"], None)
    assert second == ["train", "validation"]
    assert choice is not None


def test_mixed_images_keep_more_of_themselves_than_of_others():
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 200)] * 8)
    labels = np.eye(2, dtype=np.float32)[[0, 1] * 8]
    blended, shares = tuning.mixed(images, labels, np.random.default_rng(0))
    assert shares.argmax(1).tolist() == labels.argmax(1).tolist()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(blended[:, 0, 0, 0], 200 * shares[:, 1], atol=1)
    assert (blended[:, 0, 0, 0] % 200 > 0).any()


def test_folder_of_no_use_is_refused_in_one_line(tmp_path):
    (tmp_path / "only").mkdir()
    assert "it holds only 'only'" in error_of("training.transfer", tmp_path)

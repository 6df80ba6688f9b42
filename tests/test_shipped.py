"""What the shipped bundles say about photos, and what is said about them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rest_api.bundle import load_bundle
from rest_api.classifier import LoadedModel, load_model
from rest_api.settings import DEFAULT_MODEL, OTHER_MODELS
from tests.support import FROG, ROOT, encode

RECORDS = ROOT / "benchmarks" / "quality" / "records"


@pytest.fixture(scope="module", params=[DEFAULT_MODEL, *OTHER_MODELS], ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


def page_of_text(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    page = Image.new("RGB", (620, 877), "white")
    draw = ImageDraw.Draw(page)
    for y in range(40, 840, 14):
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz     "), 90)
        draw.text((40, y), "".join(letters), "black")
    return page


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "image",
    [
        *(pytest.param(page_of_text(seed), id=f"page of text {seed}") for seed in range(2)),
        *(pytest.param(noise(seed), id=f"noise {seed}") for seed in range(2)),
        *(
            pytest.param(Image.new("RGB", (320, 240), colour), id=colour)
            for colour in ("white", "black", "grey", "crimson", "royalblue", "seagreen", "gold")
        ),
    ],
)
def test_picture_of_no_thing_is_none_of_these(model, image):
    prediction = model.classify(encode(image))
    assert prediction.none_of_these
    assert prediction.uncertain


def test_shipped_bundles_stay_small_and_only_the_default_has_its_keras_file():
    # 2.5 million parameters of four bytes, and of one
    assert sum(path.stat().st_size for path in DEFAULT_MODEL.iterdir()) < 12.6e6
    bundles = {path.parent for path in DEFAULT_MODEL.parent.glob("*/model.json")}
    assert len(bundles) == 6
    for bundle in bundles:
        largest = 4.5e6 if bundle in OTHER_MODELS else 2.6e6
        assert (bundle / "model.int8.tflite").stat().st_size <= largest
        assert (bundle / "model.keras").exists() == (bundle == DEFAULT_MODEL)


@pytest.mark.parametrize("path", sorted(DEFAULT_MODEL.parent.glob("*/model.json")), ids=str)
def test_every_shipped_bundle_has_a_card_of_its_version(path):
    bundle = load_bundle(path.parent)
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert bundle.version in card
    assert ", ".join(bundle.labels) in card
    (figure,) = {f"{bundle.manifest['accuracy'][bundle.engine]:.1%}"}
    assert figure in card
    assert ("ML Illustrated" in card) == (bundle.path in OTHER_MODELS)


def test_features_of_networks_of_integers_are_not_rounded_to_8_bits():
    for path in OTHER_MODELS:
        embedding = load_model(path).classify(FROG.read_bytes(), embedded=True).embedding
        assert embedding.shape == (1280,)
        assert len(np.unique(embedding)) > 256


def test_models_of_photos_are_of_the_documented_command():
    assert [load_bundle(path).name for path in OTHER_MODELS] == [path.name for path in OTHER_MODELS]
    for path in OTHER_MODELS:
        assert load_bundle(path).manifest["training"]["backbone"] == "efficientnetlite0"


@pytest.mark.parametrize("name", ["cifar10", "cifar10-fast94"])
def test_recorded_figures_are_of_the_bundle_that_is_shipped(name):
    manifest = load_bundle(DEFAULT_MODEL.with_name(name)).manifest
    record = json.loads((RECORDS / f"{name}-photos.json").read_text())
    assert record["version"] == manifest["version"]
    assert record["sha256"] == manifest["files"]["litert"]["sha256"]


def test_shipped_bundle_is_of_the_recorded_run():
    record = json.loads((ROOT / "benchmarks/training/records/street-seed0-final.json").read_text())
    training = load_bundle(DEFAULT_MODEL).manifest["training"]
    assert training == {key: value for key, value in record.items() if key != "versions"}

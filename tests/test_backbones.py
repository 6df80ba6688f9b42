"""EfficientNet-Lite0, which is built here and whose weights are shipped."""

import io
from pathlib import Path

import keras
import numpy as np
import pytest

from rest_api.images import decode, to_square
from tests.support import FROG
from training.photos.backbones import (
    DEFAULT,
    LITE0_WEIGHTS,
    WeightsError,
    load_backbone,
)

STORED = Path(__file__).with_name("efficientnet_lite0_frog.npy")  # its pooled features of the frog
TOP = 1280 * 1000 + 1000  # parameters of the layer for ImageNet's classes, which is left out


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return load_backbone(DEFAULT)


def test_shipped_weights_give_the_stored_features(network):
    frog = to_square(decode(FROG.read_bytes(), 128), 128, "stretch")
    features = np.asarray(network(frog[None].astype(np.float32))).mean((0, 1, 2))
    np.testing.assert_allclose(features, np.load(STORED), atol=2e-3)


def test_network_is_the_one_that_was_published(network):
    (inner,) = (layer for layer in network.layers if isinstance(layer, keras.Model))
    trained = sum(int(np.prod(weight.shape)) for weight in inner.trainable_weights)
    assert trained + TOP == 4_652_008  # of the reference implementation
    kinds = [type(layer).__name__ for layer in inner.layers]
    assert kinds.count("DepthwiseConv2D") == 16
    assert kinds.count("Add") == 9  # one a repeated block
    assert network(np.zeros((1, 96, 160, 3), np.float32)).shape == (1, 3, 5, 1280)


def test_pixels_are_scaled_as_in_its_training(network):
    pixels = np.array([-1, 127, 255], np.float32).reshape(1, 1, 3, 1).repeat(3, -1)
    scaled = keras.Model(network.input, network.layers[1].output)(pixels)
    np.testing.assert_allclose(np.ravel(scaled)[::3], [-1, 0, 1])


def test_weights_are_those_of_the_file_that_is_given(tmp_path, network):
    with np.load(LITE0_WEIGHTS) as stored:
        weights = dict(stored)
    weights["head_bn/beta"] = weights["head_bn/beta"] - 100  # below what ReLU6 lets through
    np.savez(tmp_path / "dark.npz", **weights)
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    dark = load_backbone(DEFAULT, tmp_path / "dark.npz")
    assert np.asarray(dark(images)).max() == 0 < np.asarray(network(images)).max()


@pytest.mark.parametrize("change", ["text", "absent array", "other shape"])
def test_weights_that_do_not_fit_are_refused(tmp_path, change):
    content = io.BytesIO()
    with np.load(LITE0_WEIGHTS) as stored:
        weights = dict(stored)
    if change == "absent array":
        del weights["head_conv/kernel"]
    else:
        weights["head_conv/kernel"] = weights["head_conv/kernel"][..., :9]
    np.savez(content, **weights)
    path = tmp_path / "weights.npz"
    path.write_bytes(b"text" if change == "text" else content.getvalue())
    with pytest.raises(WeightsError, match=r"weights\.npz does not fit efficientnetlite0"):
        load_backbone(DEFAULT, path)


def test_random_weights_are_not_the_shipped_ones(network):
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    random = load_backbone(DEFAULT, "random")
    assert np.asarray(random(images)).std() > 0.01
    one, other = (model.get_weights()[0] for model in (random, network))
    assert not np.allclose(one, other)

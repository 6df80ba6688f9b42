import keras
import numpy as np
import pytest
from keras import layers

from training.cifar10 import networks
from training.cifar10.networks import BatchNorm, dirac_kernel, fast_vgg, gelu, vgg, whitening_kernel


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


def count(network: keras.Model, kind: type) -> int:
    return sum(isinstance(layer, kind) for layer in network.layers)


@pytest.mark.parametrize(
    ("blocks", "parameters"),
    [(1, 1_060_138), (2, 591_274), (3, 550_570)],
)
def test_classic_baselines_have_the_published_sizes(blocks, parameters):
    network = vgg(blocks)
    assert network.count_params() == parameters
    assert count(network, layers.Conv2D) == 2 * blocks
    assert count(network, layers.MaxPooling2D) == blocks
    assert count(network, layers.BatchNormalization) == 0
    assert count(network, layers.Dropout) == 0
    assert not network.losses


def test_classic_final_network_is_what_its_sentence_says():
    network = vgg(3, batch_norm=True, l2=1e-4, dropout=(0.2, 0.3, 0.4, 0.5))
    rates = [layer.rate for layer in network.layers if isinstance(layer, layers.Dropout)]
    assert rates == [0.2, 0.3, 0.4, 0.5]
    assert count(network, layers.BatchNormalization) == 7
    assert len(network.losses) == 7
    assert 0.54e6 < sum(np.prod(v.shape) for v in network.trainable_variables) < 0.56e6


def test_normalisation_lives_inside_the_network(images):
    network = vgg(1)
    normalised = network.get_layer("normalise")(images)
    mean, std = np.array(networks.CIFAR10_MEAN), np.array(networks.CIFAR10_STD)
    np.testing.assert_allclose(normalised, (images - mean) / std, atol=1e-3)


def test_fast_network_has_1_97_million_parameters():
    trainable = sum(np.prod(v.shape) for v in fast_vgg().trainable_variables)
    assert round((trainable + 2 * 2 * 3 * 24) / 1e6, 2) == 1.97


@pytest.mark.parametrize("side", [16, 24, 32, 64])
def test_fast_network_takes_images_of_other_sides(side):
    images = np.zeros((2, side, side, 3), np.uint8)
    assert fast_vgg()(images).shape == (2, 10)


def test_whitening_decorrelates_patches(images):
    # Smooth images, as photos are: neighbouring pixels correlate.
    smooth = images[:, ::4, ::4].repeat(4, 1).repeat(4, 2) / 255.0 - 0.5
    kernel = whitening_kernel(smooth, eps=0)
    assert kernel.shape == (2, 2, 3, 24)
    outputs = np.asarray(keras.ops.conv(smooth.astype(np.float32), kernel))[..., :12]
    second_moment = np.einsum("nhwi,nhwj->ij", outputs, outputs) / outputs[..., 0].size
    np.testing.assert_allclose(second_moment, np.eye(12), atol=2e-2)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


def test_initialise_freezes_the_whitening_kernel_alone(images):
    network = fast_vgg()
    networks.initialise(network, images, seed=0)
    whiten = network.get_layer("whiten")
    assert [v.name for v in whiten.trainable_variables] == ["bias"]
    assert len(network.trainable_variables) == 1 + 6 + 6 + 1


def test_dirac_convolution_passes_its_input_on():
    kernel = dirac_kernel((3, 3, 4, 6), np.random.default_rng(0))
    image = np.random.default_rng(1).random((1, 8, 8, 4), np.float32)
    output = np.asarray(keras.ops.conv(image, kernel, padding="same"))
    np.testing.assert_allclose(output[..., :4], image, atol=1e-6)
    assert abs(output[..., 4:]).max() > 0


def test_gelu_is_near_the_exact_form():
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    np.testing.assert_allclose(gelu(x), keras.ops.gelu(x, approximate=False), atol=0.021)


@pytest.mark.parametrize("scale", [False, True])
def test_fused_batch_norm_equals_keras(scale):
    x = np.random.default_rng(0).normal(3, 2, (16, 5, 5, 8)).astype(np.float32)
    ours, theirs = (
        cls(
            scale=scale,
            gamma_initializer=keras.initializers.Constant(1.7),
            momentum=0.6,
            epsilon=1e-5,
        )
        for cls in (BatchNorm, layers.BatchNormalization)
    )
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-4)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=1e-5)
    # The fused kernel keeps the unbiased variance: n / (n - 1) of Keras's, here 400 / 399.
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=3e-3)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-2, atol=1e-2)

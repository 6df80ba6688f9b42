"""The networks: the classic VGG family, the fast VGG of airbench94 and the residual of airbench96.

All take RGB (N, H, W, 3) with values 0..255, uint8 or float, normalise inside, and return
logits (N, classes) float32. `BatchNorm` is ours, and faster; what is exported has Keras's own.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import KerasTensor as Tensor
from keras import layers, ops

from training.cifar10.data import CIFAR10_MEAN, CIFAR10_STD

Activation = Callable[[Tensor], Tensor]


def vgg(
    blocks: int = 3,
    *,
    batch_norm: bool = False,
    l2: float = 0.0,
    dropout: Sequence[float] = (0, 0, 0, 0),
) -> keras.Model:
    """The classic network: VGG blocks, then a dense layer of 128.

    Each block is two 3x3 convolutions with ReLU and a 2x2 max-pool; the three have 32, 64 and
    128 filters. `batch_norm` follows every convolution and the dense layer, `l2` weighs their
    kernels into the loss, `dropout` gives the rate after each block and, last, before the output.
    """
    penalty = keras.regularizers.L2(l2) if l2 else None

    def then_batch_norm(x: Tensor) -> Tensor:
        return BatchNorm()(x) if batch_norm else x

    inputs = keras.Input((32, 32, 3))
    x = _normalise(inputs)
    for filters, rate in zip((32, 64, 128)[:blocks], dropout, strict=False):
        for _ in range(2):
            x = layers.Conv2D(
                filters,
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_uniform",
                kernel_regularizer=penalty,
            )(x)
            x = then_batch_norm(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Dropout(rate)(x) if rate else x
    x = layers.Flatten()(x)
    x = layers.Dense(
        128, activation="relu", kernel_initializer="he_uniform", kernel_regularizer=penalty
    )(x)
    x = then_batch_norm(x)
    x = layers.Dropout(dropout[-1])(x) if dropout[-1] else x
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(x), name=f"vgg{blocks}")


def gelu(x: Tensor) -> Tensor:
    """GELU in its sigmoid form, x * sigmoid(1.702 x) (Hendrycks & Gimpel, arXiv:1606.08415).

    `python -m benchmarks.training.step` shows what it saves against the exact form.
    """
    return x * ops.sigmoid(1.702 * x)


def fast_vgg(classes: int = 10) -> keras.Model:
    """The network of airbench94 (Jordan 2024, arXiv:2404.00498), 1.97 M parameters.

    A 2x2 whitening convolution with a frozen kernel, three blocks of
    conv-pool-norm-GELU-conv-norm-GELU, the maximum over what is left, and a linear head scaled
    by 1/9. Works on images of any side from 16 pixels. Call `initialise` before training.
    """

    def norm_gelu(x: Tensor) -> Tensor:
        return gelu(BatchNorm(scale=False, momentum=0.6, epsilon=1e-5)(x))

    inputs, x = whitened(gelu)
    for block, width in enumerate((64, 256, 256), 1):
        x = norm_gelu(layers.MaxPooling2D()(_convolution(x, width, f"conv{block}a")))
        x = norm_gelu(_convolution(x, width, f"conv{block}b"))
    return keras.Model(inputs, linear_head(x, classes), name="fast_vgg")


def residual_vgg(
    widths: Sequence[int], *, activation: Activation = gelu, classes: int = 10
) -> keras.Model:
    """The network of airbench96 (Jordan 2024, arXiv:2404.00498) at other widths.

    As `fast_vgg`, but each block has a third convolution, and a path around the last two; and the
    activation may be another than GELU.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        return BatchNorm(scale=False, momentum=0.9, epsilon=1e-5, name=name)(x)

    inputs, x = whitened(activation)
    for block, width in enumerate(widths, 1):
        x = layers.MaxPooling2D()(_convolution(x, width, f"conv{block}a"))
        x = around = activation(norm(x, f"norm{block}a"))
        x = activation(norm(_convolution(x, width, f"conv{block}b"), f"norm{block}b"))
        x = activation(norm(_convolution(x, width, f"conv{block}c"), f"norm{block}c") + around)
    return keras.Model(inputs, linear_head(x, classes), name="residual_vgg")


def whitened(activation: Activation) -> tuple[Tensor, Tensor]:
    """Images (N, H, W, 3), and what the whitening layer makes of them, (N, H - 1, W - 1, 24)."""
    inputs = keras.Input((None, None, 3))
    x = _normalise(inputs)
    # Whitening magnifies small differences, which bfloat16 would round away: float32 up to here,
    # whatever the policy. The identity casts.
    x = layers.Conv2D(24, 2, dtype="float32", name="whiten")(x)
    return inputs, activation(layers.Identity()(x))


def _convolution(x: Tensor, width: int, name: str) -> Tensor:
    return layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)


def linear_head(x: Tensor, classes: int) -> Tensor:
    """Global pooling and the linear head, initialised as PyTorch does."""
    x = layers.GlobalMaxPooling2D(name="features")(x)
    like_torch = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    head = layers.Dense(
        classes, use_bias=False, kernel_initializer=like_torch, dtype="float32", name="head"
    )
    return layers.Rescaling(1 / 9, dtype="float32")(head(x))


class BatchNorm(layers.BatchNormalization):
    """Keras's batch normalisation, through TensorFlow's fused kernel where there is one.

    The kernel takes feature maps (N, H, W, C). `python -m benchmarks.training.step` shows
    what it saves.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if keras.backend.backend() != "tensorflow" or len(inputs.shape) != 4:
            return super().call(inputs, training=training)
        import tensorflow as tf

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma if self.scale else tf.ones_like(self.beta),
            offset=self.beta,
            mean=[] if training else self.moving_mean,
            variance=[] if training else self.moving_variance,
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs


def operations(network: keras.Model, image_size: int) -> dict[keras.Layer, float]:
    """The operations of each convolution and dense layer, forward, for one image.

    The layers are those of a copy of the network for images of that size, so each knows its shapes.
    """
    inputs = keras.Input((image_size, image_size, 3))
    counts = {}
    for layer in keras.models.clone_model(network, input_tensors=inputs).layers:
        if isinstance(layer, layers.Conv2D):
            _, height, width, _ = layer.output.shape
            counts[layer] = 2 * height * width * float(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            counts[layer] = 2 * float(np.prod(layer.kernel.shape))
    return counts


def initialise(
    network: keras.Model,
    images: np.ndarray,
    seed: int,
    *,
    whitening: bool = True,
    dirac: bool = True,
) -> None:
    """Set the kernels of a `fast_vgg` or `residual_vgg`: whitening from `images`, then dirac."""
    if whitening:
        normalise, whiten = network.get_layer("normalise"), network.get_layer("whiten")
        mean, std = np.asarray(normalise.mean), np.asarray(normalise.variance) ** 0.5
        whiten.kernel.assign(whitening_kernel((images - mean) / std))
        whiten.kernel.trainable = False
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if dirac and layer.name.startswith("conv"):
            layer.kernel.assign(dirac_kernel(layer.kernel.shape, rng))


def whitening_kernel(images: np.ndarray, eps: float = 5e-4) -> np.ndarray:
    """A 2x2 convolution whose outputs are decorrelated over `images` (N, H, W, 3), normalised.

    Filters are the eigenvectors of the patches' second moment over sqrt(eigenvalue + eps), then
    their negatives: (2, 2, 3, 24) float32.
    """
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)  # kernel order: H, W, C
    eigenvalues, eigenvectors = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = eigenvectors / np.sqrt(eigenvalues + eps)  # (12, 12), a filter per column
    return np.hstack([filters, -filters]).reshape(2, 2, 3, 24).astype(np.float32)


def dirac_kernel(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The first filters pass their input channel on; the rest are uniform random."""
    height, width, channels, filters = shape
    limit = (height * width * channels) ** -0.5
    kernel = rng.uniform(-limit, limit, shape).astype(np.float32)
    same = min(channels, filters)
    kernel[..., :same] = 0
    kernel[height // 2, width // 2, range(same), range(same)] = 1
    return kernel


def _normalise(inputs: Tensor) -> Tensor:
    mean, variance = list(CIFAR10_MEAN), [value**2 for value in CIFAR10_STD]
    layer = layers.Normalization(mean=mean, variance=variance, dtype="float32", name="normalise")
    return layer(inputs)

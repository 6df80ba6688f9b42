"""ImageNet networks as feature extractors: EfficientNet-Lite0, and those of keras.applications.

EfficientNet-Lite0's weights lie beside this module, so that it needs no download. Keras is imported
when a network is built, so that a command line can list the names at once.
"""

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """A network of keras.applications and the module that holds its preprocessing.

    Both are empty for the one that is built here.
    """

    constructor: str = ""
    module: str = ""
    image_size: int = 224  # pixels per side, of training and serving
    least_size: int = 32  # pixels per side, of smaller ones the last layers would leave nothing


DEFAULT = LITE0 = "efficientnetlite0"
BACKBONES = {
    LITE0: Backbone(image_size=256),
    "mobilenetv2": Backbone("MobileNetV2", "mobilenet_v2", 256),  # +1 point over 224 on dishes
    "vgg16": Backbone("VGG16", "vgg16"),
    "resnet50": Backbone("ResNet50", "resnet50"),
    "inceptionv3": Backbone("InceptionV3", "inception_v3", 299, least_size=75),
    "densenet121": Backbone("DenseNet121", "densenet"),
    "efficientnetv2b0": Backbone("EfficientNetV2B0", "efficientnet_v2"),
    "convnexttiny": Backbone("ConvNeXtTiny", "convnext"),
}
RANDOM = "random"  # untrained weights, for trials and tests
# EfficientNet-Lite0 weights, Copyright (c) 2020 ML Illustrated, Apache License 2.0, converted:
# see NOTICE. One array a weight, LAYER/WEIGHT in Keras's axis order.
LITE0_WEIGHTS = Path(__file__).with_name("efficientnet_lite0.float16.npz")
# The stages of EfficientNet-B0: repeats, kernel, stride, expansion, filters
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class WeightsError(Exception):
    """The ImageNet weights are not available; the message says how to get them."""


def load_backbone(
    name: str, weights: str | Path | None = None, *, width: float = 1.0
) -> "keras.Model":
    """A network from images (N, H, W, 3), values 0..255, to feature maps (N, h, w, channels).

    It accepts any image size and contains its own preprocessing. `weights` is a file, None for
    those that are shipped or else Keras's download, or RANDOM. `width` is MobileNetV2's alpha.
    Raises WeightsError.
    """
    import keras

    if weights and weights != RANDOM and not Path(weights).is_file():
        raise WeightsError(f"The weights file {weights} does not exist.")
    images = keras.Input((None, None, 3), name="image")
    if name == LITE0:
        network = efficientnet_lite0()
        scaled = keras.layers.Rescaling(1 / 128, -127 / 128)(images)
        if weights != RANDOM:
            set_stored_weights(network, Path(weights or LITE0_WEIGHTS))
    else:
        network = application(name, weights, width)
        preprocess = getattr(keras.applications, BACKBONES[name].module).preprocess_input
        scaled = preprocess(images)
    model = keras.Model(images, network(scaled), name=name)
    if weights == RANDOM:
        # BatchNorm's statistics are those of random blurred images, or random features vanish.
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        noise = keras.random.uniform((16, 3, 3, 3), 0, 255)
        model(keras.ops.image.resize(noise, (128, 128)), training=True)
    return model


def application(name: str, weights: str | Path | None, width: float) -> "keras.Model":
    """A network of keras.applications. Raises WeightsError."""
    from keras import applications

    options = {"alpha": width} if name == "mobilenetv2" else {}
    source = None if weights == RANDOM else weights or "imagenet"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined")  # any size is intended
            return getattr(applications, BACKBONES[name].constructor)(
                include_top=False, input_shape=(None, None, 3), weights=source, **options
            )
    except Exception as error:  # Keras raises a bare Exception if a download fails
        raise WeightsError(explain(name, weights, error)) from error


def efficientnet_lite0() -> "keras.Model":
    """EfficientNet-Lite0 without its top, images (N, H, W, 3) in -1..1 → (N, H/32, W/32, 1280).

    EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6,
    so that it is fast on a processor and its activations are bounded, as 8-bit integers want it
    (Liu 2020, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
    """
    import keras
    from keras import layers

    options = {"padding": "same", "use_bias": False}

    def normed(
        x: "keras.KerasTensor", layer: "keras.Layer", *, relu: bool = True
    ) -> "keras.KerasTensor":
        name = layer.name.removesuffix("_conv")
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(layer(x))
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x

    images = keras.Input((None, None, 3))
    x = normed(images, layers.Conv2D(32, 3, 2, name="stem_conv", **options))
    block = 0
    for repeats, kernel, first_stride, expansion, filters in STAGES:
        for stride in [first_stride] + [1] * (repeats - 1):
            name, inputs = f"block{block}", x
            if expansion > 1:
                wide = expansion * x.shape[-1]
                x = normed(x, layers.Conv2D(wide, 1, name=f"{name}_expand_conv", **options))
            each = layers.DepthwiseConv2D(kernel, stride, name=f"{name}_depthwise_conv", **options)
            x = normed(x, each)
            project = layers.Conv2D(filters, 1, name=f"{name}_project_conv", **options)
            x = normed(x, project, relu=False)
            if x.shape[-1] == inputs.shape[-1] and stride == 1:
                x = layers.Add(name=f"{name}_add")([inputs, x])
            block += 1
    x = normed(x, layers.Conv2D(1280, 1, name="head_conv", **options))
    return keras.Model(images, x, name=LITE0)


def set_stored_weights(network: "keras.Model", path: Path) -> None:
    """Set every weight from an .npz file that holds it as LAYER/WEIGHT. Raises WeightsError."""
    try:
        with np.load(path) as stored:
            for layer in network.layers:
                layer.set_weights(
                    [stored[f"{layer.name}/{weight.name}"] for weight in layer.weights]
                )
    except (OSError, KeyError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} does not fit {network.name}: {error}") from error


def explain(name: str, weights: str | Path | None, error: Exception) -> str:
    """The message of a WeightsError."""
    if weights is None:
        return (
            f"The ImageNet weights of {name} cannot be downloaded ({error}). Connect to the "
            "internet, or pass the file of keras.applications without its top as --weights FILE."
        )
    return (
        f"{weights} does not fit {name}: {error}. Pass the file that keras.applications has for "
        "this backbone without its top; for mobilenetv2, --width must match the file."
    )

"""Networks trained on ImageNet, from keras.applications, as extractors of features."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
from keras import applications


@dataclass(frozen=True)
class Backbone:
    """One of keras.applications: its constructor, the module with its preprocessing, its size."""

    constructor: str
    module: str
    side: int = 224  # pixels that photos are shown to it with


BACKBONES = {
    "mobilenetv2": Backbone("MobileNetV2", "mobilenet_v2", 256),  # dishes gain a point over 224
    "vgg16": Backbone("VGG16", "vgg16"),
    "resnet50": Backbone("ResNet50", "resnet50"),
    "inceptionv3": Backbone("InceptionV3", "inception_v3", 299),
    "densenet121": Backbone("DenseNet121", "densenet"),
    "efficientnetv2b0": Backbone("EfficientNetV2B0", "efficientnet_v2"),
    "convnexttiny": Backbone("ConvNeXtTiny", "convnext"),
}
RANDOM = "random"  # weights for trying things out


class WeightsError(Exception):
    """The ImageNet weights cannot be had; the message says how they can."""


def load_backbone(
    name: str, weights: str | Path | None = None, *, width: float = 1.0
) -> keras.Model:
    """A network from images (N, H, W, 3), values 0..255, to maps (N, h, w, channels).

    Images may have any size; the preprocessing that the backbone was trained with is part of it.
    `weights` is a file, or None for Keras's download, or RANDOM. `width` is MobileNetV2's alpha.
    Raises WeightsError.
    """
    backbone = BACKBONES[name]
    images = keras.Input((None, None, 3), name="image")
    preprocess = getattr(applications, backbone.module).preprocess_input
    how = {"alpha": width} if name == "mobilenetv2" else {}
    source = {None: "imagenet", RANDOM: None}.get(weights, weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined")  # it is, on purpose
            network = getattr(applications, backbone.constructor)(
                include_top=False, input_shape=(None, None, 3), weights=source, **how
            )
    except Exception as error:  # Keras raises a bare Exception where a download fails
        raise WeightsError(explain(name, weights, error)) from error
    model = keras.Model(images, network(preprocess(images)), name=name)
    if weights == RANDOM:
        settle(model, network.layers)
    return model


def settle(model: keras.Model, layers: Sequence[keras.Layer]) -> None:
    """Set BatchNorm's statistics to those of coloured blots; with none, random features vanish."""
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    blots = keras.random.uniform((16, 3, 3, 3), 0, 255)
    model(keras.ops.image.resize(blots, (128, 128)), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def explain(name: str, weights: str | Path | None, error: Exception) -> str:
    if weights is None:
        return (
            f"The ImageNet weights of {name} cannot be downloaded ({error}). Connect to the "
            "internet, or give a file of them (as keras.applications has them, without the top) "
            "with --weights FILE."
        )
    return (
        f"{weights} does not fit {name}: {error}. Give the file that keras.applications has for "
        "this backbone without its top; for mobilenetv2, --width must be that of the file."
    )

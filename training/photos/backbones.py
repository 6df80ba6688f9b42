"""ImageNet networks of keras.applications as feature extractors.

Keras is imported when a network is built, so that a command line can list the names at once.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """A network of keras.applications and the module that holds its preprocessing."""

    constructor: str
    module: str
    image_size: int = 224  # pixels per side, of training and serving


BACKBONES = {
    "mobilenetv2": Backbone("MobileNetV2", "mobilenet_v2", 256),  # +1 point over 224 on dishes
    "vgg16": Backbone("VGG16", "vgg16"),
    "resnet50": Backbone("ResNet50", "resnet50"),
    "inceptionv3": Backbone("InceptionV3", "inception_v3", 299),
    "densenet121": Backbone("DenseNet121", "densenet"),
    "efficientnetv2b0": Backbone("EfficientNetV2B0", "efficientnet_v2"),
    "convnexttiny": Backbone("ConvNeXtTiny", "convnext"),
}
RANDOM = "random"  # untrained weights, for trials and tests


class WeightsError(Exception):
    """The ImageNet weights are not available; the message says how to get them."""


def load_backbone(
    name: str, weights: str | Path | None = None, *, width: float = 1.0
) -> "keras.Model":
    """A network from images (N, H, W, 3), values 0..255, to feature maps (N, h, w, channels).

    It accepts any image size and contains its own preprocessing. `weights` is a file, None for
    Keras's download, or RANDOM. `width` is MobileNetV2's alpha. Raises WeightsError.
    """
    import keras
    from keras import applications

    if weights and weights != RANDOM and not Path(weights).is_file():
        raise WeightsError(f"The weights file {weights} does not exist.")
    backbone = BACKBONES[name]
    images = keras.Input((None, None, 3), name="image")
    preprocess = getattr(applications, backbone.module).preprocess_input
    options = {"alpha": width} if name == "mobilenetv2" else {}
    source = None if weights == RANDOM else weights or "imagenet"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined")  # any size is intended
            network = getattr(applications, backbone.constructor)(
                include_top=False, input_shape=(None, None, 3), weights=source, **options
            )
    except Exception as error:  # Keras raises a bare Exception if a download fails
        raise WeightsError(explain(name, weights, error)) from error
    model = keras.Model(images, network(preprocess(images)), name=name)
    if weights == RANDOM:
        # BatchNorm's statistics are those of random blurred images, or random features vanish.
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        noise = keras.random.uniform((16, 3, 3, 3), 0, 255)
        model(keras.ops.image.resize(noise, (128, 128)), training=True)
    return model


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

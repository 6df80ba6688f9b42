"""Class activation maps: which places of an image speak for a class (Zhou et al. 2016,
arXiv:1512.04150). A network that ends in global pooling and a linear head needs no gradients.
"""

import keras
import numpy as np
from keras import ops


def parts_of_maximum(maps: keras.KerasTensor) -> keras.KerasTensor:
    """What each place adds to the global maximum of feature maps (N, h, w, channels), of which the
    parts have the shape and over the places the sum."""
    highest = ops.cast(ops.equal(maps, ops.max(maps, (1, 2), keepdims=True)), "float32")
    return maps * highest / ops.sum(highest, (1, 2), keepdims=True)


def activation_maps(parts: keras.KerasTensor, kernel: np.ndarray) -> keras.KerasTensor:
    """Class activation maps (N, h, w, classes) of a linear head on pooled features.

    `parts` (N, h, w, channels) are what each place adds to a feature, `kernel` (channels, classes)
    is the head's. A map tells what speaks for its class rather than for the others: it sums to the
    class's logit, less the mean of all logits and without biases.
    """
    head = keras.layers.Conv2D(kernel.shape[1], 1, use_bias=False, name="maps")
    maps = head(parts)
    head.set_weights([(kernel - kernel.mean(1, keepdims=True))[None, None]])
    return maps

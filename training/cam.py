"""Class activation maps: which places of an image speak for a class (Zhou et al. 2016,
arXiv:1512.04150). A network that ends in global pooling and a linear head needs no gradients.
"""

import keras
import numpy as np
from keras import ops

SMALLEST = 1e-6  # sum of a feature map that is divided by


def shares_of_maximum(maps: keras.KerasTensor) -> keras.KerasTensor:
    """What each place has of the global maximum of feature maps: (N, h, w, channels), sums of 1."""
    highest = ops.cast(ops.equal(maps, ops.max(maps, (1, 2), keepdims=True)), "float32")
    return highest / ops.sum(highest, (1, 2), keepdims=True)


def shares_of_mean(maps: keras.KerasTensor) -> keras.KerasTensor:
    """The same for the global mean, but that a channel whose mean is 0 has no shares."""
    total = ops.sum(maps, (1, 2), keepdims=True)
    return maps * ops.sign(total) / ops.maximum(ops.abs(total), SMALLEST)


def activation_maps(
    shares: keras.KerasTensor, features: keras.KerasTensor, kernel: np.ndarray
) -> keras.KerasTensor:
    """Class activation maps (N, h, w, classes) of a linear head on pooled features.

    `shares` (N, h, w, channels) say which place a feature (N, channels) comes from, `kernel`
    (channels, classes) is the head's. A map tells what speaks for its class rather than for the
    others: it sums to the class's logit, less the mean of all logits and without biases.
    """
    contrasts = kernel - kernel.mean(1, keepdims=True)
    head = keras.layers.Conv2D(kernel.shape[1], 1, use_bias=False, name="maps")
    maps = head(shares * features[:, None, None, :])
    head.set_weights([contrasts[None, None]])
    return maps

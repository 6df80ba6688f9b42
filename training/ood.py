"""How familiar a photo is to a classifier, so that "none of these" can be an answer.

Softmax divides all of its belief among the classes that it knows; of a photo of anything else it
is often just as sure. Each function here makes another score, the larger the more familiar, as
Keras layers that are exported with the network.
`python -m benchmarks.quality.ood_scores` compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

COMPONENTS = 64  # directions of the features that distances are measured in
SHRINKAGE = 0.1  # of their variances towards the mean variance, where photos are few


@dataclass(frozen=True)
class Known:
    """What a score is fitted on: the features (N, D) and labels (N,) of training photos."""

    features: np.ndarray
    labels: np.ndarray

    @property
    def centroids(self) -> np.ndarray:
        """The mean of each class, (classes, D)."""
        return np.stack([self.features[self.labels == c].mean(0) for c in np.unique(self.labels)])


# features (N, D) and logits (N, classes), symbolic → score (N,)
Score = Callable[[keras.KerasTensor, keras.KerasTensor], keras.KerasTensor]


def probability(known: Known) -> Score:
    """The probability of the best class (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return lambda features, logits: ops.max(ops.softmax(logits), -1)


def energy(known: Known) -> Score:
    """The log of the summed exponentials of the logits (Liu et al. 2020, arXiv:2010.03759)."""
    return lambda features, logits: ops.logsumexp(logits, -1)


def cosine(known: Known) -> Score:
    """The cosine between the nearest class and the photo, both seen from the mean of all photos.

    After Techapanurak, Suganuma & Okatani 2019 (arXiv:1905.10628), who train for it, too.
    """
    middle = known.features.mean(0)
    directions = known.centroids - middle
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def score(features, logits):
        # |f - m|² = |f|² - 2 f·m + |m|²
        lengths = linear(-2 * middle[:, None], middle @ middle, "from_the_mean")(features)[:, 0]
        lengths = ops.sqrt(ops.maximum(lengths + ops.sum(ops.square(features), -1), 1e-6))
        along = linear(directions.T, -directions @ middle, "along_the_classes")(features)
        return ops.max(along, -1) / lengths

    return score


def mahalanobis(known: Known) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class (Lee et al. 2018,
    arXiv:1807.03888), in the leading principal components and with a shrunk covariance."""
    middle = known.features.mean(0)
    directions = np.linalg.svd(known.features - middle, full_matrices=False)[2][:COMPONENTS].T
    within = (known.features - known.centroids[known.labels]) @ directions  # (N, components)
    covariance = np.cov(within, rowvar=False)
    even = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * even
    whiten = directions @ np.linalg.inv(np.linalg.cholesky(covariance)).T  # (D, components)
    centroids = (known.centroids - middle) @ whiten  # (classes, components)

    def score(features, logits):
        z = linear(whiten, -middle @ whiten, "whiten")(features)
        # |z - c|² = |z|² - 2 z·c + |c|²
        nearest = linear(2 * centroids.T, -(centroids**2).sum(1), "nearest_class")(z)
        return ops.max(nearest, -1) - ops.sum(ops.square(z), -1)

    return score


def linear(kernel: np.ndarray, bias: np.ndarray | float, name: str) -> keras.layers.Dense:
    """A frozen layer x @ kernel + bias."""
    inputs, outputs = kernel.shape
    layer = keras.layers.Dense(outputs, name=name, trainable=False)
    layer.build((None, inputs))
    layer.set_weights([kernel, np.broadcast_to(bias, outputs)])
    return layer


SCORES: dict[str, Callable[[Known], Score]] = {
    "probability": probability,
    "energy": energy,
    "cosine": cosine,
    "mahalanobis": mahalanobis,
}

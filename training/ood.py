"""Out-of-distribution (OOD) scores that are served, so that "none of these" can be an answer.

Softmax divides all probability among the known classes, often with confidence also for a photo of
anything else. A score here is larger for photos like those of the training, and is made of Keras
layers that are exported with the network. `python -m benchmarks.quality.ood_scores` compares more.
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

COMPONENTS = 32  # principal directions that have a variance of their own
TINY = 1e-30  # sum of exponentials, whose logarithm is taken
SHORTEST = 1e-6  # length of features that is divided by

# features (N, D) and logits (N, classes), symbolic → score (N,)
Score = Callable[[keras.KerasTensor, keras.KerasTensor], keras.KerasTensor]


def log_odds(logits: keras.KerasTensor, known: int) -> keras.KerasTensor:
    """The log odds (N,) of the first `known` logits (N, classes) against all others.

    Outlier exposure (Hendrycks, Mazeika & Dietterich 2019, arXiv:1812.04606).
    """
    # One maximum for both sums: it cancels out. To add one to each, as logsumexp does, would be
    # rounded to 8 bits by the export (see IN_FLOAT32 in training/export.py).
    powers = ops.exp(logits - ops.max(logits, -1, keepdims=True))
    sums = [ops.maximum(ops.sum(part, -1), TINY) for part in (powers[:, :known], powers[:, known:])]
    return ops.log(sums[0]) - ops.log(sums[1])


def mahalanobis(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The distance score of features that are scaled to unit length (Mueller & Hein 2025,
    arXiv:2505.18032), fitted on the features (N, D) and class ids (N,) of training photos.

    How strongly a photo excites the network says little of what it shows. Plain colours, which
    excite it little, would otherwise lie near every class.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True).clip(SHORTEST)
    fitted = distance(features / lengths, class_ids)

    def score(features: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        length = ops.sqrt(ops.sum(ops.square(features), -1, keepdims=True))
        return fitted(features / ops.maximum(length, SHORTEST), logits)

    return score


def distance(features: np.ndarray, class_ids: np.ndarray, components: int = COMPONENTS) -> Score:
    """Minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018,
    arXiv:1807.03888), fitted on the features (N, D) and class ids (N,) of training photos.

    The covariance has `components` principal directions and one variance for all others (Tipping &
    Bishop 1999), shrunk as Ledoit & Wolf have it. Both matter where photos are few: the first
    directions fit the noise of the photos that they were found in, so a distance in them alone is
    larger for these than for new photos, and rejects what the classifier was trained on.
    """
    means = np.stack([features[class_ids == each].mean(0) for each in np.unique(class_ids)])
    within = features - means[class_ids]
    shrinkage, mean_variance = ledoit_wolf(within)
    _, spread, directions = np.linalg.svd(within, full_matrices=False)
    rank = min(components, len(spread) // 2)
    variances = spread**2 / len(within)
    others = variances[rank:].sum() / (within.shape[1] - rank)
    variances, other = (
        (1 - shrinkage) * each + shrinkage * mean_variance for each in (variances[:rank], others)
    )
    # In units of the other directions' deviation, the squared distance is |z|² less a part of it
    # in the principal directions, whose variances are larger.
    centre = means.mean(0)
    principal = directions[:rank].T * np.sqrt(1 - other / variances)  # (D, rank)
    centred = (means - centre) / np.sqrt(other)  # (classes, D)
    weighted = centred - centred @ principal @ principal.T
    offsets = (weighted * centred).sum(1)

    def score(features: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        variance = np.full(len(centre), other)
        z = keras.layers.Normalization(mean=centre, variance=variance, name="centred")(features)
        along = linear(principal, 0.0, "principal")(z)
        # d(z, c)² = |z|² - |along|² - 2 z·weighted + c·weighted
        nearest = linear(2 * weighted.T, -offsets, "nearest_class")(z)
        squares = ops.sum(ops.square(z), -1) - ops.sum(ops.square(along), -1)
        return ops.max(nearest, -1) - squares

    return score


def ledoit_wolf(centred: np.ndarray) -> tuple[float, float]:
    """The optimal shrinkage, 0..1, of the covariance of rows (N, D) towards an isotropic one, and
    the variance of that (Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4)."""
    count, size = centred.shape
    gram = centred @ centred.T / count if count < size else centred.T @ centred / count
    squares = np.square(centred).sum(1)
    variance = squares.mean() / size
    covariance_norm = np.square(gram).sum()
    dispersion = covariance_norm - size * variance**2
    error = (np.square(squares).sum() / count - covariance_norm) / count
    return float(np.clip(error / dispersion, 0, 1)), float(variance)


def linear(kernel: np.ndarray, bias: np.ndarray | float, name: str) -> keras.layers.Dense:
    """A frozen layer x @ kernel + bias."""
    inputs, outputs = kernel.shape
    layer = keras.layers.Dense(outputs, name=name, trainable=False)
    layer.build((None, inputs))
    layer.set_weights([kernel, np.broadcast_to(bias, outputs)])
    return layer

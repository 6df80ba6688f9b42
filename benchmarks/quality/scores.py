"""OOD scores that are compared with the served ones of training.ood, but not served themselves.

Each function makes a score, the larger the more like the known photos, from their features (N, D)
and class ids (N,).
"""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
from keras import ops

from benchmarks.common import fpr95
from training import metrics
from training.ood import Score, distance, linear, mahalanobis
from training.photos.head import best_penalty, fit_heads
from training.photos.inspect import Photo, split

NEIGHBOURS = 5
DIRECTIONS = 64  # of the residual


def probability(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The probability of the best class (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return lambda features, logits: ops.max(ops.softmax(logits), -1)


def energy(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The log of the summed exponentials of the logits (Liu et al. 2020, arXiv:2010.03759)."""
    return lambda features, logits: ops.logsumexp(logits, -1)


def cosine(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The cosine between the nearest class and the photo, as seen from the mean of all photos.

    After Techapanurak, Suganuma & Okatani 2019 (arXiv:1905.10628), who train for it, too.
    """
    mean = features.mean(0)
    centroids = [features[class_ids == each].mean(0) for each in np.unique(class_ids)]
    directions = np.stack(centroids) - mean
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def score(features, logits):
        # |f - m|² = |f|² - 2 f·m + |m|²
        lengths = linear(-2 * mean[:, None], mean @ mean, "from_the_mean")(features)[:, 0]
        lengths = ops.sqrt(ops.maximum(lengths + ops.sum(ops.square(features), -1), 1e-6))
        along = linear(directions.T, -directions @ mean, "along_the_classes")(features)
        return ops.max(along, -1) / lengths

    return score


def lengths_kept(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The Mahalanobis distance of the features as they are."""
    return distance(features, class_ids)


def many_directions(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The same with half as many principal directions as there are photos."""
    return distance(features, class_ids, len(features))


def neighbours(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """The cosine between a photo and the NEIGHBOURS-th nearest of the training (Sun et al. 2022,
    arXiv:2204.06507)."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)

    def score(vectors, logits):
        cosines = linear((features / lengths).T, 0.0, "cosines")(vectors)
        nearest = ops.top_k(cosines, NEIGHBOURS)[0][:, -1]
        return nearest / ops.sqrt(ops.sum(ops.square(vectors), -1))

    return score


def residual(features: np.ndarray, class_ids: np.ndarray) -> Score:
    """Minus the length of what lies outside the principal directions (as in ViM, Wang et al. 2022,
    arXiv:2203.10807)."""
    mean = features.mean(0)
    _, _, directions = np.linalg.svd(features - mean, full_matrices=False)
    principal = directions[:DIRECTIONS].T

    def score(vectors, logits):
        centred = vectors - mean.astype(np.float32)
        along = linear(principal, 0.0, "along_the_principal")(centred)
        return ops.sum(ops.square(along), -1) - ops.sum(ops.square(centred), -1)

    return score


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], Score]] = {
    "probability": probability,
    "energy": energy,
    "cosine": cosine,
    "residual": residual,
    "nearest neighbours": neighbours,
    "mahalanobis, lengths kept": lengths_kept,
    "mahalanobis, lengths kept, many directions": many_directions,
    "mahalanobis": mahalanobis,
}


def scorer(head: keras.Model, features: np.ndarray, class_ids: np.ndarray) -> keras.Model:
    """A network from features to every score, fitted on those of training photos."""
    inputs = keras.Input(head.input_shape[1:])
    logits = head(inputs)
    # Each is a network of its own, since some have layers of the same name.
    scores = {
        name: keras.Model(inputs, fit(features, class_ids)(inputs, logits))(inputs)
        for name, fit in SCORES.items()
    }
    return keras.Model(inputs, scores)


def judge(
    photos: Sequence[Photo], features: np.ndarray, others: Mapping[str, np.ndarray], seed: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """AUROC and FPR95 by OOD set and score, of a head trained on one split of the photos.

    `features` (N, views, D) are those of the photos, `others` (M, D) those of each OOD set. AUROC
    is that of the test photos, the threshold of FPR95 that of the validation photos.
    """
    labels = sorted({photo.label for photo in photos})
    class_ids = np.array([labels.index(photo.label) for photo in photos])
    row = {photo.digest: i for i, photo in enumerate(photos)}
    parts = {part: [row[p.digest] for p in some] for part, some in split(photos, seed).items()}
    train, validation, test = parts["train"], parts["validation"], parts["test"]
    heads = fit_heads(features[train], class_ids[train], seed)
    best = best_penalty(heads, features[validation][:, 0], class_ids[validation])
    network = scorer(heads[best], features[train][:, 0], class_ids[train])

    def scores_of(vectors: np.ndarray) -> dict[str, np.ndarray]:
        return network.predict(vectors, verbose=0)

    checked, tested = (scores_of(features[part][:, 0]) for part in (validation, test))
    return {
        (other, name): (metrics.auroc(tested[name], scores), fpr95(checked[name], scores))
        for other, vectors in others.items()
        for name, scores in scores_of(vectors).items()
    }

"""Measures of a classifier. Probabilities are (N, classes), labels (N,) integers.

SciPy is imported where it is used: importing it takes time, and the server does not install it.
"""

from collections.abc import Sequence

import numpy as np

BINS = 15  # of the calibration error, as Guo et al. 2017 have them


def views(images: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The six (weight, images) of test-time augmentation, as airbench has them.

    As is and shifted by one pixel to either corner (reflecting the border), each also mirrored.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    side = images.shape[1]
    result = []
    for weight, at in (0.25, 1), (0.125, 0), (0.125, 2):  # the row and column of the first pixel
        view = padded[:, at : at + side, at : at + side]
        result += [(weight, view), (weight, view[:, :, ::-1])]
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    from scipy import special

    return special.softmax(logits, axis=-1)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of rows whose largest score is the label's."""
    return float((scores.argmax(-1) == labels).mean())


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log likelihood in nats."""
    return float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean())


def per_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy over the images of each class: (classes,) float."""
    matrix = confusion_matrix(scores, labels)
    return matrix.diagonal() / matrix.sum(1).clip(1)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (classes, classes): rows are the true class, columns the predicted one."""
    classes = scores.shape[-1]
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, scores.argmax(-1)), 1)
    return matrix


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Confidence against accuracy in BINS bins of confidence of equal width.

    Returns (BINS, 3): count, mean confidence, accuracy (both 0 in an empty bin).
    """
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count, confidence, correct = (
        np.bincount(bin_of, weights, BINS) for weights in (None, confidence, correct)
    )
    return np.stack([count, confidence / count.clip(1), correct / count.clip(1)], axis=1)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean gap between confidence and accuracy (Guo et al. 2017, arXiv:1706.04599)."""
    count, confidence, correct = reliability(probabilities, labels).T
    return float((count * abs(confidence - correct)).sum() / len(labels))


def joint_thresholds(
    measures: Sequence[np.ndarray], shares: Sequence[float], coverage: float
) -> list[float]:
    """A threshold for each measure (N,), all of which a fraction `coverage` of the rows reaches.

    How many rows each rejects is in proportion to its share. Quantiles are Weibull's, which have no
    bias towards rejection where rows are few.
    """
    both = list(zip(measures, shares, strict=True))
    ranks = [(1 + each.argsort().argsort()) / (len(each) + 1) / share for each, share in both]
    rejected = np.quantile(np.min(ranks, axis=0), 1 - coverage, method="weibull")
    return [float(np.quantile(each, rejected * share, method="weibull")) for each, share in both]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature whose softmax(logits / temperature) has the least cross-entropy.

    Logits are (N, classes), or (N, views, classes), which are averaged over views. Searched between
    0.05 and 20 (Guo et al. 2017, arXiv:1706.04599). The labels are held for true with a probability
    of (N + 1) / (N + 2): a few images that are all classified rightly would otherwise make a
    network sure of everything (Platt 1999).
    """
    from scipy import special
    from scipy.optimize import minimize_scalar

    doubt = 1 / (len(labels) + 2)
    means = logits.reshape(len(labels), -1, logits.shape[-1]).mean(1)
    targets = np.full((len(labels), logits.shape[-1]), doubt / (logits.shape[-1] - 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:  # it has one minimum
        log_probabilities = special.log_softmax(means / np.exp(log_temperature), axis=-1)
        return -(targets * log_probabilities).sum(1).mean()

    bounds = np.log(0.05), np.log(20)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, options={"xatol": 1e-4}).x))


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    return float(low), float(high)


def auroc(in_distribution: np.ndarray, out_of_distribution: np.ndarray) -> float:
    """How often a score of the first is above one of the second, ties counting half."""
    from scipy.stats import mannwhitneyu

    u = mannwhitneyu(in_distribution, out_of_distribution, method="asymptotic").statistic
    return float(u / (len(in_distribution) * len(out_of_distribution)))

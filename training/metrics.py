"""Measures of a classifier, in NumPy. Probabilities are (N, classes), labels (N,) integers."""

import numpy as np

VIEWS = ((0, 0), (-1, -1), (1, 1))  # pixels down and right
VIEW_WEIGHTS = (0.5, 0.25, 0.25)


def views(images: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The six (weight, images) of test-time augmentation, as airbench has them.

    As is and shifted by one pixel to either corner (reflecting the border), each also mirrored.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    side = images.shape[1]
    shifted = [padded[:, 1 + y : 1 + y + side, 1 + x : 1 + x + side] for y, x in VIEWS]
    return [
        (weight / 2, view)
        for weight, image in zip(VIEW_WEIGHTS, shifted, strict=True)
        for view in (image, image[:, :, ::-1])
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose largest score is the label's."""
    return float((scores.argmax(-1) == labels).mean())


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log likelihood in nats."""
    return float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean())


def per_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy over the images of each class: (classes,) float."""
    matrix = confusion_matrix(scores, labels)
    return matrix.diagonal() / matrix.sum(1).clip(1)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (classes, classes): rows are the true class, columns the answer."""
    classes = scores.shape[-1]
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, scores.argmax(-1)), 1)
    return matrix


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """Confidence against accuracy in equal-width bins of confidence.

    Returns (bins, 3): count, mean confidence, accuracy (both 0 in an empty bin).
    """
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    count, confidence, correct = (
        np.bincount(bin_of, weights, bins) for weights in (None, confidence, correct)
    )
    return np.stack([count, confidence / count.clip(1), correct / count.clip(1)], axis=1)


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> float:
    """The mean gap between confidence and accuracy (Guo et al. 2017, arXiv:1706.04599)."""
    count, confidence, correct = reliability(probabilities, labels, bins).T
    return float((count * abs(confidence - correct)).sum() / len(labels))


def threshold_of(probabilities: np.ndarray, coverage: float) -> float:
    """The confidence that the share `coverage` of the answers reaches."""
    return float(np.quantile(probabilities.max(-1), 1 - coverage))


def selective(
    probabilities: np.ndarray, labels: np.ndarray, threshold: float
) -> tuple[float, float]:
    """The share of answers that reach the threshold, and their accuracy (1 if there are none).

    Selective prediction (Geifman & El-Yaniv 2017, arXiv:1705.08500): hold back the answers that
    are most often wrong, here by softmax response.
    """
    sure = probabilities.max(-1) >= threshold
    right = accuracy(probabilities[sure], labels[sure]) if sure.any() else 1.0
    return float(sure.mean()), right


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature whose softmax(logits / temperature) has the least cross-entropy.

    Searched to 0.1 % between 0.05 and 20 (Guo et al. 2017, arXiv:1706.04599). The labels are held
    for true with a probability of (N + 1) / (N + 2): a few images that are all classified rightly
    would otherwise make a network sure of everything (Platt 1999).
    """
    doubt = 1 / (len(labels) + 2)
    targets = np.full(logits.shape, doubt / (logits.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(logits / np.exp(log_temperature))).sum(1).mean()

    low, high = np.log(0.05), np.log(20)
    while high - low > 1e-3:  # the loss has one minimum in log temperature: ternary search
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of `total` were seen (Wilson 1927)."""
    z = 1.96
    middle = (right + z**2 / 2) / (total + z**2)
    half = z / (total + z**2) * np.sqrt(right * (total - right) / total + z**2 / 4)
    return float(middle - half), float(middle + half)


def auroc(familiar: np.ndarray, strange: np.ndarray) -> float:
    """How often a familiar image's score is above a strange one's, ties counting half."""
    below = np.searchsorted(np.sort(strange), familiar, "left")
    not_above = np.searchsorted(np.sort(strange), familiar, "right")
    return float((below + not_above).mean() / (2 * len(strange)))

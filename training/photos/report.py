"""How good a bundle is on its photos: one self-contained HTML page, and its plots as PNG."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from rest_api.bundle import Bundle
from rest_api.engine import Outputs, judge, load_engine
from training import metrics, plots
from training.card import share
from training.evaluate import joined
from training.export import milliseconds
from training.files import replacing
from training.photos.features import predict_photos, served, view_of
from training.photos.inspect import Part, Photo

TEMPLATE = Path(__file__).with_name("report.html")
WORST = 5  # of the mistakes


def examine(
    bundle: Bundle,
    parts: Mapping[Part, Sequence[Photo]],
    others: Mapping[str, Sequence[Photo]] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """The figures of a bundle, and plots by caption; `parts` must hold "test".

    `others` are OOD photos, of no class, by the name of their set. All is measured on the network
    as it is served.
    """
    predict = load_engine(bundle)

    def outputs_of(photos: Sequence[Photo]) -> Outputs:
        return predict_photos(predict, photos, bundle)

    def answered(outputs: Outputs) -> np.ndarray:
        return ~judge(outputs, bundle).uncertain

    outputs = {part: outputs_of(photos) for part, photos in parts.items()}
    of_others = {name: outputs_of(photos) for name, photos in others.items()}
    test, probabilities = parts["test"], outputs["test"].probabilities
    class_ids = np.array([bundle.labels.index(photo.label) for photo in test])
    correct = probabilities.argmax(1) == class_ids
    known = answered(outputs["test"])
    rates = {part: float(answered(each).mean()) for part, each in outputs.items()}
    by_class = {label: correct[class_ids == i] for i, label in enumerate(bundle.labels)}
    figures = {
        "name": bundle.name,
        "test_photos": len(test),
        "accuracy": float(correct.mean()),
        "accuracy_interval": metrics.interval(int(correct.sum()), len(correct)),
        "calibration_error": metrics.expected_calibration_error(probabilities, class_ids),
        "true_positive_rate": rates,
        "milliseconds": milliseconds(predict, served([test[0]], bundle.input_size, bundle.views)),
        "megabytes": bundle.manifest["files"][bundle.engine]["bytes"] / 1e6,
        "mistaken": mistaken(probabilities, class_ids, bundle.labels),
        "classes": [of_class(label, each) for label, each in by_class.items()],
        "rows": [
            share("right (accuracy)", correct),
            *(share(f"right, {label}", each) for label, each in by_class.items()),
            share("answered (coverage)", known),
            share("right of those answered", correct[known]),
            *(
                share(f"photos of other things, {name}: answered", answered(each))
                for name, each in of_others.items()
            ),
        ],
    }
    if of_others:
        pooled = joined(list(of_others.values()))
        figures |= {
            "ood_photos": len(pooled.scores),
            "false_positive_rate": float(answered(pooled).mean()),
            "auroc": metrics.auroc(outputs["test"].scores, pooled.scores),
        }
    return figures, draw(outputs["test"], class_ids, test, bundle)


def mistaken(
    probabilities: np.ndarray, class_ids: np.ndarray, labels: Sequence[str]
) -> list[tuple[str, str, int, int]]:
    """The most frequent mistakes: class, what it was taken for, how often, of how many photos."""
    matrix = metrics.confusion_matrix(probabilities, class_ids)
    wrong = matrix * (1 - np.eye(len(labels), dtype=int))
    pairs = np.argwhere(wrong)
    ordered = sorted(pairs.tolist(), key=lambda pair: -wrong[*pair] / matrix[pair[0]].sum())
    return [
        (labels[i], labels[j], int(wrong[i, j]), int(matrix[i].sum())) for i, j in ordered[:WORST]
    ]


def of_class(label: str, correct: np.ndarray) -> dict[str, Any]:
    """The accuracy on one class, with its interval."""
    low, high = metrics.interval(int(correct.sum()), len(correct))
    right = float(correct.mean())
    return {"label": label, "photos": len(correct), "right": right, "low": low, "high": high}


def draw(
    outputs: Outputs, class_ids: np.ndarray, photos: Sequence[Photo], bundle: Bundle
) -> dict[str, Figure]:
    """Plots of the outputs for test photos, by caption."""
    labels, threshold = bundle.labels, bundle.ood.threshold if bundle.ood else -np.inf
    best, confidence = outputs.probabilities.argmax(1), outputs.probabilities.max(1)
    matrix = metrics.confusion_matrix(outputs.probabilities, class_ids)
    bins = metrics.reliability(outputs.probabilities, class_ids)
    drawings = {
        "Confusion": plots.confusion(matrix, labels),
        "Calibration": plots.reliability({"test photos": bins}),
        "Coverage": plots.accuracy_coverage(outputs.scores, best == class_ids, threshold),
    }
    wrong = np.flatnonzero(best != class_ids)
    worst = wrong[np.argsort(-confidence[wrong])][:16]
    if len(worst):
        drawings["Mistakes"] = plots.pictures(
            np.stack([view_of(photos[i], 0, 64, "letterbox") for i in worst]),
            [f"{labels[best[i]]} {confidence[i]:.0%}\nis {labels[class_ids[i]]}" for i in worst],
        )
    return drawings


def as_lines(figures: Mapping[str, Any]) -> dict[str, str]:
    """The figures of `examine` for printing."""
    low, high = figures["accuracy_interval"]
    lines = {
        "test photos": f"{figures['test_photos']}",
        "accuracy": f"{figures['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})",
        "expected calibration error": f"{figures['calibration_error']:.1%}",
        "answered (coverage)": ", ".join(
            f"{part} {rate:.1%}" for part, rate in figures["true_positive_rate"].items()
        ),
        "one photo, on one thread": f"{figures['milliseconds']:.1f} ms",
        "network": f"{figures['megabytes']:.1f} MB",
    }
    if "ood_photos" in figures:
        lines |= {
            "OOD photos": f"{figures['ood_photos']}",
            "of them answered": f"{figures['false_positive_rate']:.1%}",
            "OOD detection, AUROC": f"{figures['auroc']:.3f}",
        }
    return lines | {"total time": f"{figures['seconds'] / 60:.1f} minutes"}


def write_report(
    folder: Path, figures: Mapping[str, Any], drawings: Mapping[str, Figure], survey: str
) -> Path:
    """Write report.html, and a PNG of each plot. Returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for caption, figure in drawings.items():
        path = folder / f"{caption.lower()}.png"
        plots.save(figure, path)
        sources[caption] = base64.b64encode(path.read_bytes()).decode()
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = {"figures": figures, "lines": as_lines(figures), "pictures": sources, "survey": survey}
    with replacing(folder / "report.html") as part:
        part.write_text(template.render(shown), encoding="utf-8")
    return folder / "report.html"

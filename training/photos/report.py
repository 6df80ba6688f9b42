"""What a trained classifier is worth on its test photos: one self-contained page, and PNGs."""

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from rest_api.bundle import Bundle
from rest_api.engine import Outputs, load_engine
from training import metrics, plots
from training.files import replacing
from training.photos.features import answers_to, view_of
from training.photos.inspect import Photo

TEMPLATE = Path(__file__).with_name("report.html")
TIMED = 50  # photos


def examine(
    bundle: Bundle, test: Sequence[Photo], strangers: Sequence[Photo]
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """The figures of a bundle on photos of its classes and of none, and pictures of them.

    All is measured on the 8-bit network, through the code that serves it.
    """
    predict = load_engine(bundle)
    answers = answers_to(predict, test, bundle.input_size, bundle.resize)
    numbers = np.array([bundle.labels.index(photo.label) for photo in test])
    right = answers.probabilities.argmax(1) == numbers
    low, high = metrics.interval(int(right.sum()), len(right))
    image = view_of(test[0], 0, bundle.input_size, bundle.resize)[None]
    start = time.perf_counter()
    for _ in range(TIMED):
        predict(image)
    figures = {
        "name": bundle.name,
        "test_photos": len(numbers),
        "accuracy": float(right.mean()),
        "accuracy_interval": (low, high),
        "calibration_error": metrics.expected_calibration_error(answers.probabilities, numbers),
        "accepted": float((answers.scores >= bundle.threshold).mean()),
        "milliseconds": 1000 * (time.perf_counter() - start) / TIMED,
        "megabytes": bundle.manifest["files"]["litert"]["bytes"] / 1e6,
        "classes": [
            of_class(label, right[numbers == number]) for number, label in enumerate(bundle.labels)
        ],
    }
    if strangers:
        strange = answers_to(predict, strangers, bundle.input_size, bundle.resize)
        figures |= {
            "background_photos": len(strangers),
            "background_accepted": float((strange.scores >= bundle.threshold).mean()),
            "background_auroc": metrics.auroc(answers.scores, strange.scores),
        }
    return figures, draw(answers, numbers, test, bundle.labels)


def of_class(label: str, right: np.ndarray) -> dict[str, Any]:
    """The accuracy of one class, with its interval."""
    low, high = metrics.interval(int(right.sum()), len(right))
    share = float(right.mean())
    return {"label": label, "photos": len(right), "right": share, "low": low, "high": high}


def draw(
    answers: Outputs, numbers: np.ndarray, photos: Sequence[Photo], labels: Sequence[str]
) -> dict[str, Figure]:
    """Figures by their captions."""
    best, confidence = answers.probabilities.argmax(1), answers.probabilities.max(1)
    matrix = metrics.confusion_matrix(answers.probabilities, numbers)
    bins = metrics.reliability(answers.probabilities, numbers)
    figures = {
        "Confusion": plots.confusion(matrix, labels),
        "Calibration": plots.reliability({"test photos": bins}),
        "Rejection": plots.accuracy_coverage(answers.scores, best == numbers),
    }
    wrong = np.flatnonzero(best != numbers)
    worst = wrong[np.argsort(-confidence[wrong])][:16]
    if len(worst):
        figures["Mistakes"] = plots.pictures(
            np.stack([view_of(photos[i], 0, 64, "pad") for i in worst]),
            [f"{labels[best[i]]} {confidence[i]:.0%}\nis {labels[numbers[i]]}" for i in worst],
        )
    return figures


def as_lines(figures: Mapping[str, Any]) -> dict[str, str]:
    """The figures of `examine` as a person reads them."""
    low, high = figures["accuracy_interval"]
    lines = {
        "test photos": f"{figures['test_photos']}",
        "accuracy": f"{figures['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})",
        "expected calibration error": f"{figures['calibration_error']:.1%}",
        "accepted as one of the classes": f"{figures['accepted']:.1%}",
        "one photo, on one thread": f"{figures['milliseconds']:.1f} ms",
        "8-bit network": f"{figures['megabytes']:.1f} MB",
    }
    if "background_photos" in figures:
        lines |= {
            "photos of the background": f"{figures['background_photos']}",
            "of them accepted": f"{figures['background_accepted']:.1%}",
            "told apart (AUROC)": f"{figures['background_auroc']:.3f}",
        }
    return lines | {"all of it took": f"{figures['seconds'] / 60:.1f} minutes"}


def write_report(
    folder: Path, figures: Mapping[str, Any], pictures: Mapping[str, Figure], survey: str
) -> Path:
    """Write report.html, and a PNG for each picture."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for caption, figure in pictures.items():
        path = folder / f"{caption.lower()}.png"
        plots.save(figure, path)
        sources[caption] = base64.b64encode(path.read_bytes()).decode()
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    with replacing(folder / "report.html") as part:
        part.write_text(
            template.render(
                title=figures["name"],
                lines=as_lines(figures),
                classes=figures["classes"],
                pictures=sources,
                survey=survey,
            ),
            encoding="utf-8",
        )
    return folder / "report.html"

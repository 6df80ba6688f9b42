"""What a trained classifier is worth: one self-contained page, and its figures as PNG."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from training import metrics, plots
from training.files import replacing

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    folder: Path,
    title: str,
    facts: Mapping[str, str],
    survey: str,
    figures: Mapping[str, Figure],
    confusion: np.ndarray,
    labels: Sequence[str],
) -> Path:
    """Write report.html and a PNG for each of `figures`, which are named by their captions.

    `confusion` is (classes, classes), counts of test photos by class and answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for caption, figure in figures.items():
        path = folder / f"{caption.lower().replace(' ', '_')}.png"
        plots.save(figure, path)
        sources[caption] = base64.b64encode(path.read_bytes()).decode()
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        facts=facts,
        survey=survey,
        classes=[of_class(*row) for row in zip(labels, confusion, range(len(labels)), strict=True)],
        figures=sources,
    )
    with replacing(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return folder / "report.html"


def of_class(label: str, answers: np.ndarray, number: int) -> dict[str, str]:
    """A row of the table of classes."""
    right, photos = int(answers[number]), int(answers.sum())
    low, high = metrics.interval(right, photos)
    return {
        "label": label,
        "photos": str(photos),
        "right": f"{right / photos:.1%}",
        "low": f"{low:.1%}",
        "high": f"{high:.1%}",
    }

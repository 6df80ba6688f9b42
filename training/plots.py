"""Figures, in colours that the colour-blind can tell apart (Okabe & Ito 2008)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from training.files import replacing

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"

matplotlib.rcParams.update(
    {
        "font.size": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "savefig.dpi": 120,
        "svg.hashsalt": "cifar10-cnn",  # the same figure gives the same file
    }
)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the ending of `path`."""
    with replacing(path) as part:
        figure.savefig(part, bbox_inches="tight")


def curves(history: Sequence[dict], title: str) -> Figure:
    """Loss and accuracy over wall-clock time, a dot an epoch.

    Training figures are those of augmented images with smoothed labels, so that its loss lies
    above, and early on its accuracy below, what the validation images show.
    """
    minutes = [row["seconds"] / 60 for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    panels = zip(
        figure.subplots(1, 2),
        ("accuracy", "loss"),
        ("accuracy (%)", "cross-entropy (nats)"),
        (100, 1),
        strict=True,
    )
    for axes, key, label, scale in panels:
        for prefix, name, colour, line in (
            ("", "training, augmented", BLUE, "--"),
            ("val_", "validation", ORANGE, "-"),
        ):
            if prefix + key in history[0]:
                values = [row[prefix + key] * scale for row in history]
                axes.plot(minutes, values, line, color=colour, label=name, marker="o", ms=4)
        axes.set(xlabel="wall-clock time (minutes)", ylabel=label, xlim=(0, None))
        axes.legend()
    return figure


def confusion(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    """A confusion matrix with its counts; rows are the true classes."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots()
    share = matrix / matrix.sum(1, keepdims=True).clip(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, count or "", ha="center", va="center", color=colour, fontsize=10)
    axes.grid(False)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="answer", ylabel="true class", title="Images per true class and answer")
    return figure


def reliability(bins: np.ndarray, error: float) -> Figure:
    """Accuracy against confidence; `bins` as metrics.reliability returns them."""
    count, confidence, correct = bins[bins[:, 0] > 0].T
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
    axes.plot(confidence * 100, correct * 100, color=BLUE, zorder=2)
    axes.scatter(
        confidence * 100, correct * 100, 20 + 400 * count / count.sum(), BLUE, label="this network"
    )
    axes.set(
        xlabel="confidence (%)",
        ylabel="accuracy (%)",
        title=f"Expected calibration error {error:.1%}",
    )
    axes.legend()
    return figure

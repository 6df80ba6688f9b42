"""Figures, in colours that the colour-blind can tell apart (Okabe & Ito 2008)."""

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogLocator

from training.files import replacing

if TYPE_CHECKING:
    from IPython.display import DisplayObject

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
MAX_COUNTED = 60  # classes of a confusion matrix that shows its counts
MANY = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", ORANGE, "#000000")

matplotlib.rcParams.update(
    {
        "font.size": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "savefig.dpi": 120,
        "text.parse_math": False,  # a label may hold a dollar sign
    }
)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with replacing(path) as part:
        figure.savefig(part, bbox_inches="tight")


def show(figure: Figure, name: str) -> "DisplayObject":
    """Keep a figure as images/NAME.png and show that in a notebook."""
    from IPython.display import Image

    path = Path("images", f"{name}.png")
    save(figure, path)
    return Image(str(path))


def legible(labels: Sequence[str]) -> list[str]:
    """Labels without characters that no font here can draw, such as emoji: 🐸 is [frog face].

    Where the figures' own font lacks a character, another installed one that has it is added.
    """
    families = ["DejaVu Sans"]
    missing = {c for c in "".join(labels) if c.isprintable()}
    missing -= glyphs(font_manager.findfont(families[0]))
    for font in font_manager.fontManager.ttflist if missing else []:
        usable = not font.name.startswith("Last Resort") and "Color" not in font.name
        if usable and (found := missing & glyphs(font.fname)):
            families.append(font.name)
            missing -= found
    matplotlib.rcParams["font.family"] = families
    names = {ord(c): f"[{name_of(c)}]" for c in missing}
    return [label.translate(names) for label in labels]


def name_of(character: str) -> str:
    """A symbol's name in Unicode, and the number of any other character."""
    is_symbol = unicodedata.category(character) == "So"
    return unicodedata.name(character).lower() if is_symbol else f"U+{ord(character):04X}"


def glyphs(font: str) -> set[str]:
    """The characters that a font file can draw."""
    return {chr(code) for code in FT2Font(font).get_charmap()}


def grid(
    count: int, columns: int, width: float, height: float, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of that size in inches, which may `share` their axes."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count].tolist()


def log_x_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """Make the x axis logarithmic, with these ticks alone."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def progress(
    axes: Axes, x: Sequence[float], history: Sequence[dict], key: str, scale: float, **style: Any
) -> None:
    """Draw a figure of training, dashed, and of validation, solid, where it was measured."""
    looks = (key, "training", BLUE, "--"), (f"val_{key}", "validation", ORANGE, "-")
    for column, label, colour, line in looks:
        if column in history[0]:
            values = [scale * row[column] for row in history]
            axes.plot(x, values, line, color=colour, label=label, **style)


def curves(history: Sequence[dict], title: str) -> Figure:
    """Loss and accuracy over wall-clock time, a dot an epoch.

    Training figures are those of augmented images with smoothed labels, where the recipe says so
    of the hardest ones alone, so that its loss lies above, and its accuracy below, what the
    validation images show.
    """
    minutes = [row["seconds"] / 60 for row in history]
    figure, (left, right) = grid(2, 2, 4.5, 3.6)
    figure.suptitle(f"{title} (training: on augmented images)")
    progress(left, minutes, history, "accuracy", 100, marker="o", ms=4)
    progress(right, minutes, history, "loss", 1, marker="o", ms=4)
    for axes, label in (left, "accuracy (%)"), (right, "cross-entropy (nats)"):
        axes.set(xlabel="wall-clock time (minutes)", ylabel=label, xlim=(0, None))
        axes.legend()
    return figure


def confusion(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    """A confusion matrix, with its counts if they are legible; rows are the true classes."""
    side = max(6.4, 0.35 * min(len(labels), MAX_COUNTED))  # inches
    figure, (axes,) = grid(1, 1, side + 0.8, side)
    share = matrix / matrix.sum(1, keepdims=True).clip(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix) if len(labels) <= MAX_COUNTED else ():
        colour = "white" if share[row, column] > 0.5 else "black"
        count = matrix[row, column]
        axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=10)
    axes.grid(False)
    ticks, names = range(len(labels)), legible(labels)
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted class", ylabel="true class", title="Number of images")
    return figure


def reliability(bins: Mapping[str, np.ndarray]) -> Figure:
    """Accuracy against confidence: a panel for each named result of metrics.reliability."""
    figure = Figure(figsize=(3.6 * len(bins) + 1.2, 4.6), layout="constrained")
    panels = figure.subplots(1, len(bins), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, bins.items(), strict=True):
        count, confidence, correct = rows[rows[:, 0] > 0].T
        share = count / count.sum()
        error = (share * abs(confidence - correct)).sum()
        confidence, correct = confidence * 100, correct * 100
        axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
        axes.plot(confidence, correct, color=BLUE, zorder=2)
        axes.scatter(confidence, correct, 20 + 400 * share, BLUE, label="this network")
        axes.set(xlabel="confidence (%)", title=f"{name}\nexpected calibration error {error:.1%}")
    panels[0].set_ylabel("accuracy (%)")
    panels[0].legend()
    return figure


def against_epochs(histories: Mapping[str, Sequence[dict]], columns: int = 3) -> Figure:
    """Training and validation accuracy by epoch: a panel for each named history."""
    figure, panels = grid(len(histories), columns, 3.6, 3.2, share=True)
    for axes, (name, history) in zip(panels, histories.items(), strict=True):
        progress(axes, [row["epoch"] for row in history], history, "accuracy", 100)
        axes.set_title(name, fontsize=12)
        axes.locator_params("x", integer=True)
    figure.supxlabel("epoch")
    figure.supylabel("accuracy (%)")
    panels[0].legend(loc="lower right")
    return figure


def dots(values: Mapping[str, float], reference: str, spread: float, label: str) -> Figure:
    """A dot for each accuracy (0..1), the reference's marked by a line through all of them.

    The grey band, `spread` each way, is the reference's standard error.
    """
    figure, (axes,) = grid(1, 1, 7.2, 0.5 * len(values) + 1)
    middle = 100 * values[reference]
    axes.axvspan(middle - 100 * spread, middle + 100 * spread, color=GREY, alpha=0.25, lw=0)
    axes.axvline(middle, color="black", lw=1)
    for name, value in values.items():
        axes.scatter(100 * value, name, 60, GREY if name == reference else BLUE, zorder=2)
        text, place = f"{100 * value:.1f}", (100 * value, name)
        axes.annotate(text, place, (8, 0), textcoords="offset points", va="center")
    axes.set(xlabel=label)
    axes.margins(x=0.1, y=0.12)
    axes.invert_yaxis()
    return figure


def pictures(images: np.ndarray, titles: Sequence[str], columns: int = 8) -> Figure:
    """A grid of images (N, H, W, 3), values 0..255, each under its title."""
    figure, panels = grid(len(images), columns, 1.25, 1.5)
    for axes, image, title in zip(panels, images, legible(titles), strict=True):
        axes.axis("off")
        axes.imshow(image.astype(np.uint8), interpolation="nearest")
        axes.set_title(title, fontsize=9)
    return figure


def race(histories: Mapping[str, Sequence[Sequence[dict]]]) -> Figure:
    """Validation accuracy against wall-clock time on a log scale.

    `histories` has one for each seed: a faint line each, a bold one for their mean.
    """
    figure, (axes,) = grid(1, 1, 8, 4.4)
    looks = zip(histories.items(), (BLUE, ORANGE, GREEN), "osD", strict=False)
    for (name, seeds), colour, marker in looks:
        rows = [[(row["seconds"] / 60, row["val_accuracy"] * 100) for row in h] for h in seeds]
        minutes, percent = np.array(rows).transpose(2, 1, 0)  # each (epochs, seeds)
        axes.plot(minutes, percent, color=colour, lw=1, alpha=0.4)
        minutes, percent = minutes.mean(1), percent.mean(1)
        mean = f", mean of {len(seeds)}" if len(seeds) > 1 else ""
        label = f"{name}: {percent[-1]:.1f} % in {minutes[-1]:.0f} minutes{mean}"
        axes.plot(minutes, percent, color=colour, marker=marker, ms=4, label=label)
    axes.legend(loc="lower right", labelcolor="linecolor", frameon=False)
    log_x_axis(axes, [1, 2, 5, 10, 20, 50, 100])
    axes.set(xlabel="wall-clock time on 2 CPU cores (minutes, log scale)")
    axes.set(ylabel="validation accuracy (%)", ylim=(40, 100))
    return figure


def steps(history: Sequence[dict], rates: Mapping[int, float], title: str) -> Figure:
    """Training and validation accuracy by epoch, a line where the learning rate steps down.

    `rates` is {epoch: learning rate from there on}.
    """
    figure = against_epochs({title: history}, columns=1)
    figure.set_size_inches(8, 4.2)
    (axes,) = figure.axes
    axes.set_ylim(50, 100)
    for epoch, rate in rates.items():
        axes.axvline(epoch, color=GREY, linestyle=":")
        text = f"learning rate {rate:.5f}".rstrip("0")
        axes.text(epoch - 0.3, 51, text, rotation=90, color=GREY, ha="right", va="bottom")
    axes.legend(loc="upper left", frameon=True)
    return figure


def accuracy_coverage(scores: np.ndarray, correct: np.ndarray, threshold: float) -> Figure:
    """Selective accuracy against coverage, by falling score (N,); `correct` is (N,) bool."""
    kept = np.arange(1, len(scores) + 1)
    accuracy = correct[np.argsort(-scores)].cumsum() / kept
    figure, (axes,) = grid(1, 1, 6, 4)
    axes.plot(100 * kept / len(scores), 100 * accuracy, color=BLUE)
    coverage = 100 * (scores >= threshold).mean()
    axes.axvline(coverage, color=GREY, linestyle=":", label="where the threshold is set")
    low = 100 * accuracy[len(scores) // 10 :].min()
    axes.set(xlabel="coverage (%)", ylabel="selective accuracy (%)", ylim=(low - 2, 101))
    axes.legend()
    return figure


def scatter(points: np.ndarray, class_ids: np.ndarray, labels: Sequence[str]) -> Figure:
    """Points (N, 2), each in the colour and with the marker of its class."""
    figure, (axes,) = grid(1, 1, 8, 5)
    looks = zip(legible(labels), cycle(MANY), cycle("osD^vPX*"), strict=False)
    for class_id, (label, colour, marker) in enumerate(looks):
        x, y = points[class_ids == class_id].T
        axes.scatter(x, y, 22, colour, marker=marker, label=label, alpha=0.7, lw=0)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    figure.legend(loc="outside right upper")
    return figure


def growth(accuracies: Mapping[int, float]) -> Figure:
    """Validation accuracy (0..1) by the number of training photos of each class."""
    figure, (axes,) = grid(1, 1, 7, 4)
    counts, percent = list(accuracies), [100 * value for value in accuracies.values()]
    axes.plot(counts, percent, color=BLUE, marker="o")
    for count, value in zip(counts, percent, strict=True):
        axes.annotate(f"{value:.0f}", (count, value), (0, 8), textcoords="offset points")
    log_x_axis(axes, counts)
    axes.set(xlabel="training photos of each class (log scale)", ylabel="validation accuracy (%)")
    axes.margins(y=0.15)
    return figure


def costs(values: Mapping[str, float], label: str) -> Figure:
    """Horizontal bars on a log scale, each with its value."""
    figure, (axes,) = grid(1, 1, 7.2, 0.5 * len(values) + 1)
    bars = axes.barh(list(values), list(values.values()), color=BLUE)
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel=f"{label}, log scale")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return figure

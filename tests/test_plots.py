import warnings

import numpy as np
import pytest
from matplotlib import font_manager, rcParams

from training import plots


@pytest.fixture
def installed(monkeypatch):
    """The installed fonts: DejaVu Sans alone, until a test adds some."""
    own = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setitem(rcParams, "font.family", ["DejaVu Sans"])
    return own


@pytest.mark.parametrize(
    ("label", "drawn"),
    [
        ("cat", "cat"),
        ("Fußgänger 95%\nis cat", "Fußgänger 95%\nis cat"),
        ("\U0001f438 pond", "[frog face] pond"),
        ("\U00012000", "[U+12000]"),
    ],
)
def test_characters_that_no_font_can_draw_are_named(installed, label, drawn):
    assert plots.legible([label]) == [drawn]


def test_another_installed_font_draws_what_the_own_one_lacks(installed, monkeypatch):
    monkeypatch.setattr(plots, "glyphs", lambda path: set("cat") if "DejaVu" in path else {"猫"})
    installed.append(font_manager.FontEntry(fname="/fonts/neko.ttf", name="Neko"))
    assert plots.legible(["cat", "猫"]) == ["cat", "猫"]
    assert rcParams["font.family"] == ["DejaVu Sans", "Neko"]


def test_dollar_signs_in_labels_are_drawn_as_they_are(tmp_path):
    plots.save(plots.confusion(np.eye(2, dtype=int), ["$", "$$"]), tmp_path / "confusion.png")


def test_confusion_of_many_classes_shows_no_counts():
    (few,), (many,) = (
        plots.confusion(np.eye(count, dtype=int), list(map(str, range(count)))).axes
        for count in (60, 61)
    )
    assert (len(few.texts), len(many.texts)) == (60, 0)


def test_figures_of_emoji_classes_have_no_boxes(installed, tmp_path):
    labels = ["\U0001f438", "\U0001f431 cat", "dog"]
    images = np.zeros((3, 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        for figure in (
            plots.confusion(np.eye(3, dtype=int), labels),
            plots.pictures(images, labels),
            plots.scatter(np.zeros((3, 2)), np.arange(3), labels),
        ):
            plots.save(figure, tmp_path / "figure.png")

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rest_api.bundle import OodScore, View, load_bundle
from rest_api.engine import Outputs, load_engine, mean_over_views
from rest_api.images import to_views
from rest_api.settings import DEFAULT_MODEL
from tests.support import ROOT, error_of, picture
from training.cifar10.data import load_cifar10
from training.evaluate import evaluate, in_batches, labelled_views, views_of
from training.photos.inspect import PhotosError


def test_figures_of_a_classifier_that_sees_brightness():
    """A network that predicts by the mean of the pixels, right on three of four images."""
    images = np.array([50, 50, 200, 200], np.uint8)[:, None, None, None] * np.ones(
        (1, 32, 32, 3), np.uint8
    )
    labels = np.array([0, 1, 1, 1])

    def predict(batch: np.ndarray) -> Outputs:
        bright = batch.mean((1, 2, 3)) > 128
        probabilities = np.where(bright[:, None], [0.2, 0.8], [0.8, 0.2]).astype(np.float32)
        return Outputs(probabilities, probabilities.max(1))

    bundle = replace(load_bundle(DEFAULT_MODEL), labels=("dark", "bright"), threshold=0.0, ood=None)
    figures = evaluate(predict, bundle, images, labels)
    assert figures["accuracy"] == figures["accuracy_tta"] == 0.75
    assert figures["accuracy_per_class"] == {"dark": 1.0, "bright": pytest.approx(2 / 3)}
    assert figures["confusion"] == [[1, 0], [1, 2]]
    assert (figures["coverage"], figures["selective_accuracy"]) == (1, 0.75)
    assert figures["expected_calibration_error"] == pytest.approx(0.05)
    assert json.loads(json.dumps(figures)) == figures


def test_coverage_counts_what_neither_threshold_rejects():
    """Two views: an image and its mirror image, whose mean logits and scores are judged."""
    images = np.zeros((4, 32, 32, 3), np.uint8)
    images[:, :, :16] = np.array([200, 200, 100, 40])[:, None, None, None]

    def predict(batch: np.ndarray) -> Outputs:
        left = batch[:, :, :16].mean((1, 2, 3)).astype(np.float32)
        confident = 0.5 + left[:, None] / 400
        return Outputs(np.hstack([confident, 1 - confident]), left)

    views = View("stretch"), View("center_crop", mirror=True)
    bundle = load_bundle(DEFAULT_MODEL)
    bundle = replace(bundle, labels=("left", "right"), views=views, ood=OodScore("left", 30))
    labels = np.array([0, 1, 0, 0])
    for threshold, coverage, accuracy in ((0.5, 0.75, 2 / 3), (0.7, 0.5, 0.5)):
        figures = evaluate(predict, replace(bundle, threshold=threshold), images, labels)
        assert figures["coverage"] == coverage
        assert figures["selective_accuracy"] == pytest.approx(accuracy)


def test_photos_of_a_folder_a_class_are_read_as_views(tmp_path):
    for label, seed in (("cat", 1), ("dog", 2), ("dog", 3)):
        (tmp_path / label).mkdir(exist_ok=True)
        picture(seed).save(tmp_path / label / f"{seed}.png")
    views = View("letterbox"), View("center_crop", mirror=True)
    shown, class_ids = labelled_views(tmp_path, ["dog", "cat"], 32, views)
    assert class_ids.tolist() == [1, 0, 0]
    for view, expected in zip(shown, to_views(picture(2), 32, views), strict=True):
        np.testing.assert_array_equal(view[1], expected)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    with pytest.raises(PhotosError, match=r"notes\.txt: This is not an image"):
        labelled_views(tmp_path, ["dog", "cat"], 32, views)
    with pytest.raises(PhotosError, match="must be named as the model's labels"):
        labelled_views(tmp_path, ["dog", "frog"], 32, views)


def test_command_prints_figures_and_writes_plots(small_cifar, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "training.evaluate", str(DEFAULT_MODEL)]
    run = subprocess.run(
        [*command, "--data", str(small_cifar), "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in ("accuracy", "with test-time augmentation", "expected calibration error", "frog"):
        assert line in run.stdout
    assert {path.name for path in output.iterdir()} == {
        "confusion.png",
        "reliability.png",
        "evaluation.json",
    }
    assert json.loads((output / "evaluation.json").read_text())["images"] == 40


def test_missing_bundle_ends_with_one_clear_line(tmp_path):
    assert "is not a model bundle" in error_of("training.evaluate", tmp_path)


def test_bundle_of_other_classes_is_refused():
    scenes = DEFAULT_MODEL.with_name("scenes")
    assert error_of("training.evaluate", scenes).endswith("CIFAR-10's images of 32 pixels.")


def test_bundle_of_other_sizes_is_refused(tmp_path):
    manifest = json.loads((DEFAULT_MODEL / "model.json").read_text()) | {"input_size": 256}
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    assert error_of("training.evaluate", tmp_path).endswith("CIFAR-10's images of 32 pixels.")


def test_the_engine_that_serves_the_bundle_is_measured(tmp_path):
    manifest = json.loads((DEFAULT_MODEL / "model.json").read_text()) | {"engine": "litert-float32"}
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    error = error_of("training.evaluate", tmp_path)
    assert "no file for the engine 'litert-float32'" in error


def test_progress_bar_is_for_terminals_alone(capfd):
    predict = load_engine(load_bundle(DEFAULT_MODEL))
    assert len(in_batches(predict, np.zeros((3, 32, 32, 3), np.uint8), 2).probabilities) == 3
    assert capfd.readouterr().err == ""


def test_shipped_bundle_has_the_accuracy_that_it_states(real_cifar):
    bundle = load_bundle(DEFAULT_MODEL)
    predict = load_engine(bundle)
    _, (images, labels) = load_cifar10(real_cifar)
    shown = views_of(map(Image.fromarray, images), bundle.input_size, bundle.views)
    outputs = mean_over_views([in_batches(predict, view) for view in shown])
    measured = (outputs.probabilities.argmax(1) == labels).mean()
    assert measured == pytest.approx(bundle.manifest["accuracy"]["litert"], abs=2e-4)

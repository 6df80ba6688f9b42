import json
import subprocess
import sys

import numpy as np
import pytest

from rest_api.bundle import load_bundle
from rest_api.engine import Outputs
from rest_api.settings import DEFAULT_MODEL
from tests.support import ROOT, error_of
from training.cifar10.data import load_cifar10
from training.evaluate import evaluate


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

    figures = evaluate(predict, images, labels, ("dark", "bright"))
    assert figures["accuracy"] == figures["accuracy_tta"] == 0.75
    assert figures["accuracy_per_class"] == {"dark": 1.0, "bright": pytest.approx(2 / 3)}
    assert figures["confusion"] == [[1, 0], [1, 2]]
    assert (figures["coverage"], figures["selective_accuracy"]) == (1, 0.75)
    assert figures["expected_calibration_error"] == pytest.approx(0.05)
    assert json.loads(json.dumps(figures)) == figures


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


def test_shipped_bundle_has_the_accuracy_that_it_states(real_cifar):
    from rest_api.engine import load_engine

    bundle = load_bundle(DEFAULT_MODEL)
    predict = load_engine(bundle)
    _, (images, labels) = load_cifar10(real_cifar)
    right = [predict(images[i : i + 500]).probabilities.argmax(1) for i in range(0, 10_000, 500)]
    measured = (np.concatenate(right) == labels).mean()
    assert measured == pytest.approx(bundle.manifest["accuracy"]["litert"], abs=2e-4)

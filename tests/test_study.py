import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.support import ROOT
from training.cifar10 import records, study, train
from training.cifar10.recipes import Recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", study.VARIANTS)
def test_every_variant_of_the_study_takes_a_training_step(name):
    recipe = replace(study.VARIANTS[name], dtype="float32")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    network = train.build(recipe, images, 0, 10, recipe.epochs)
    targets = np.eye(network.output_shape[-1], dtype=np.float32)[:8]
    logs = network.train_on_batch(images, targets, return_dict=True)
    assert np.isfinite(logs["loss"])


def settings(recipe: Recipe) -> dict[str, object]:
    """What decides a training, by name: arguments of partial functions, the optimizer's numbers."""
    optimizer = recipe.optimizer(10, recipe.epochs)
    found = vars(recipe) | {"optimizer": type(optimizer), "rate": float(optimizer.learning_rate)}
    numbers = {k: v for k, v in vars(optimizer).items() if isinstance(v, int | float)}
    found |= {f"optimizer.{name}": value for name, value in numbers.items()}
    for name in ("network", "initialise"):
        if isinstance(found[name], partial):
            found |= {f"{name}.{k}": v for k, v in found[name].keywords.items()}
            found[name] = found[name].func, found[name].args
        else:
            found[name] = found[name], ()
    return found


@pytest.mark.parametrize(
    ("variant", "other", "difference"),
    [
        ("batch-norm", "unregularised", {"network.batch_norm"}),
        ("l2", "unregularised", {"network.l2"}),
        ("dropout", "unregularised", {"network.dropout"}),
        ("augmentation", "unregularised", {"augmentation"}),
        ("fast-without-whitening", "fast", {"initialise.whitening"}),
        ("fast-without-dirac", "fast", {"initialise.dirac"}),
        ("fast-without-bias-scale", "fast", {"optimizer.bias_scale"}),
        ("fast-without-lookahead", "fast", {"lookahead"}),
        ("fast-without-label-smoothing", "fast", {"label_smoothing"}),
        ("fast-with-random-flip", "fast", {"augmentation"}),
        ("street-boxes", "street-crops", {"augmentation"}),
        ("street-light", "street-boxes", {"augmentation"}),
        ("street-outliers", "street-light", {"network.classes", "outliers"}),
    ],
)
def test_variant_differs_from_what_it_is_measured_against_in_one_thing(variant, other, difference):
    one, two = settings(study.VARIANTS[variant]), settings(study.VARIANTS[other])
    assert {key for key in one | two if one.get(key) != two.get(key)} == difference


@pytest.mark.slow
def test_unknown_variant_is_refused_with_the_known_ones():
    run = subprocess.run(
        [sys.executable, "-m", "training.study", "blocks-4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "blocks-4" in run.stderr
    assert "blocks-3" in run.stderr


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory, and records, of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records")
    return tmp_path


def test_recorded_run_is_loaded_and_not_trained(elsewhere, capsys):
    (elsewhere / "records").mkdir()
    result = {"epochs": 12, "date": "2026-01-01", "accuracy": 0.5}
    (elsewhere / "records" / "l2-seed0.json").write_text(json.dumps(result))
    (elsewhere / "records" / "l2-seed0.csv").write_text("epoch,accuracy\n1,0.4\n2,0.5\n")
    record = records.load("l2", study.VARIANTS["l2"])
    assert record.result == result
    assert record.column("accuracy") == [0.4, 0.5]
    assert "12 epochs of 2026-01-01" in capsys.readouterr().out
    assert not (elsewhere / "runs").exists()


def test_run_without_record_or_asked_for_anew_is_trained(elsewhere, small_cifar, monkeypatch):
    monkeypatch.setenv("CIFAR10_DIR", str(small_cifar))
    monkeypatch.setenv("EPOCHS", "1")
    record = records.load("blocks-1", study.VARIANTS["blocks-1"], seed=3)
    assert record.result["seed"] == 3
    assert len(record.history) == 1
    assert (elsewhere / "runs" / "blocks-1-seed3" / "result.json").exists()
    (elsewhere / "records").mkdir()
    (elsewhere / "records" / "blocks-1-seed3.json").write_text("{}")
    monkeypatch.setenv("RERUN", "1")
    assert records.load("blocks-1", study.VARIANTS["blocks-1"], seed=3).result["seed"] == 3

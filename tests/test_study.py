import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from training.cifar10 import records, study, train


@pytest.mark.parametrize("name", study.VARIANTS)
def test_every_variant_of_the_study_takes_a_training_step(name):
    recipe = study.VARIANTS[name]
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    network = train.build(recipe, images, 0, 10, recipe.epochs)
    loss, _ = network.train_on_batch(images, np.eye(10, dtype=np.float32)[:8])
    assert np.isfinite(loss)


def test_variants_differ_from_what_they_are_measured_against_in_one_thing():
    def differences(one, other) -> set[str]:
        return {key for key in vars(one) if vars(one)[key] != vars(other)[key]} - {"optimizer"}

    baseline, fast = study.VARIANTS["blocks-3"], study.VARIANTS["fast"]
    for name in ("batch-norm", "l2", "dropout"):
        assert differences(study.VARIANTS[name], baseline) == {"network"}
    assert differences(study.VARIANTS["augmentation"], baseline) <= {"augmentation", "network"}
    assert differences(study.VARIANTS["fast-without-lookahead"], fast) == {"lookahead"}
    assert differences(study.VARIANTS["fast-without-whitening"], fast) == {"initialise"}
    assert differences(study.VARIANTS["fast-without-bias-scale"], fast) == set()
    assert differences(study.VARIANTS["fast-with-random-flip"], fast) == {"augmentation"}


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

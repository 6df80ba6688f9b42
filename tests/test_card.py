"""The model card of a bundle."""

import json
import shutil
import subprocess
import sys

import pytest

from rest_api.bundle import load_bundle
from rest_api.settings import DEFAULT_MODEL
from tests.support import ROOT, error_of
from training.card import NOTICE, card, proportion, table

FIGURES = ROOT / "benchmarks" / "quality" / "records" / "cifar10-photos.json"


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(DEFAULT_MODEL, tmp_path / "bundle")


def test_command_writes_the_card_of_a_bundle_with_its_figures_on_photos(bundle):
    command = [sys.executable, "-m", "training.card", str(bundle), "--figures", str(FIGURES)]
    subprocess.run([*command, "--source", "Photos of ours."], cwd=ROOT, check=True)
    text = (bundle / "CARD.md").read_text(encoding="utf-8")
    n, share, interval = json.loads(FIGURES.read_text())["figures"]["right (accuracy)"]
    assert f"| photos: right (accuracy) | {n} | {share} | {interval} |" in text
    assert "Photos of ours." in text


def test_figures_of_another_version_are_refused(bundle, tmp_path):
    record = json.loads(FIGURES.read_text()) | {"version": "another"}
    (tmp_path / "figures.json").write_text(json.dumps(record))
    error = error_of("training.card", bundle, "--figures", tmp_path / "figures.json")
    assert error.endswith(f"is of another, not {load_bundle(bundle).version}.")
    assert "is not a model bundle" in error_of("training.card", tmp_path)


def test_what_a_card_lacks_is_named(bundle):
    manifest = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps(manifest | {"training": {}}))
    assert "a card needs 'photos', which model.json" in error_of("training.card", bundle)
    del manifest["accuracy"]
    (bundle / "model.json").write_text(json.dumps(manifest))
    assert "a card needs 'accuracy', which model.json" in error_of("training.card", bundle)


def test_file_without_figures_is_named(bundle, tmp_path):
    (tmp_path / "figures.json").write_text("none")
    error = error_of("training.card", bundle, "--figures", tmp_path / "figures.json")
    assert "figures.json is no file of figures" in error


def test_shares_have_their_wilson_interval():
    assert proportion("right", 90, 100) == ("right", "100", "90.0%", "82.6% to 94.5%")


def test_card_says_what_the_bundle_cannot_do():
    manifest = load_bundle(DEFAULT_MODEL).manifest
    text = card(manifest, [], ["cat taken for dog: 3 of 40 test photos"])
    assert "- cat taken for dog: 3 of 40 test photos" in text
    without = {key: value for key, value in manifest.items() if key not in ("ood", "uncertainty")}
    assert "sees one of its classes in every picture" in card(without, [])
    assert "no threshold for the probability" in card(without, [])
    assert "Both together" in text
    assert "Both together" not in card(without, [])


def test_network_with_weights_of_others_carries_their_notice():
    manifest = load_bundle(DEFAULT_MODEL).manifest
    training = {
        "photos": {"train": 70, "validation": 15, "test": 15},
        "tuned_epochs": 0,
        "backbone": "efficientnetlite0",
    }
    assert NOTICE in card(manifest | {"training": training}, [])
    assert NOTICE not in card(manifest, [])
    assert NOTICE not in card(manifest | {"training": training | {"backbone": "vgg16"}}, [])


def test_name_of_a_class_divides_no_cell():
    (*_, row) = table([("right, cats | dogs", "3", "66.7%", "20.8% to 93.9%")]).splitlines()
    assert row == r"| right, cats \| dogs | 3 | 66.7% | 20.8% to 93.9% |"


def test_share_of_no_photos_is_left_empty():
    assert proportion("right of those answered", 0, 0) == ("right of those answered", "0", "", "")

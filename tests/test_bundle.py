import json
import shutil

import pytest

from rest_api.bundle import BundleError, OodScore, View, load_bundle
from rest_api.engine import load_engine
from rest_api.settings import DEFAULT_MODEL


@pytest.fixture
def bundle(tmp_path):
    """A copy of the shipped bundle, to damage."""
    return shutil.copytree(DEFAULT_MODEL, tmp_path / "bundle")


def edit(bundle, **changes):
    manifest = json.loads((bundle / "model.json").read_text())
    for key, value in changes.items():
        if value is None:
            del manifest[key]
        else:
            manifest[key] = value
    (bundle / "model.json").write_text(json.dumps(manifest))


def test_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"holds no model\.json"):
        load_bundle(tmp_path)


def test_manifest_that_is_no_json_is_refused(bundle):
    (bundle / "model.json").write_text('{"schema": 1,')
    with pytest.raises(BundleError, match="not readable JSON"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema": 3}, "'schema' is 3, this program reads 1 and 2"),
        ({"labels": None}, "'labels' is missing"),
        ({"labels": ["frog"]}, "at least two different names"),
        ({"labels": ["frog", "frog"]}, "at least two different names"),
        ({"labels": "frog"}, "must be a list of strings"),
        ({"views": None}, "'views' is missing"),
        ({"views": []}, "'views' must be a list of one or more"),
        ({"views": [{"resize": "zoom"}]}, "'resize' is 'zoom', not one of .*'center_crop'"),
        ({"views": [{"resize": "stretch", "mirror": 1}]}, "'mirror' must be true or false"),
        ({"input_size": "32"}, "'input_size' must be a positive whole number"),
        ({"name": ""}, "'name' must be a non-empty string"),
        ({"files": {}}, "'files' names none"),
        ({"uncertainty": {"threshold": 2}}, "must be from 0 to 1"),
        ({"ood": {"score": "energy", "threshold": "low"}}, "'threshold' of 'ood' must be a num"),
        ({"ood": {"threshold": 1}}, "'score' is missing"),
        ({"schema": 1, "resize": "zoom"}, "'resize' is 'zoom', not one of .*'squash'"),
        ({"files": {"onnx": {"name": "a", "sha256": ""}}}, "unknown engine 'onnx'"),
        ({"files": {"litert": {"name": "../a", "sha256": ""}}}, "in the bundle's own folder"),
        ({"files": {"litert": {"name": "a"}}}, "'sha256' is missing"),
    ],
)
def test_manifest_that_cannot_be_served_is_refused_by_name(bundle, changes, complaint):
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=complaint):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("resize", "view"), [("squash", "stretch"), ("crop", "center_crop"), ("pad", "letterbox")]
)
def test_schema_1_is_read_as_one_view_and_a_threshold_of_the_probability(bundle, resize, view):
    uncertainty = {"threshold": 0.6}
    edit(bundle, schema=1, views=None, ood=None, resize=resize, uncertainty=uncertainty)
    read = load_bundle(bundle)
    assert read.views == (View(view, mirror=False),)
    assert read.threshold == 0.6
    assert read.ood is None
    assert "resize" not in read.manifest


def test_schema_1_with_a_score_of_the_network_is_read_as_its_ood_score(bundle):
    uncertainty = {"score": "mahalanobis", "threshold": -30.5}
    edit(bundle, schema=1, views=None, ood=None, resize="squash", uncertainty=uncertainty)
    read = load_bundle(bundle)
    assert read.ood == OodScore("mahalanobis", -30.5)
    assert read.threshold == 0


def test_views_are_read_in_their_order(bundle):
    edit(bundle, views=[{"resize": "letterbox"}, {"resize": "center_crop", "mirror": True}])
    assert load_bundle(bundle).views == (View("letterbox"), View("center_crop", mirror=True))


def test_damaged_network_file_is_refused(bundle):
    path = bundle / "model.int8.tflite"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.int8\.tflite is damaged"):
        load_engine(load_bundle(bundle))


def test_missing_network_file_is_refused(bundle):
    (bundle / "model.int8.tflite").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_engine(load_bundle(bundle))


def test_engine_that_the_bundle_lacks_is_refused_with_those_it_has(bundle):
    files = json.loads((bundle / "model.json").read_text())["files"]
    edit(bundle, files={"litert": files["litert"]})
    with pytest.raises(BundleError, match="no file for the engine 'keras'; it has litert"):
        load_engine(load_bundle(bundle), "keras")


def test_labels_that_do_not_fit_the_network_are_refused(bundle):
    edit(bundle, labels=["cat", "dog"])
    with pytest.raises(BundleError, match=r"returns 10 classes, .* names 2"):
        load_engine(load_bundle(bundle))

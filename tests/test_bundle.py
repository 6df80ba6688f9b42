import contextlib
import copy
import hashlib
import json
import random
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rest_api import api, telemetry
from rest_api.app import create_app
from rest_api.bundle import BundleError, OodScore, View, load_bundle
from rest_api.classifier import find_bundles, load_models
from rest_api.engine import load_engine
from rest_api.settings import DEFAULT_MODEL, Settings

HASH = "0" * 64


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
    with pytest.raises(BundleError, match=r"JSON is malformed|truncated"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema": 3}, "`schema` is 3, this program reads 1 and 2"),
        ({"labels": None}, "missing required field `labels`"),
        ({"labels": ["frog"]}, r"length >= 2 - at `\$.labels`"),
        ({"labels": ["frog", "frog"]}, "`labels` must differ"),
        ({"labels": "frog"}, r"Expected `array`, got `str` - at `\$.labels`"),
        ({"views": None}, "missing required field `views`"),
        ({"views": []}, r"length >= 1 - at `\$.views`"),
        ({"views": [{"resize": "zoom"}]}, "Invalid enum value 'zoom'"),
        ({"views": [{"resize": "stretch", "mirror": 1}]}, r"`bool`, got `int` - at `.*mirror`"),
        ({"input_size": "32"}, r"Expected `int`, got `str` - at `\$.input_size`"),
        ({"input_size": 1}, r"Expected `int` >= 8 - at `\$.input_size`"),
        ({"input_size": 100_000}, r"Expected `int` <= 1024 - at `\$.input_size`"),
        ({"name": ""}, r"length >= 1 - at `\$.name`"),
        ({"files": {}}, r"length >= 1 - at `\$.files`"),
        ({"files": []}, r"Expected `object`, got `array` - at `\$.files`"),
        ({"uncertainty": {"threshold": 2}}, "<= 1.0 - at .*uncertainty.threshold"),
        ({"uncertainty": {"threshold": 10**400}}, "out of range - at .*uncertainty.threshold"),
        ({"ood": {"score": "energy", "threshold": "low"}}, "Expected `float`, got `str`"),
        ({"ood": {"score": "energy", "threshold": float("nan")}}, "JSON is malformed"),
        ({"ood": {"threshold": 1}}, "missing required field `score`"),
        ({"schema": 1, "resize": "zoom"}, "`resize` is 'zoom', not one of .*'squash'"),
        ({"schema": 1, "resize": ["pad"]}, "not one of .*'squash'"),
        ({"schema": 1, "resize": "pad", "uncertainty": 3}, r"got `int` - at `\$.uncertainty`"),
        ({"files": {"onnx": {"name": "a", "sha256": HASH}}}, "Invalid enum value 'onnx'"),
        ({"files": {"litert": {"name": "../a", "sha256": HASH}}}, "named 'model.int8.tflite', not"),
        ({"files": {"litert": {"name": "a\0", "sha256": HASH}}}, "named 'model.int8.tflite', not"),
        ({"files": {"litert": {"name": "model.int8.tflite"}}}, "missing required field `sha256`"),
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
    edit(bundle, views=[{"resize": "letterbox"}, {"resize": "stretch", "mirror": True, "size": 40}])
    assert load_bundle(bundle).views == (View("letterbox"), View("stretch", mirror=True, size=40))


def test_damaged_network_file_is_refused(bundle):
    path = bundle / "model.int8.tflite"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.int8\.tflite is damaged"):
        load_engine(load_bundle(bundle))


def test_missing_network_file_is_refused(bundle):
    (bundle / "model.int8.tflite").unlink()
    with pytest.raises(BundleError, match=r"model\.int8\.tflite is missing\. Export again"):
        load_engine(load_bundle(bundle))


def test_missing_network_that_the_package_leaves_out_is_explained(bundle):
    (bundle / "model.keras").unlink()
    with pytest.raises(BundleError, match=r"keras is missing.* installed package has 8-bit .*"):
        load_engine(load_bundle(bundle), "keras")


def test_bundle_names_the_engine_that_serves_it(bundle):
    assert load_bundle(bundle).engine == "litert"
    edit(bundle, engine="keras")
    assert load_bundle(bundle).engine == "keras"
    edit(bundle, engine="litert-float32")
    with pytest.raises(BundleError, match="no file for the engine 'litert-float32'"):
        load_engine(load_bundle(bundle))
    edit(bundle, engine="onnx")
    with pytest.raises(BundleError, match="engine"):
        load_bundle(bundle)


def test_engine_that_the_bundle_lacks_is_refused_with_those_it_has(bundle):
    files = json.loads((bundle / "model.json").read_text())["files"]
    edit(bundle, files={"litert": files["litert"]})
    with pytest.raises(BundleError, match="no file for the engine 'keras'; it has litert"):
        load_engine(load_bundle(bundle), "keras")


def test_labels_that_do_not_fit_the_network_are_refused(bundle):
    edit(bundle, labels=["cat", "dog"])
    with pytest.raises(BundleError, match=r"returns 10 classes, .* names 2"):
        load_engine(load_bundle(bundle))


@pytest.mark.parametrize(
    "nested", ["[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000]
)
def test_manifest_nested_too_deeply_is_refused(bundle, nested):
    (bundle / "model.json").write_text(nested)
    with pytest.raises(BundleError, match="recursion"):
        load_bundle(bundle)


VALUES = [None, True, 0, -1, 1.5, 10**400, "", "\0", "../x", [], [1], [[]], {}, {"a": []}, 1e308]


@pytest.mark.parametrize("seed", range(10))
def test_manifest_with_any_value_replaced_is_read_or_refused(bundle, seed):
    """Fuzzing: whatever stands there, nothing but BundleError comes of it."""
    manifest = json.loads((bundle / "model.json").read_text())
    rng = random.Random(seed)  # noqa: S311
    for _ in range(200):
        changed = copy.deepcopy(manifest)
        if rng.random() < 0.3:
            changed |= {"schema": 1, "resize": rng.choice(["pad", *VALUES])}
        place = changed
        for _ in range(rng.randrange(4)):
            inner = [
                each for each in children(place).values() if isinstance(each, dict | list) and each
            ]
            place = rng.choice(inner) if inner else place
        place[rng.choice(list(children(place)))] = copy.deepcopy(rng.choice(VALUES))
        (bundle / "model.json").write_text(json.dumps(changed))
        with contextlib.suppress(BundleError):
            load_bundle(bundle)


def children(place):
    return place if isinstance(place, dict) else dict(enumerate(place))


def test_two_bundles_of_one_name_are_refused(bundle):
    settings = Settings(models=(DEFAULT_MODEL, bundle))
    with pytest.raises(BundleError, match="are both named 'cifar10'"):
        load_models(settings)


def test_reload_of_a_bad_bundle_keeps_the_old_models(bundle):
    app = create_app(Settings(models=(bundle,)))
    edit(bundle, files=[])
    app.reload()
    assert app.test_client().get("/models").get_json()["models"][0]["name"] == "cifar10"


def test_of_two_reloads_at_once_the_last_to_read_is_served(monkeypatch):
    app = create_app()
    versions = iter(("older", "newer"))
    begun = threading.Event()

    def load_models(_):
        version = next(versions)
        begun.set()
        time.sleep(0.3 if version == "older" else 0)
        return {"model": SimpleNamespace(bundle=SimpleNamespace(version=version))}

    monkeypatch.setattr(api, "load_models", load_models)
    monkeypatch.setattr(telemetry, "count_models", lambda *_: None)
    first = threading.Thread(target=app.reload)
    first.start()
    assert begun.wait(10)
    app.reload()
    first.join()
    assert app.models["model"].bundle.version == "newer"


def test_network_that_does_not_run_is_refused_in_one_line(bundle):
    content = b"no network"
    (bundle / "model.int8.tflite").write_bytes(content)
    entry = {"name": "model.int8.tflite", "sha256": hashlib.sha256(content).hexdigest()}
    edit(bundle, files={"litert": entry})
    with pytest.raises(BundleError, match="engine 'litert' cannot run the network") as error:
        load_engine(load_bundle(bundle))
    assert "\n" not in str(error.value)


def test_engine_without_its_package_is_refused_with_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(BundleError, match=r"pip install -r rest_api/requirements\.txt"):
        load_engine(load_bundle(bundle))


@pytest.mark.slow
def test_keras_loads_the_bytes_whose_hash_was_checked(bundle):
    loaded = load_bundle(bundle)
    checked = loaded.file("keras")
    (bundle / "model.keras").write_bytes(b"changed since")
    used = "path", "input_size", "views", "labels", "ood", "explains", "embedding_size"
    frozen = SimpleNamespace(
        **{name: getattr(loaded, name) for name in used}, file=lambda _: checked
    )
    assert load_engine(frozen, "keras")


def test_folder_whose_name_the_system_refuses_is_named():
    with pytest.raises(BundleError, match="cannot be read"):
        find_bundles([Path("x" * 5000)])

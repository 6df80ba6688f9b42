import argparse
import contextlib
import datetime
import json
import re
import shlex
import subprocess
import sys

import keras
import msgspec
import numpy as np
import pytest
from PIL import Image

from rest_api.bundle import View, load_bundle
from rest_api.classifier import load_model
from rest_api.engine import Outputs, load_engine, mean_over_views
from tests.support import ROOT, encode, error_of, picture
from training import export, files, metrics
from training.checkpoint import RunError
from training.cifar10 import networks, recipes, train
from training.cifar10.data import LABELS, load_cifar10
from training.cifar10.export import calibration_of, deployable, embedding_size
from training.evaluate import views_of
from training.ood import log_odds, mahalanobis
from training.photos.features import pooled
from training.precision import fastest_dtype

DESCRIPTION = {
    "name": "test",
    "version": "1",
    "labels": list(LABELS),
    "input_size": 32,
    "views": [{"resize": "stretch"}],
    "accuracy": {},
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 200)


@pytest.fixture(scope="module")
def network(data):
    """An untrained fast network whose BatchNorm has seen the data, in this machine's precision."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(fastest_dtype(networks.fast_vgg()))
    network = networks.fast_vgg()
    keras.config.set_dtype_policy("float32")
    networks.initialise(network, data[0], seed=0)
    for _ in range(20):
        network(data[0], training=True)
    return network


@pytest.fixture(scope="module")
def bundle(network, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export.export(deployable(network, 0.5), folder, DESCRIPTION, [data[0]], data[1])
    return load_bundle(folder)


@pytest.mark.slow
def test_every_format_returns_probabilities_with_the_temperature(bundle, network, data):
    logits = np.asarray(network(data[0]))
    expected = metrics.softmax(logits / 0.5)
    tolerances = {"keras": 0.05, "litert-float32": 0.05, "litert": 0.1}
    assert bundle.manifest["files"].keys() == tolerances.keys()
    for engine, tolerance in tolerances.items():
        probabilities = load_engine(bundle, engine)(data[0]).probabilities
        assert abs(probabilities - expected).max() < tolerance  # the expected ones are bfloat16


TWO_VIEWS = View("stretch"), View("center_crop", mirror=True)


@pytest.fixture(scope="module")
def with_others(data, tmp_path_factory):
    """A bundle of two views, whose network has two outputs beyond the ten classes."""
    keras.utils.set_random_seed(1)
    network = networks.fast_vgg(classes=12)
    networks.initialise(network, data[0], seed=0)
    for _ in range(20):
        network(data[0], training=True)
    folder = tmp_path_factory.mktemp("export") / "others"
    description = DESCRIPTION | {
        "views": msgspec.to_builtins(TWO_VIEWS),
        "ood": {"score": "log odds", "threshold": 0.0},
    }
    images, labels = data
    shown = views_of(map(Image.fromarray, images), 32, TWO_VIEWS)
    export.export(deployable(network, 0.5), folder, description, shown, labels)
    return network, load_bundle(folder)


@pytest.mark.slow
def test_outputs_beyond_the_ten_classes_become_the_log_odds(with_others, data):
    network, bundle = with_others
    logits = np.asarray(network(data[0]), np.float64)
    odds = np.log(np.exp(logits[:, :10]).sum(1) / np.exp(logits[:, 10:]).sum(1))
    outputs = load_engine(bundle, "litert-float32")(data[0])
    np.testing.assert_allclose(
        outputs.probabilities, metrics.softmax(logits[:, :10] / 0.5), atol=1e-4
    )
    np.testing.assert_allclose(outputs.scores, odds, atol=1e-3)


@pytest.mark.slow
def test_accuracy_is_that_of_the_photos_when_they_are_served(with_others, data):
    _, bundle = with_others
    model = load_model(bundle.path, "litert")
    images, labels = data
    predictions = [model.classify(encode(Image.fromarray(image)), top=1) for image in images]
    right = np.mean([LABELS.index(each.classes[0][0]) for each in predictions] == labels)
    assert bundle.manifest["accuracy"]["litert"] == pytest.approx(right)
    shown = views_of(map(Image.fromarray, images), 32, TWO_VIEWS)
    outputs = mean_over_views([model.predict(view) for view in shown])
    np.testing.assert_allclose([p.score for p in predictions], outputs.scores, atol=1e-3)


def test_temperature_and_both_thresholds_are_those_of_the_mean_over_views():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1000)
    logits = rng.normal(0, 2, (1000, 2, 10)) + 4 * np.eye(10)[labels][:, None]
    scores = rng.normal(5, 4, (1000, 2))
    temperature, described = export.calibrate(logits, labels, "random", scores, "log odds")
    probabilities = metrics.softmax(logits.mean(1) / temperature)
    answered = (probabilities.max(1) >= described["uncertainty"]["threshold"]) & (
        scores.mean(1) >= described["ood"]["threshold"]
    )
    assert answered.mean() == pytest.approx(described["uncertainty"]["coverage"], abs=0.003)
    assert described["ood"]["score"] == "log odds"
    assert described["uncertainty"]["accuracy"] == pytest.approx(
        metrics.accuracy(probabilities[answered], labels[answered]), abs=1e-3
    )
    assert set(export.calibrate(logits, labels, "random")[1]) == {"calibration", "uncertainty"}
    # Every image decided by its first view is the same as there being no other.
    alone = export.calibrate(logits[:, :1], labels, "random", scores[:, :1], "log odds")[1]
    first = export.calibrate(np.repeat(logits[:, :1], 2, 1), labels, "", scores, "", early_exit=0)
    assert first[1]["ood"]["threshold"] == alone["ood"]["threshold"]
    few = export.calibrate(logits[:20], labels[:20], "random", scores[:20], "log odds")[1]
    assert set(few) == {"calibration", "ood"}


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("stretch", View("stretch")),
        ("center_crop:mirrored", View("center_crop", mirror=True)),
        ("center_crop:40:mirrored", View("center_crop", mirror=True, size=40)),
        ("stretch:36", View("stretch", size=36)),
        ("stretch:5000", None),
        ("stretch:36:36", None),
        ("zoom", None),
        ("stretch:", None),
        ("stretch:flipped", None),
    ],
)
def test_views_are_named_on_the_command_line(text, view):
    if view:
        assert export.parse_view(text) == view
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="not one of stretch, center_crop"):
            export.parse_view(text)


@pytest.mark.slow
def test_float32_litert_equals_keras(bundle, data):
    litert, keras_ = (load_engine(bundle, e)(data[0]) for e in ("litert-float32", "keras"))
    np.testing.assert_allclose(litert.probabilities, keras_.probabilities, atol=1e-4)


@pytest.mark.slow
def test_keras_file_needs_no_code_of_ours(bundle):
    loaded = keras.saving.load_model(bundle.path / "model.keras", safe_mode=True, custom_objects={})
    assert {layer.dtype_policy.name for layer in loaded.layers} == {"float32"}
    assert "training." not in json.dumps(loaded.get_config())


@pytest.mark.slow
def test_litert_files_use_builtin_operations_alone(bundle):
    from ai_edge_litert.interpreter import Interpreter

    for name in ("model.tflite", "model.int8.tflite"):
        interpreter = Interpreter(model_path=str(bundle.path / name))
        operations = {op["op_name"] for op in interpreter._get_ops_details()}
        assert "CONV_2D" in operations
        assert not any("Flex" in op or op == "CUSTOM" for op in operations)


@pytest.mark.slow
def test_formats_that_disagree_write_nothing(network, data, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_DIFFERENCE", -1)
    served = deployable(network, 1.0)
    with pytest.raises(export.ExportError, match="Float32 LiteRT differs from Keras"):
        export.export(served, tmp_path / "bundle", DESCRIPTION, [data[0]], data[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("probability", "score", "what"),
    [(2e-4, 0, "a probability"), (0, 0.1, "a score"), (0, np.nan, "a score"), (5e-5, 0.01, None)],
)
def test_formats_may_differ_by_rounding_alone(probability, score, what):
    reference = Outputs(np.full((3, 2), 0.5), np.array([-50.0, -20.0, -10.0]))
    litert = Outputs(reference.probabilities + probability, reference.scores + score)
    raised = pytest.raises(export.ExportError, match=what) if what else contextlib.nullcontext()
    with raised:
        export.check_same(litert, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value", "engine"),
    [
        ("MAX_LOSS", -1, "litert-float32"),
        ("SLOWER", 0, "litert-float32"),
        ("SLOWER", 1e9, "litert"),
    ],
)
def test_eight_bits_serve_unless_they_lose_accuracy_or_time(
    network, data, tmp_path, monkeypatch, setting, value, engine
):
    monkeypatch.setattr(export, setting, value)
    network = deployable(network, 1.0)
    export.export(network, tmp_path / "bundle", DESCRIPTION, [data[0]], data[1], engines=["keras"])
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.engine == engine
    assert set(bundle.files) == {"keras", engine}  # what serves is kept, whoever asks for what


@pytest.fixture(scope="module")
def in_integers(data, tmp_path_factory):
    """A bundle whose 8-bit network computes in integers, with a score that has large values."""
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(16, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    probabilities = keras.layers.Dense(10, activation="softmax")(pooled)
    score = -keras.ops.sum(keras.ops.square(100 * pooled), -1)
    folder = tmp_path_factory.mktemp("integers") / "bundle"
    description = DESCRIPTION | {"ood": {"score": "of a test", "threshold": -7.0}}
    network = keras.Model(images, [probabilities, score])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "SLOWER", 1e9)
        export.export(network, folder, description, [data[0]], data[1], calibration=data[0][:20])
    return load_bundle(folder)


@pytest.mark.slow
def test_images_to_calibrate_with_have_convolutions_compute_in_integers(in_integers):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(in_integers.path / "model.int8.tflite"))
    details = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    types = {
        operation["op_name"]: details[operation["outputs"][0]]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] in ("CONV_2D", "FULLY_CONNECTED", "SUM")
    }
    assert types == {"CONV_2D": np.int8, "FULLY_CONNECTED": np.float32, "SUM": np.float32}


@pytest.mark.slow
def test_all_that_follows_the_last_convolution_is_in_float32(data):
    """For both scores of photos' networks, with the features that they are made of."""
    from ai_edge_litert.interpreter import Interpreter

    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(16, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    network = pooled(keras.Model(images, maps), 32)
    features = network.output
    logits = keras.layers.Dense(4)(features)
    vectors = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    scores = log_odds(logits, -1), mahalanobis(vectors, np.arange(40) % 3)(features, logits)
    outputs = [keras.layers.Softmax()(logits[:, :3]), *scores, features[:, None]]
    content = export.in_integers(keras.Model(network.input, outputs), data[0][:20])
    interpreter = Interpreter(model_content=content)
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    operations = interpreter._get_ops_details()
    last = max(i for i, each in enumerate(operations) if each["op_name"] == "CONV_2D")
    assert types[operations[last]["outputs"][0]] == np.int8
    after = {each["op_name"]: types[each["outputs"][0]] for each in operations[last + 1 :]}
    assert "LOG" in after
    assert "QUANTIZE" not in after
    assert set(after.values()) == {np.float32}


@pytest.mark.slow
def test_threshold_follows_the_scores_of_integers(in_integers, data):
    served, reference = (
        load_engine(in_integers, engine)(data[0][:20]).scores for engine in ("litert", "keras")
    )
    shift = np.median(served - reference)
    assert in_integers.ood.threshold == pytest.approx(-7.0 + shift, abs=1e-3)
    np.testing.assert_allclose(served, reference, rtol=0.1)
    assert len(np.unique(served)) > 15  # not 8 bits


@pytest.mark.parametrize(
    ("images", "lost", "too_many"),
    [(250, 2, False), (250, 10, True), (1000, 3, False), (1000, 4, True)],
)
def test_loss_is_excused_by_chance_only_where_images_are_few(images, lost, too_many):
    right = np.ones(images, bool)
    loss, allowed = export.loss_and_allowance(right, np.arange(images) >= lost)
    assert loss == lost / images
    assert (loss > allowed) == too_many


def test_what_eight_bits_gain_makes_up_for_what_they_lose():
    right = np.arange(1000) % 2 == 0
    assert export.loss_and_allowance(right, ~right) == (0, export.MAX_LOSS)


def test_failed_export_leaves_the_old_bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.json").write_text("old")
    with contextlib.suppress(RuntimeError), files.replacing_folder(folder) as new:
        (new / "model.json").write_text("new")
        raise RuntimeError
    assert (folder / "model.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_export_replaces_the_old_bundle_whole(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "left_over").write_text("old")
    with files.replacing_folder(folder) as new:
        (new / "model.json").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["model.json"]


def test_what_a_killed_export_has_left_is_removed_by_the_next(tmp_path):
    folder = tmp_path / "bundle"
    killed = (
        "import os, sys; from pathlib import Path; from training.files import replacing_folder\n"
        "with replacing_folder(Path(sys.argv[1])) as new:\n"
        "    (new / 'model.json').write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, folder], cwd=ROOT)
    assert not folder.exists()
    assert list(tmp_path.rglob("model.json"))
    with files.replacing_folder(folder) as new:
        assert not list(new.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


def test_bundle_that_a_killed_export_had_put_aside_comes_back(tmp_path):
    folder = tmp_path / "bundle"
    (old := tmp_path / ".bundle.part" / "old").mkdir(parents=True)
    (old / "model.json").write_text("old")
    with contextlib.suppress(RuntimeError), files.replacing_folder(folder):
        raise RuntimeError
    assert (folder / "model.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), files.replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert "is no bundle" in error_of("training.export", "run", tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_destination_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    line = error_of("training.export", "run", tmp_path / "file" / "bundle")
    assert line.startswith(f"error: {tmp_path}/file/bundle cannot be written: Not a directory. ")


def test_check_of_a_folder_that_does_not_exist_makes_none(tmp_path):
    files.check_writable(tmp_path / "bundles" / "mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_exports_a_run_and_prints_a_line_that_a_shell_can_take(small_cifar, tmp_path):
    """An untrained network and random images: chance may decide what 8 bits lose, so none do."""
    run, bundle = tmp_path / "run-final", tmp_path / "my bundle"
    for folder, measured_on in ((run, "test"), (tmp_path / "run", "validation")):
        data, _ = load_cifar10(small_cifar)
        train.train(recipes.load("classic"), data, None, folder, epochs=1)
        result = {"recipe": "classic", "epochs": 1, "date": "2026-01-01", "versions": {}}
        result |= {"measured_on": measured_on}
        (folder / "result.json").write_text(json.dumps(result))
    for label in LABELS[:2]:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for seed in range(5):
            picture(seed).save(tmp_path / "photos" / label / f"{seed}.png")
    command = [sys.executable, "-m", "training.export", str(run), str(bundle)]
    done = subprocess.run(
        [*command, "--data", str(small_cifar)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = shlex.split(done.stdout.splitlines()[-1])
    assert line[-2:] == ["--model", str(bundle)]
    exported = load_bundle(bundle)
    assert re.fullmatch(rf"{datetime.date.today()}-run-final-[0-9a-f]{{8}}", exported.version)
    assert (
        "which run was not trained on" in load_bundle(bundle).manifest["calibration"]["fitted_on"]
    )
    photos = ["--calibration-photos", str(tmp_path / "photos"), "--views", "letterbox"]
    subprocess.run([*command, "--data", str(small_cifar), *photos], cwd=ROOT, check=True)
    described = load_bundle(bundle).manifest
    assert described["version"] != exported.version
    assert described["views"] == [{"resize": "letterbox"}]
    assert described["early_exit"] == 1
    expected = "10 photos, which run-final was not trained on"
    assert described["uncertainty"]["fitted_on"] == expected
    for noise in ("absl", "oneDNN", "cuda", "CUDA", "0000"):
        assert noise not in done.stderr


def test_run_that_held_images_out_is_calibrated_on_them(data, tmp_path):
    run, views, result = tmp_path / "run-final", (View("stretch"),), {"held_out": 10}
    temperature, described = calibration_of(run, networks.vgg(1), result, data, views, None, 1.0)
    assert temperature > 0
    expected = "10 training images, which run-final was not trained on"
    assert described["calibration"]["fitted_on"] == expected


def test_run_that_kept_no_images_back_is_not_calibrated_on_those_it_was_trained_on(data, tmp_path):
    result = {"measured_on": "test"}
    with pytest.raises(RunError, match=r"left none to calibrate on\. Train with --hold-out"):
        calibration_of(
            tmp_path / "mine", networks.vgg(1), result, data, [View("stretch")], None, 1.0
        )


def test_final_run_whose_validation_run_is_missing_is_told_what_it_needs(data, tmp_path):
    run = tmp_path / "mine-final"
    with pytest.raises(
        RunError, match=r"mine-final was trained on all .* without --final into .*/mine, or give"
    ):
        calibration_of(
            run, networks.vgg(1), {"measured_on": "test"}, data, [View("stretch")], None, 1.0
        )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"measured_on": "test"}, "measured_on test, not measured_on validation"),
        ({"recipe": "fast94"}, "recipe fast94, not recipe classic"),
        ({"seed": 1, "epochs": 2}, "seed 1, epochs 2, not seed 0, epochs 1"),
    ],
)
def test_another_run_is_not_taken_for_the_validation_run(data, tmp_path, other, said):
    result = {"recipe": "classic", "seed": 0, "epochs": 1, "date": "2026-01-01", "versions": {}}
    held = result | {"measured_on": "validation"} | other
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "result.json").write_text(json.dumps(held))
    run, views = tmp_path / "mine-final", [View("stretch")]
    message = rf"mine has {said}.* train classic with --seed 0 --epochs 1 .*--calibration-photos"
    with pytest.raises(RunError, match=message):
        calibration_of(
            run, networks.vgg(1), result | {"measured_on": "test"}, data, views, None, 1.0
        )


@pytest.mark.slow
def test_maps_sum_to_the_logit_less_the_mean(network, data):
    _, maps, features = deployable(network, 1.0)(data[0][:8])
    assert features.shape == (8, 1, embedding_size(network))
    logits = 9 * np.asarray(network(data[0][:8]), np.float32)  # the network's are a ninth
    expected = logits - logits.mean(1, keepdims=True)
    np.testing.assert_allclose(np.sum(maps, (1, 2)), expected, rtol=0.05, atol=0.2)

import argparse
import io
import json
import math
import re
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from benchmarks import cluster, common
from benchmarks.quality import early_exit, photos_in_the_wild, resize_policy, scores
from benchmarks.robustness.hostile_files import GENERATORS
from benchmarks.serving import report as serving
from benchmarks.serving.__main__ import CONNECTIONS
from benchmarks.serving.comparison import OURS, SERVERS, Comparison, Measured, one_view
from benchmarks.serving.load import Load, family, free_port, started, wait_until_idle
from benchmarks.training import report as training
from benchmarks.training.speed import gflop_per_image, pflop
from rest_api.app import check
from rest_api.bundle import View, load_bundle
from rest_api.classifier import Prediction, load_model
from rest_api.engine import Outputs
from rest_api.settings import DEFAULT_MODEL, parse_arguments
from tests.support import FROG, ROOT, error_of
from training.cifar10 import recipes
from training.photos.inspect import PhotosError

COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "def main(" in path.read_text(encoding="utf-8")
]
LIST_HELP = """
import contextlib, importlib, importlib.util, sys
for name in sys.argv[1:]:
    if importlib.util.find_spec(name).submodule_search_locations:
        name += ".__main__"
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit):
        importlib.import_module(name).main()
        sys.exit(f"{name} ignores --help")
slow = {"keras", "tensorflow", "matplotlib"} & sys.modules.keys()
sys.exit(f"imported too early: {slow}" if slow else 0)
"""


def save(path: Path, colour: tuple[int, int, int] | None = None) -> None:
    """A small picture of one colour, or of noise."""
    rng = np.random.default_rng(len(str(path)))
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.new("RGB", (9, 6), colour) if colour else Image.fromarray(noise)).save(path)


def cells_of(lines: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()]


def test_every_benchmark_explains_itself_before_it_loads_anything_slow():
    assert len(COMMANDS) > 12
    command = [sys.executable, "-c", LIST_HELP, *COMMANDS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ") == len(COMMANDS)


def test_tables_show_medians_with_their_extremes_and_means_with_their_deviation():
    assert common.spread([3, 1, 2]) == "2.0 (1.0 to 3.0)"
    assert common.mean_and_std([1, 2, 3], " %") == "2.00 ± 1.00 %"
    assert common.mean_and_std([2], digits=1) == "2.0"
    assert common.table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_fpr95_is_taken_where_95_percent_of_the_known_are_accepted():
    known = np.arange(1, 101) / 100
    assert common.fpr95(known, np.array([0.01, 0.04, 0.5, 0.9])) == 0.5


def test_every_score_is_computed_of_features_by_one_network():
    rng = np.random.default_rng(0)
    head = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    class_ids = np.arange(30) % 3
    features = (rng.normal(size=(30, 8)) + 9 * np.eye(3, 8)[class_ids]).astype(np.float32)
    network = scores.scorer(head, features, class_ids)
    found = network.predict(np.concatenate([features, -features]), verbose=0)
    assert list(found) == list(scores.SCORES)
    assert all(each.shape == (60,) for each in found.values())
    for name in ("cosine", "mahalanobis", "mahalanobis, lengths kept"):
        assert found[name][:30].min() > found[name][30:].max()


def test_file_for_the_figures_is_refused_at_once_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=r"out\.json cannot be written: Not a dir"):
        common.output_file(str(tmp_path / "file" / "out.json"))
    absent = common.output_file(str(tmp_path / "absent" / "out.json"))
    assert not absent.parent.exists()
    common.write_json(absent, {"figures": [1]})
    assert json.loads(absent.read_text()) == {"figures": [1]}


def test_calibration_says_where_there_are_no_data(tmp_path):
    error = error_of("benchmarks.training.calibration", "--data", tmp_path / "absent")
    assert "absent" in error


class Thumb:
    """A model of two classes, as sure of `dog` as a picture is red; of green it is uncertain."""

    bundle = SimpleNamespace(labels=("cat", "dog"))

    def classify(self, data: bytes) -> Prediction:
        red, green, _ = Image.open(io.BytesIO(data)).getpixel((0, 0))
        dog = red / 255
        classes = sorted({"cat": 1 - dog, "dog": dog}.items(), key=lambda each: -each[1])
        score = classes[0][1]
        return Prediction(classes, score, score < 0.6 or green > 0, False, 0.0, 0.0)


def test_photos_in_the_wild_are_counted_right_answered_and_told_from_others(tmp_path):
    for number, red in enumerate((255, 204, 140, 51)):  # dog: 1.0, 0.8, 0.55, 0.2
        save(tmp_path / "photos" / "dog" / f"{number}.png", (red, 0, 0))
    save(tmp_path / "photos" / "cat" / "0.png", (0, 0, 0))
    for number, red in enumerate((255, 204, 128)):
        save(tmp_path / "others" / "below" / f"{number}.png", (red, 0, 0))
    save(tmp_path / "others" / "3.png", (255, 255, 0))
    rows = photos_in_the_wild.rows(Thumb(), tmp_path / "photos", [tmp_path / "others"])
    table = {name: cells for name, *cells in rows}
    assert table["right (accuracy)"] == ["5", "80.0%", "37.6% to 96.4%"]
    assert table["right, cat"][:2] == ["1", "100.0%"]
    assert table["right, dog"][:2] == ["4", "75.0%"]
    assert table["answered (coverage)"][:2] == ["5", "80.0%"]
    assert table["right of those answered (selective accuracy)"][:2] == ["4", "75.0%"]
    gap = (abs(0.55 - 1) + abs(0.8 - 0.5) * 2) / 5  # of the bins of 0.55, 0.8 and 1.0
    assert table["expected calibration error"][:2] == ["5", f"{gap:.1%}"]
    assert table["others: answered"][:2] == ["4", "50.0%"]
    assert table["others: answered at over 90%"][:2] == ["4", "25.0%"]
    assert table["others: AUROC"][:2] == ["4", f"{(1 + 3 + 5 + 1) / 20:.3f}"]
    assert table["others: FPR95"][:2] == ["4", "75.0%"]


def test_photos_in_the_wild_pool_several_folders_of_other_things(tmp_path):
    save(tmp_path / "photos" / "dog" / "0.png", (255, 0, 0))
    save(tmp_path / "photos" / "cat" / "0.png", (0, 0, 0))
    for name in ("food", "scenes"):
        save(tmp_path / name / "0.png", (128, 0, 0))
    others = [tmp_path / "food", tmp_path / "scenes"]
    rows = list(photos_in_the_wild.rows(Thumb(), tmp_path / "photos", others))
    answered = {name: n for name, n, *_ in rows if name.endswith(": answered")}
    assert answered == {"all others: answered": "2", "food: answered": "1", "scenes: answered": "1"}


@pytest.mark.parametrize(
    "command",
    [
        ["transfer_learning", "one/same", "two/same"],
        ["ood_scores", "one/same", "--others", "two/same"],
        ["street", "one/same", "two/same", "--photos", "photos", "--others", "one"],
    ],
)
def test_folders_of_one_name_are_not_taken_for_each_other(tmp_path, command):
    for label in ("cat", "dog"):
        save(tmp_path / "photos" / label / "0.png")
    module, *arguments = command
    names = {"one", "one/same", "two/same", "photos"}
    error = error_of(
        f"benchmarks.quality.{module}",
        *(tmp_path / each if each in names else each for each in arguments),
    )
    assert "one/same and" in error
    assert "have the same name" in error


@pytest.mark.parametrize("module", ["photos_in_the_wild", "resize_policy"])
def test_folders_that_are_no_class_of_the_bundle_are_one_clear_error(tmp_path, module):
    for name in ("cat", "teapot"):
        save(tmp_path / name / "0.png")
    error = error_of(f"benchmarks.quality.{module}", tmp_path)
    assert error.endswith("truck), not teapot.")


def test_a_file_that_is_no_photo_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    model = load_model(DEFAULT_MODEL)
    with pytest.raises(PhotosError, match="This is not an image"):
        photos_in_the_wild.classify(model, [tmp_path / "notes.txt"])
    with pytest.raises(PhotosError, match="This is not an image"):
        resize_policy.predicted(model, [(tmp_path / "notes.txt", 0)])


def test_photos_are_cut_to_the_shape_of_cameras():
    square = Image.new("RGB", (224, 224))
    assert resize_policy.cut_to(square, 4 / 3).size == (224, 168)
    assert resize_policy.cut_to(square, 3 / 4).size == (168, 224)


def test_photos_for_a_cluster_are_as_large_as_those_of_cameras_and_differ(tmp_path):
    for number in (9, 19):  # of the largest size
        cluster.make_photo((FROG, tmp_path / f"{number}.jpg", number))
    first, second = ((tmp_path / f"{number}.jpg").read_bytes() for number in (9, 19))
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (4032, 3024)
    assert 1e6 < len(first) < 4e6
    assert first != second


def test_resize_policies_agree_on_square_photos(tmp_path):
    for label in ("airplane", "automobile"):
        for number in range(3):
            save(tmp_path / label / f"{number}.png")
    command = [sys.executable, "-m", "benchmarks.quality.resize_policy", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = cells_of(run.stdout)
    assert rows[0] == [
        "6 photos",
        "`stretch`",
        "`center_crop`",
        "`letterbox`",
    ]
    for name in ("as they are", "1:1"):
        (square,) = (row for row in rows if row and row[0] == name)
        assert len(set(square[1:])) == 1
    differs = {row[0]: row[2] for row in rows if len(row) == 3}
    assert differs["4 or more"] == differs["1 or more"] == "0.0%"  # a PNG is decoded in full


def test_resize_policies_keep_one_photo_in_memory_at_a_time(tmp_path, monkeypatch):
    files = [(tmp_path / f"{number}.png", 0) for number in range(5)]
    for path, _ in files:
        save(path)
    decoded, alive = [], []
    read = resize_policy.read

    def watched(*args) -> Image.Image:
        decoded.append(weakref.ref(image := read(*args)))
        alive.append(sum(photo() is not None for photo in decoded))
        return image

    monkeypatch.setattr(resize_policy, "read", watched)
    resize_policy.predicted(load_model(DEFAULT_MODEL), files)
    assert len(alive) == len(files) * (1 + len(resize_policy.SCALES))
    assert max(alive) <= 1 + len(resize_policy.SCALES)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_hostile_file_can_be_made_again(name):
    files = {GENERATORS[name](np.random.default_rng([0, number])) for number in range(20)}
    again = {GENERATORS[name](np.random.default_rng([0, number])) for number in range(20)}
    assert files == again
    assert len(files) > 10


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_no_process_of_a_server_outlives_its_turn():
    leaves_one_behind = "import subprocess; subprocess.Popen(['sleep', '99']).wait()"
    with started([sys.executable, "-c", leaves_one_behind]) as (_, pid):
        deadline = time.monotonic() + 30
        while len(family(pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        _, child = family(pid)
    status = Path(f"/proc/{child}/status")
    with suppress(OSError):  # it has ended
        while "(zombie)" not in status.read_text():
            assert time.monotonic() < deadline + 5, "it still runs"
            time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc").exists(), reason="a process's time is found in /proc")
def test_load_begins_when_the_server_has_done_with_the_one_before(tmp_path):
    script = (
        "import pathlib, time\n"
        "pathlib.Path('begun').touch()\n"
        "while time.process_time() < 1: pass\n"
        "pathlib.Path('done').touch()\n"
        "time.sleep(99)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    try:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        wait_until_idle(process.pid)
        assert (tmp_path / "done").exists()
    finally:
        process.kill()
        process.wait()


def test_early_exit_counts_the_photos_that_their_first_view_decides():
    """Of two photos, one is sure and right in its first view, one unsure and wrong in it."""
    first = Outputs(np.array([[0.97, 0.03], [0.4, 0.6]]), np.zeros(2))
    second = Outputs(np.array([[0.5, 0.5], [0.9, 0.1]]), np.zeros(2))
    bundle = replace(load_bundle(DEFAULT_MODEL), threshold=0.8, ood=None)
    table = early_exit.rows([first, second], np.zeros(2, int), [first, second], bundle)
    early = {value: shares for value, *shares in table}
    assert early["0.95"][:2] == ["50.0%", "100.0%"]
    assert early["0.98"][:2] == ["0.0%", "100.0%"]
    assert early["0.95"][3:5] == ["50.0%", "100.0%"]  # answered, right of those


def measured(throughput: float, p50: float, connections: int = 16) -> Measured:
    """A server that answered that many requests per second."""
    load = Load(int(10 * throughput), 10.0, 0, 0, p50, p50)
    return Measured(0.5, {connections: 100}, {("photo", connections): load})


def test_own_servers_of_the_comparison_can_start(tmp_path):
    bundle = one_view(tmp_path / "bundle")
    assert load_bundle(bundle).views == (View("stretch"),)
    places = {"{port}": str(free_port()), "{bundle}": str(bundle)}
    for name in (OURS, "ours, as shipped"):
        _, (_, program, *options) = SERVERS[name]
        assert program == "rest_api/app.py"
        check(parse_arguments([places.get(option, option) for option in options]))


def test_servers_are_compared_within_a_round():
    rounds = [
        {OURS: measured(1000, 2), "other": measured(100, 20)},
        {OURS: measured(500, 4), "other": measured(50, 60)},  # a slow minute for both
    ]
    assert serving.ratios(rounds, "other", ("photo", 16)) == ([10, 10], [10, 15])
    rounds = [{OURS: measured(1000, 2), "other": measured(0, 0)}]
    assert serving.ratios(rounds, "other", ("photo", 16)) == ([math.inf], [math.inf])


def test_a_latency_that_is_mostly_of_refusals_is_not_compared():
    refused = Load(100, 10.0, 11, 0, 1.0, 1.0)
    rounds = [{OURS: measured(10, 2), "other": Measured(0.5, {}, {("photo", 16): refused})}]
    assert list(serving.compared(rounds)) == [["photo, 16", "other", "1.1 (1.1 to 1.1)", "refused"]]


def test_headings_of_the_page_on_serving_are_those_that_its_command_writes():
    ours = Measured(0.5, dict.fromkeys(CONNECTIONS, 100), measured(1000, 2).loads)
    stages = ("parse", "decode", "resize", "infer", "route, encode", "all")
    seen = Comparison([{OURS: ours}], [{"photo": 2000.0}], {OURS: 180.0})
    written = "\n\n".join(serving.sections(seen, {"photo": dict.fromkeys(stages, 1.0)}))
    page = (ROOT / "benchmarks" / "serving" / "README.md").read_text(encoding="utf-8")

    def words(text: str) -> list[str]:
        """All lines but the rows of tables, and that with the date."""
        heads = re.sub(r"(?<=---: \|\n)(\|.*\n?)+", "", text).splitlines()
        return [line for line in heads if line and "cores, which" not in line]

    assert words(written) == words(page)


def test_page_on_training_tells_the_recorded_runs(monkeypatch):
    monkeypatch.setattr(training, "speeds", lambda rounds: [])
    page = (ROOT / "benchmarks" / "training" / "README.md").read_text(encoding="utf-8")
    for section in training.sections(1)[1:]:  # the first has the date
        assert section in page


def test_arithmetic_of_a_network_is_that_of_its_products():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    products = 8 * 8 * (3 * 3 * 3) * 4 + (8 * 8 * 4) * 10
    assert gflop_per_image(network, 8) == pytest.approx(3 * 2 * products / 1e9)


def test_arithmetic_of_the_fast_network_is_counted_at_its_image_size():
    network = recipes.load("fast94").network()
    assert gflop_per_image(network, 32) > 1.5 * gflop_per_image(network, 24) > 0.1


def test_arithmetic_of_a_training_is_that_of_its_steps():
    recipe = recipes.load("fast94_2025")
    assert pflop(recipe) == pytest.approx(0.3036, abs=1e-4)
    network = recipe.network()
    half = 12 * 2000 * gflop_per_image(network, 24) / 1e6
    assert pflop(replace(recipe, epochs=0.48)) == pytest.approx(half)


def test_arithmetic_of_the_fast_recipes_is_what_the_docs_say():
    new, old = (pflop(recipes.load(name)) for name in ("fast94", "fast94_2025"))
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"{new:.3f} of {old:.3f} PFLOP" in text


def test_minutes_to_an_accuracy_are_those_of_all_seeds_that_reached_it(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RECORDS", tmp_path)
    head = "epoch,val_accuracy,seconds\n"
    (tmp_path / "fast-seed0.csv").write_text(head + "1,0.5,60\n2,0.9,120\n3,0.95,180\n")
    (tmp_path / "fast-seed1.csv").write_text(head + "1,0.6,60\n2,0.8,180\n3,0.91,240\n")
    (tmp_path / "fast-seed0-final.csv").write_text("epoch,seconds\n1,60\n")
    assert training.time_to_validation("fast", 0.90) == [(2, 2), (4, 3)]
    assert training.time_to_validation("fast", 0.95) == [(3, 3), None]
    assert training.cell([(2, 2), (4, 3)]) == "3.00 ± 1.41 (2, 3)"
    assert training.cell([(3, 3), None]) == "1 of 2: 3.00 (3, –)"
    assert training.cell([None, None]) == "–"


def test_test_images_count_at_the_end_of_the_runs_that_measured_them(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RECORDS", tmp_path)
    for seed, accuracy in enumerate((0.95, 0.93)):
        result = {"accuracy_tta": accuracy, "seconds": 60, "epochs": 10.0}
        (tmp_path / f"fast-seed{seed}-final.json").write_text(json.dumps(result))
    (tmp_path / "fast-seed0.json").write_text(json.dumps({"accuracy_tta": 0.99}))
    assert training.time_to_test("fast", 0.94) == [(1, 10), None]

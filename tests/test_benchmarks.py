import json
import math
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.resize_policy import cut_to
from benchmarks.serving.__main__ import OURS, ratios
from benchmarks.serving.load import Load, family, started, wait_until_idle
from benchmarks.training import __main__ as training
from benchmarks.training.__main__ import gflop_an_image
from tests.support import ROOT
from training.cifar10 import recipes


def test_photos_are_cut_to_the_shape_of_cameras():
    square = Image.new("RGB", (224, 224))
    assert cut_to(square, 4 / 3).size == (224, 168)
    assert cut_to(square, 3 / 4).size == (168, 224)


def test_resize_policies_agree_on_square_photos(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("airplane", "automobile"):
        (tmp_path / label).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    command = [sys.executable, "-m", "benchmarks.quality.resize_policy", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:-1] for line in run.stdout.splitlines()]
    assert rows[0] == [" 6 photos, cut to ", " squash ", " crop ", " pad "]
    square = next(row for row in rows if row[0] == " 1:1 ")
    assert len(set(square[1:])) == 1
    scales = {name.strip(): others.strip() for name, _, others in (r for r in rows if len(r) == 3)}
    assert scales["4 or more"] == scales["1 or more"] == "0.0%"  # a PNG is decoded in full


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_no_process_of_a_server_outlives_its_turn():
    leaves_one_behind = "import subprocess; subprocess.Popen(['sleep', '99']).wait()"
    with started([sys.executable, "-c", leaves_one_behind]) as (_, pid):
        deadline = time.monotonic() + 30
        while len(family(pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        _, child = family(pid)
    status = Path(f"/proc/{child}/status")
    while status.exists() and "(zombie)" not in status.read_text():
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


def test_servers_are_compared_within_a_round():
    def seen(rate: float, p50: float) -> dict:
        return {("photo", 16): Load(int(10 * rate), 10.0, 0, 0, p50, p50)}

    rounds = [
        {OURS: seen(1000, 2), "other": seen(100, 20)},
        {OURS: seen(500, 4), "other": seen(50, 60)},  # a slow minute for both
    ]
    assert ratios(rounds, "other", ("photo", 16)) == ([10, 10], [10, 15])
    rounds = [{OURS: seen(1000, 2), "other": seen(0, 0)}]
    assert ratios(rounds, "other", ("photo", 16)) == ([math.inf], [math.inf])


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
    assert gflop_an_image(network, 8) == pytest.approx(3 * 2 * products / 1e9)


def test_arithmetic_of_the_fast_network_is_counted_at_its_side():
    network = recipes.load("fast94").network()
    assert gflop_an_image(network, 32) > 1.5 * gflop_an_image(network, 24) > 0.1


def test_minutes_to_an_accuracy_are_those_of_all_seeds_that_reached_it(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RECORDS", tmp_path)
    head = "epoch,val_accuracy,seconds\n"
    (tmp_path / "fast-seed0.csv").write_text(head + "1,0.5,60\n2,0.9,120\n3,0.95,180\n")
    (tmp_path / "fast-seed1.csv").write_text(head + "1,0.6,60\n2,0.8,180\n3,0.91,240\n")
    (tmp_path / "fast-seed0-final.csv").write_text("epoch,seconds\n1,60\n")
    assert training.reached("fast", 0.90) == [(2, 2), (4, 3)]
    assert training.reached("fast", 0.95) == [(3, 3), None]
    assert training.cell([(2, 2), (4, 3)]) == "3.00 ± 1.41 (2, 3)"
    assert training.cell([(3, 3), None]) == "3.00 (3, –)"
    assert training.cell([None, None]) == "–"


def test_test_images_count_at_the_end_of_the_runs_that_have_seen_them(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RECORDS", tmp_path)
    for seed, accuracy in enumerate((0.95, 0.93)):
        result = {"accuracy_tta": accuracy, "seconds": 60, "epochs": 10.0}
        (tmp_path / f"fast-seed{seed}-final.json").write_text(json.dumps(result))
    (tmp_path / "fast-seed0.json").write_text(json.dumps({"accuracy_tta": 0.99}))
    assert training.ended_at("fast", 0.94) == [(1, 10), None]

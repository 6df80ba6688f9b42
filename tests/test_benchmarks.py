import subprocess
import sys

import numpy as np
from PIL import Image

from benchmarks.resize_policy import cut_to
from tests.conftest import ROOT


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
    command = [sys.executable, "-m", "benchmarks.resize_policy", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:-1] for line in run.stdout.splitlines()]
    assert rows[0] == [" 6 photos, cut to ", " squash ", " crop ", " pad "]
    square = next(row for row in rows if row[0] == " 1:1 ")
    assert len(set(square[1:])) == 1
    assert rows[-1][0] == " mean "

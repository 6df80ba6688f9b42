"""Every command of docs/your_own_photos.md, in its order, as a reader would give it."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import ROOT, coloured, server, small_backbone
from training.photos import transfer

PAGE = (ROOT / "docs" / "your_own_photos.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


def draw(folder: Path, channel: int, first: int = 0) -> None:
    """24 photos that are mostly of one colour."""
    folder.mkdir(parents=True)
    for i in range(first, first + 24):
        Image.fromarray(coloured(100 * channel + i, channel)).save(folder / f"{i}.jpg", quality=95)


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """Where the reader is: photos in folders, as the page shows them."""
    draw(tmp_path / "vehicles" / "airplane", 0)
    draw(tmp_path / "vehicles" / "automobile", 1)
    draw(tmp_path / "other_photos", 2)
    draw(tmp_path / "holiday", 0, first=50)
    shutil.copy(tmp_path / "holiday" / "50.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "load_backbone", small_backbone)  # no download, and quick
    return tmp_path


def run_module(command: str, monkeypatch) -> None:
    """`python -m MODULE …` in this process, where the backbone is the small one."""
    _, dash_m, module, *arguments = shlex.split(command)
    assert dash_m == "-m"
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(module, run_name="__main__")


def answer_of(command: str, port: int) -> dict:
    """What a curl command of the page prints."""
    command = command.replace("localhost:5000", f"127.0.0.1:{port}")
    run = subprocess.run(shlex.split(command), check=True, capture_output=True)
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # runpy's
def test_commands_lead_from_photos_to_a_service(reader, monkeypatch, capsys):
    steps = iter(COMMANDS)
    assert next(steps) == "pip install '.[train]'"
    run_module(next(steps), monkeypatch)
    assert "airplane      24" in capsys.readouterr().out
    run_module(next(steps), monkeypatch)
    assert (reader / "runs" / "report-vehicles" / "report.html").exists()
    run_module(next(steps), monkeypatch)
    assert "OOD photos" in capsys.readouterr().out

    start, curl = next(steps), next(steps)
    _, script, *options = shlex.split(start)
    with server(*options, script=str(ROOT / script), cwd=reader) as (_, port):
        assert answer_of(curl, port)["predictions"][0]["label"] == "airplane"

    run_module(next(steps), monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("file,uncertain,none_of_these,label_1")
    assert len(lines) == 25

    assert next(steps) == "docker build -t vehicles ."
    _, _, options = next(steps).partition(" vehicles ")
    with server(*shlex.split(options), script=str(ROOT / script), cwd=reader) as (_, port):
        assert answer_of(curl, port)["model"]["name"] == "vehicles"
    (of_what_is_shipped,) = steps  # photos that are not part of the project
    assert " --output rest_api/assets/" in of_what_is_shipped

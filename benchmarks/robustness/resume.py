"""Trainings that are killed and started again: `python -m benchmarks.robustness.resume`.

Each of training.train, training.export and training.transfer runs to its end once, on a little data
that is made for it. Then the same command is killed by SIGKILL at a random moment and started
again, until it ends; and so on in new folders, until it has been killed --kills times. After each
death every file that bears its final name must be whole; at the end figures, networks and the names
of all files must be those of the first run. Ends with an error where they are not.
"""

import csv
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, command_line
from rest_api.bundle import FILENAMES, MANIFEST, load_bundle

# The type to compute in is given: a recipe may take what is fastest when the run begins.
RECIPE = ("classic", "--epochs", "12", "--dtype", "float32")
BACKBONE = ("--weights", "random", "--size", "32")
CHANGES = {"seconds", "seconds_in_steps"}  # from one run to the next


@dataclass(frozen=True)
class Command:
    """A module of training with its arguments, in a folder of its own."""

    module: str
    arguments: tuple[str, ...]
    prepared: Path  # what the folder holds before

    def run(self, folder: Path, seconds: float | None = None) -> bool:
        """Whether it ends within some seconds; it is killed if not. Raises CalledProcessError."""
        command = [sys.executable, "-m", f"training.{self.module}", *self.arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        options: dict[str, Any] = {"cwd": folder, "env": environment, "capture_output": True}
        try:  # subprocess.run sends SIGKILL
            subprocess.run(command, **options, timeout=seconds, check=True)
        except subprocess.TimeoutExpired:
            return False
        return True


def train(scratch: Path) -> Command:
    """The command, and in `scratch` what it needs."""
    data, folder = scratch / "data", scratch / "empty"
    write_cifar10(data)
    folder.mkdir()
    return Command("train", (*RECIPE, "--data", str(data), "--output", "run"), folder)


def export(scratch: Path) -> Command:
    training, folder = train(scratch), scratch / "trained"
    folder.mkdir()
    training.run(folder)
    data = str(scratch / "data")
    return Command("export", ("run", "bundles/one", "--data", data), folder)


def transfer(scratch: Path) -> Command:
    folder = scratch / "photographed"
    write_photos(folder / "photos")
    return Command("transfer", ("photos", "--output", "bundles/one", *BACKBONE), folder)


COMMANDS: dict[str, Callable[[Path], Command]] = {
    each.__name__: each for each in (train, export, transfer)
}


def write_cifar10(directory: Path, images: int = 40) -> None:
    """Random images in the official format, so many in each of its six files."""
    rng = np.random.default_rng(0)
    folder = directory / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = rng.integers(0, 256, (images, 3072), dtype=np.uint8)
        labels = [int(label) for label in np.arange(images) % 10]
        content = {b"data": pixels, b"labels": labels, b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_photos(folder: Path, number: int = 20) -> None:
    """Photos of two classes, so many of each, that their colour tells apart."""
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green")):
        (folder / label).mkdir(parents=True)
        for each in range(number):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            pixels = np.array(coarse.resize((96, 72), Image.Resampling.BICUBIC))
            pixels[..., channel] = 255 - pixels[..., channel] // 8
            Image.fromarray(pixels).save(folder / label / f"{each}.png")


def check_whole(folder: Path) -> None:
    """Read every file that bears its final name. Raises what reading half a file raises."""
    for path in files_in(folder):
        if ".part" in str(path.relative_to(folder)):
            continue  # written beside: NAME.part.*, or in .NAME.part
        if path.suffix == ".npz":
            arrays_of(path)
        elif path.name == MANIFEST:
            bundle = load_bundle(path.parent)
            for engine in FILENAMES:
                bundle.file(engine)  # compares its hash
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix in (".csv", ".html") and not path.read_text("utf-8").endswith("\n"):
            raise ValueError(f"{path} is cut off")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def result_in(folder: Path) -> dict[str, Any]:
    """Every file by its name, with what it says of the result."""
    return {str(path.relative_to(folder)): content_of(path) for path in files_in(folder)}


def content_of(path: Path) -> Any:
    """What a file says of the result, to be compared by ==; None where it tells times."""
    if path.name == MANIFEST:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        del manifest["files"]  # are compared themselves: Keras writes the time into its own
        return manifest
    if path.name == "result.json":
        result = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in result.items() if key not in CHANGES}
    if path.name == "history.csv":
        rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        return [{key: row[key] for key in row if key not in CHANGES} for row in rows]
    if path.suffix == ".npz":
        return {name: each for name, each in arrays_of(path).items() if name != "state"}
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as file:
            return file.read("model.weights.h5")  # config.json has numbers of Python's objects
    return path.read_bytes() if path.suffix == ".tflite" else None


def arrays_of(path: Path) -> dict[str, bytes]:
    """The bytes of each array of a .npz file."""
    with np.load(path) as stored:
        return {name: stored[name].tobytes() for name in stored.files}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The names of files that are in one alone, or say something else."""
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name, "") != found.get(name, "")]


def interrupt(command: Command, kills: int, choose: Callable[[float, float], float]) -> str:
    """Kill a command so many times, as the docstring of the module says; a line on what was seen.

    `choose` returns a number between two. Raises RuntimeError where a result is not the same.
    """
    killed, ended = 0, 0
    with tempfile.TemporaryDirectory() as scratch:

        def prepare(name: str) -> Path:
            return shutil.copytree(command.prepared, Path(scratch, name))

        whole, began = prepare("whole"), time.perf_counter()
        command.run(whole)
        seconds, expected = time.perf_counter() - began, result_in(whole)
        while killed < kills:
            folder = prepare(str(ended))
            while not command.run(folder, choose(0, seconds) if killed < kills else None):
                killed += 1
                check_whole(folder)
            ended += 1
            if different := differences(expected, result_in(folder)):
                raise RuntimeError(f"{command.module}: not as without kills: {different}")
    return (
        f"{command.module}: {seconds:.0f} s without; killed {killed} times in {ended} runs; "
        f"all {len(expected)} files the same, no other left"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each command (%(default)s)")
    args = parser.parse_args()
    choose = random.Random(0).uniform  # noqa: S311
    with tempfile.TemporaryDirectory() as scratch:
        for name, prepare in COMMANDS.items():
            (folder := Path(scratch, name)).mkdir()
            print(interrupt(prepare(folder), args.kills, choose), flush=True)


if __name__ == "__main__":
    main()

"""Measure this server and others in turn, round after round."""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import keras

from benchmarks.serving import load
from rest_api.bundle import load_bundle
from rest_api.classifier import load_model
from rest_api.settings import DEFAULT_MODEL
from training.export import write_formats, write_manifest

SECONDS = {"32-pixel PNG": 2, "256-pixel JPEG": 2, "12-megapixel JPEG": 5}  # of load
HERE = "here"  # the environment that this runs in
OURS = "ours, 8 bits"
APP = [*load.own_server()[1:], "--model", "{bundle}"]
SERVERS = {  # name: (environment, command after its bin/)
    OURS: ("ours", ("python", *APP)),
    "ours, 32 bits": ("ours", ("python", *APP, "--engine", "litert-float32")),
    "ours, Keras": (HERE, ("python", *APP, "--engine", "keras")),
    "blog pattern": ("blog", ("python", "-m", "benchmarks.serving.rivals.blog", "{port}")),
    "LitServe": ("litserve", ("python", "-m", "benchmarks.serving.rivals.lit", "{port}")),
    "BentoML": (
        "bentoml",
        ("bentoml", "serve", "benchmarks.serving.rivals.bento:Classifier", "--port", "{port}"),
    ),
}


class Measured(NamedTuple):
    """One server in one round."""

    first_response: float  # seconds from its start
    resident: dict[int, float]  # MB of all its processes after photos on so many connections
    loads: dict[tuple[str, int], load.Load]  # by input and connections


class Comparison(NamedTuple):
    """All rounds."""

    rounds: list[dict[str, Measured]]  # by server
    limits: list[dict[str, float]]  # requests/s without HTTP in each round, by input
    installed: dict[str, float]  # MB of the environment of each server


def compare(
    venvs: Path, images: Mapping[str, bytes], connections: Sequence[int], rounds: int
) -> Comparison:
    """Measure all servers whose environment is in `venvs`, each once in each round."""
    result = Comparison([], [], {})
    with tempfile.TemporaryDirectory() as folder:
        bundle = complete_bundle(Path(folder))
        servers = {
            name: command for name in SERVERS if (command := command_of(name, venvs, bundle))
        }
        for number in range(rounds):
            result.limits.append(throughput_without_http(images))
            result.rounds.append({})
            for name, command in servers.items():
                measured = result.rounds[-1][name] = measure(command, images, connections)
                seconds = measured.first_response
                print(
                    f"round {number + 1}: {name}, first response after {seconds:.2f} s", flush=True
                )
    for name in servers:
        result.installed[name] = installed_megabytes(environment_of(name, venvs))
    return result


def complete_bundle(folder: Path) -> Path:
    """The shipped network in all formats; its 32-bit LiteRT file is too large to be shipped."""
    network = keras.saving.load_model(DEFAULT_MODEL / "model.keras", compile=False)
    manifest = load_bundle(DEFAULT_MODEL).manifest
    write_formats(network, folder, manifest["input_size"])
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("schema", "files")})
    return folder


def environment_of(name: str, venvs: Path) -> Path:
    environment, _ = SERVERS[name]
    return Path(sys.prefix) if environment == HERE else venvs / environment


def command_of(name: str, venvs: Path, bundle: Path) -> list[str]:
    """The command that starts a server; empty where its environment is missing."""
    _, (program, *arguments) = SERVERS[name]
    binary = environment_of(name, venvs) / "bin" / program
    if not binary.exists():
        print(f"{name} is left out: there is no {binary}", file=sys.stderr)
        return []
    return [str(binary), *(part.replace("{bundle}", str(bundle)) for part in arguments)]


def measure(
    command: Sequence[str], images: Mapping[str, bytes], connections: Sequence[int]
) -> Measured:
    """Start a server and load it; its memory is that after the last input, the largest."""
    with load.started(command) as (port, pid):
        url = f"http://127.0.0.1:{port}/predict"
        measured = Measured(load.first_response(url, images["32-pixel PNG"]), {}, {})
        for name, image in images.items():
            load.wrk(url, image, connections[0], 1)  # to warm up
            for number in connections:
                load.wait_until_idle(pid)
                measured.loads[name, number] = load.wrk(url, image, number, SECONDS[name])
                measured.resident[number] = load.resident_megabytes(pid)
    return measured


def throughput_without_http(images: Mapping[str, bytes]) -> dict[str, float]:
    """Predictions per second of two processes that only classify, by input."""
    with ProcessPoolExecutor(2) as pool:
        return {
            name: sum(pool.map(classify_for, [image] * 2, [SECONDS[name]] * 2))
            for name, image in images.items()
        }


def classify_for(image: bytes, seconds: float) -> float:
    """Predictions per second of one process."""
    model = load_model(DEFAULT_MODEL)
    predictions, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        model.classify(image)
        predictions += 1
    return predictions / (time.perf_counter() - start)


def installed_megabytes(environment: Path) -> float:
    """What the packages of an environment take on the disk, without Python's bytecode."""
    files = (path for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc") / 1e6

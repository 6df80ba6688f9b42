"""Measure this server and others in turn, round after round."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.serving import load
from rest_api.bundle import MANIFEST, load_bundle
from rest_api.classifier import load_model
from rest_api.settings import DEFAULT_MODEL

SECONDS = {"32-pixel PNG": 2, "256-pixel JPEG": 2, "12-megapixel JPEG": 5}  # of load
OURS = "ours, one view"  # which does as much for a picture as the others
APP = ["python", *load.own_server("--workers", "2")[1:], "--model"]  # as many as the others
SERVERS = {  # name: (environment, command after its bin/)
    OURS: ("ours", [*APP, "{bundle}"]),
    "ours, as shipped": ("ours", [*APP, str(DEFAULT_MODEL)]),
    "blog pattern": ("blog", ["python", "-m", "benchmarks.serving.rivals.blog", "{port}"]),
    "LitServe": ("litserve", ["python", "-m", "benchmarks.serving.rivals.lit", "{port}"]),
    "BentoML": (
        "bentoml",
        ["bentoml", "serve", "benchmarks.serving.rivals.bento:Classifier", "--port", "{port}"],
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
        bundle = one_view(Path(folder, "bundle"))
        servers = {
            name: command for name in SERVERS if (command := command_of(name, venvs, bundle))
        }
        if OURS not in servers:
            sys.exit(f"error: {venvs / SERVERS[OURS][0]} is missing: make bench")
        for number in range(rounds):
            result.limits.append(throughput_without_http(bundle, images))
            result.rounds.append({})
            for name, command in servers.items():
                measured = result.rounds[-1][name] = measure(command, images, connections)
                seconds = measured.first_response
                print(
                    f"round {number + 1}: {name}, first response after {seconds:.2f} s", flush=True
                )
    for name in servers:
        result.installed[name] = installed_megabytes(venvs / SERVERS[name][0])
    return result


def one_view(folder: Path) -> Path:
    """The default model in a new folder, shown pictures as the other servers show them."""
    shutil.copytree(DEFAULT_MODEL, folder)
    manifest = load_bundle(folder).manifest | {"views": [{"resize": "stretch"}]}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def command_of(name: str, venvs: Path, bundle: Path) -> list[str]:
    """The command that starts a server; empty where its environment is missing."""
    environment, (program, *arguments) = SERVERS[name]
    binary = venvs / environment / "bin" / program
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


def throughput_without_http(bundle: Path, images: Mapping[str, bytes]) -> dict[str, float]:
    """Predictions per second of two processes that only classify, by input."""
    with ProcessPoolExecutor(2) as pool:
        return {
            name: sum(pool.map(classify_for, [bundle] * 2, [image] * 2, [SECONDS[name]] * 2))
            for name, image in images.items()
        }


def classify_for(bundle: Path, image: bytes, seconds: float) -> float:
    """Predictions per second of one process."""
    model = load_model(bundle)
    predictions, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        model.classify(image)
        predictions += 1
    return predictions / (time.perf_counter() - start)


def installed_megabytes(environment: Path) -> float:
    """What the packages of an environment take on the disk, without Python's bytecode."""
    files = (path for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc") / 1e6

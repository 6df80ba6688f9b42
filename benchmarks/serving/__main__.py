"""This server beside others, with the same network: `python -m benchmarks.serving --venvs DIR`.

Each server is a process of its own on this machine, asked by wrk (`apt install wrk`; one thread)
with the form that curl sends. All are measured in turn, round after round, so that a slow minute
of the machine spoils no comparison: ratios are taken within a round, and their median and spread
are told. DIR holds a virtual environment for each of benchmarks/serving/rivals/*.txt, as
`make bench` makes them; servers whose environment is missing are left out.

Writes benchmarks/serving/README.md and images/serving.png. --short takes one round at 16
connections and prints its page instead.
"""

import argparse
import datetime
import http.client
import io
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from werkzeug.test import create_environ

from benchmarks.serving.latency import first_answer, jpeg_of_a_phone, milliseconds
from benchmarks.serving.load import (
    BOUNDARY,
    FROG,
    ROOT,
    Load,
    multipart,
    need_wrk,
    resident_megabytes,
    started,
    wait_until_idle,
    wrk,
)
from rest_api.api import sent_images
from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.engine import load_engine
from rest_api.gateway import call_wsgi
from rest_api.images import decode, to_square
from rest_api.settings import DEFAULT_MODEL
from training import plots
from training.export import write_formats, write_manifest
from training.files import replacing

PAGE = ROOT / "benchmarks" / "serving" / "README.md"
CONNECTIONS = (1, 4, 16, 64)
ROUNDS = 5
SECONDS = {"32-pixel PNG": 2, "256-pixel JPEG": 2, "12-megapixel JPEG": 5}  # of load
MOST_REFUSED = 0.1  # of the requests; with more, a p50 says nothing of answers
HERE = "here"  # the environment that this runs in
OURS = "ours, 8 bits"
APP = ("rest_api/app.py", "--port", "{port}", "--drain", "0")
SERVERS = {  # name: (environment, command after its bin/)
    OURS: ("ours", ("python", *APP)),
    "ours, 32 bits": (
        "ours",
        ("python", *APP, "--engine", "litert-float32", "--model", "{bundle}"),
    ),
    "ours, Keras": (HERE, ("python", *APP, "--engine", "keras")),
    "blog pattern": ("blog", ("python", "-m", "benchmarks.serving.rivals.blog", "{port}")),
    "LitServe": ("litserve", ("python", "-m", "benchmarks.serving.rivals.lit", "{port}")),
    "BentoML": (
        "bentoml",
        ("bentoml", "serve", "benchmarks.serving.rivals.bento:Classifier", "--port", "{port}"),
    ),
}


# Of each round, by server, by input and connections.
Rounds = Sequence[Mapping[str, Mapping[tuple[str, int], Load]]]


@dataclass(frozen=True)
class Cost:
    """What a server needs beside time."""

    first_answer: float  # seconds from its start
    resident: Mapping[int, float]  # MB of all its processes after the load of so many connections
    installed: float  # MB of its environment


def inputs() -> dict[str, bytes]:
    """What is sent: a small PNG, a middling JPEG, a photo of a phone."""
    small = io.BytesIO()
    Image.open(FROG).resize((32, 32)).save(small, "PNG")
    return {
        "32-pixel PNG": small.getvalue(),
        "256-pixel JPEG": FROG.read_bytes(),
        "12-megapixel JPEG": jpeg_of_a_phone(),
    }


def complete_bundle(folder: Path) -> Path:
    """The shipped network in all formats; its 32-bit LiteRT file is too large to be shipped."""
    network = keras.saving.load_model(DEFAULT_MODEL / "model.keras", compile=False)
    write_formats(network, folder)
    manifest = load_bundle(DEFAULT_MODEL).manifest
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("schema", "files")})
    return folder


def measure(
    command: Sequence[str], images: Mapping[str, bytes], connections: Sequence[int]
) -> tuple[float, dict[int, float], dict[tuple[str, int], Load]]:
    """Seconds to the first answer, MB after each load, and what wrk saw of each input and load.

    The MB are those after the last input, the largest.
    """
    with started(command) as (port, pid):
        address = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        ready = first_answer(address, images["32-pixel PNG"])
        loads, resident = {}, {}
        url = f"http://127.0.0.1:{port}/predict"
        for name, image in images.items():
            wrk(url, image, connections[0], 1)
            for number in connections:
                wait_until_idle(pid)
                loads[name, number] = wrk(url, image, number, SECONDS[name])
                resident[number] = resident_megabytes(pid)
        return ready, resident, loads


def loop(image: bytes, seconds: float) -> float:
    """Answers a second of one process that decodes, shrinks and asks the network, without HTTP."""
    bundle = load_bundle(DEFAULT_MODEL)
    predict = load_engine(bundle)
    answers, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        predict(to_square(decode(image, bundle.input_size), bundle.input_size, bundle.resize)[None])
        answers += 1
    return answers / (time.perf_counter() - start)


def limit(images: Mapping[str, bytes]) -> dict[str, float]:
    """Answers a second of two such processes."""
    with ProcessPoolExecutor(2) as pool:
        return {
            name: sum(pool.map(loop, [image] * 2, [SECONDS[name]] * 2))
            for name, image in images.items()
        }


def stages(image: bytes) -> dict[str, float]:
    """Median milliseconds of each stage of one request, alone in a process, measured in turn."""
    app = create_app()
    bundle = load_bundle(DEFAULT_MODEL)
    side, predict = bundle.input_size, load_engine(bundle)
    body = multipart(image)
    form = f"multipart/form-data; boundary={BOUNDARY}"
    asked = create_environ("/predict", method="POST", data=body, content_type=form)

    def request() -> dict[str, Any]:
        return {**asked, "wsgi.input": io.BytesIO(body)}

    def parse() -> None:
        with app.request_context(request()) as context:
            sent_images(context.request)

    decoded = decode(image, side)
    pixels = to_square(decoded, side, bundle.resize)[None]
    calls = {
        "parse": parse,
        "decode": lambda: decode(image, side).load(),
        "resize": lambda: to_square(decoded, side, bundle.resize),
        "infer": lambda: predict(pixels),
        "all": lambda: call_wsgi(app.wsgi_app, request()),
    }
    turns = [[milliseconds(call, 1)[0] for call in calls.values()] for _ in range(100)]
    medians = dict(zip(calls, np.median(turns, axis=0).tolist(), strict=True))
    whole = medians.pop("all")
    return medians | {"route, encode": whole - sum(medians.values()), "all": whole}


def environment_of(name: str, venvs: Path) -> Path:
    return Path(sys.prefix) if name == HERE else venvs / name


def installed_megabytes(environment: Path) -> float:
    """What the packages of an environment take on the disk, without Python's bytecode."""
    files = (path for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc") / 1e6


def ratios(rounds: Rounds, other: str, key: tuple[str, int]) -> tuple[list[float], list[float]]:
    """How many times as many answers as another server, and how many times sooner, by round.

    Infinitely many where the other gave none.
    """
    pairs = [(each[OURS][key], each[other][key]) for each in rounds]
    return (
        [a.per_second / b.per_second if b.per_second else math.inf for a, b in pairs],
        [b.p50 / a.p50 if b.per_second else math.inf for a, b in pairs],
    )


def mostly_answered(load: Load) -> bool:
    """Whether its p50 is that of answers: refusals are quick."""
    return load.refused <= MOST_REFUSED * load.requests


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compared(rounds: Rounds, servers: Iterable[str]) -> str:
    """How many times ours is as fast as each other server, as a table."""
    rows = []
    for key, other in product(rounds[0][OURS], servers):
        if other == OURS:
            continue
        rates, sooner = map(spread, ratios(rounds, other, key))
        if not all(mostly_answered(each[name][key]) for each in rounds for name in (OURS, other)):
            sooner = "refused"
        rows.append([f"{key[0]}, {key[1]}", other, rates, sooner])
    return table(["input, connections", "other", "answers", "p50"], rows)


def needed(costs: Mapping[str, Cost]) -> str:
    """What each server needs beside time, as a table."""
    resident = [f"resident, {number} (MB)" for number in costs[OURS].resident]
    rows = []
    for name, cost in costs.items():
        megabytes = [f"{each:,.0f}" for each in (*cost.resident.values(), cost.installed)]
        rows.append([name, f"{cost.first_answer:.2f}", *megabytes])
    return table(["server", "first answer (s)", *resident, "installed (MB)"], rows)


def share_of_limit(rounds: Rounds, limits: Sequence[Mapping[str, float]], connections: int) -> str:
    """What is possible without HTTP, and how much of it the server reaches, as a table."""
    rows = []
    for name in limits[0]:
        most = [each[name] for each in limits]
        rates = [each[OURS][name, connections].per_second for each in rounds]
        shares = [100 * rate / top for rate, top in zip(rates, most, strict=True)]
        rows.append([name, f"{statistics.median(most):,.0f}", spread(shares)])
    return table(["input", "answers/s without HTTP", "reached (%)"], rows)


def all_figures(rounds: Rounds, servers: Iterable[str]) -> str:
    """What wrk saw of each server, as a table."""
    rows = []
    for (name, number), server in product(rounds[0][OURS], servers):
        seen = [each[server][name, number] for each in rounds]
        rate, p50, p99 = (
            statistics.median(getattr(load, what) for load in seen)
            for what in ("per_second", "p50", "p99")
        )
        errors = sum(load.failed + load.refused for load in seen)
        cells = [f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{errors}"]
        rows.append([f"{name}, {number}", server, *cells])
    return table(
        ["input, connections", "server", "answers/s", "p50 (ms)", "p99 (ms)", "errors"], rows
    )


def page(
    rounds: Rounds,
    costs: Mapping[str, Cost],
    limits: Sequence[Mapping[str, float]],
    breakdown: Mapping[str, Mapping[str, float]],
) -> str:
    """All that was measured, as Markdown."""
    busiest = max(number for _, number in rounds[0][OURS] if number <= 16)
    parts = next(iter(breakdown.values()))
    times = [[name, *(f"{ms:.2f}" for ms in each.values())] for name, each in breakdown.items()]
    sections = [
        f"# Serving, side by side\n\n{datetime.date.today().isoformat()}, {os.cpu_count()} cores, "
        f"which the load generator (wrk) shares; {len(rounds)} rounds, all servers in turn in "
        "each. Medians of the rounds; of ratios, the least and the most too. Written by "
        "`python -m benchmarks.serving`.",
        "## Against the others\n\nHow many times as many answers a second, how many times sooner "
        f'half of them come, {OURS} against each ("refused": one of the two refused over a tenth):',
        compared(rounds, costs),
        "## What each needs\n\nThe least of the rounds until the first answer; all its processes, "
        "right after so many connections have sent the last input; its packages, without bytecode.",
        needed(costs),
        "## The limit\n\nTwo processes that do the same without HTTP, and what share of it the "
        f"server reaches at {busiest} connections:",
        share_of_limit(rounds, limits, busiest),
        "## Where the time goes\n\nMilliseconds of one request, alone in a process:",
        table(["input", *parts], times),
        "## All figures\n\nErrors count refusals (503) too.",
        all_figures(rounds, costs),
    ]
    return "\n\n".join(sections) + "\n"


def draw(rounds: Rounds) -> Figure:
    """Answers a second at 16 connections, a panel for each input."""
    names = {name: None for name, number in rounds[0][OURS] if number == 16}
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        rates = {
            server: statistics.median(each[server][name, 16].per_second for each in rounds)
            for server in rounds[0]
        }
        colours = [plots.BLUE if server == OURS else plots.GREY for server in rates]
        drawn = axes.barh(list(rates), list(rates.values()), color=colours)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
        axes.set(title=name, xlabel="answers a second")
        axes.margins(x=0.2)
        axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    return figure


def commands_in(venvs: Path, bundle: Path) -> dict[str, list[str]]:
    """The command of each server whose environment is there."""
    commands = {}
    for name, (environment, (program, *rest)) in SERVERS.items():
        if (binary := environment_of(environment, venvs) / "bin" / program).exists():
            commands[name] = [
                str(binary),
                *(part.replace("{bundle}", str(bundle)) for part in rest),
            ]
        else:
            print(f"{name} is left out: there is no {binary}", file=sys.stderr)
    return commands


def take_turns(
    commands: Mapping[str, Sequence[str]],
    venvs: Path,
    images: Mapping[str, bytes],
    connections: Sequence[int],
    number: int,
) -> tuple[list[dict[str, dict[tuple[str, int], Load]]], list[dict[str, float]], dict[str, Cost]]:
    """Each round's loads by server, its limits, and what each server needs."""
    rounds, limits, costs = [], [], {}
    for turn in range(number):
        limits.append(limit(images))
        seen = {}
        for name, command in commands.items():
            ready, resident, seen[name] = measure(command, images, connections)
            installed = installed_megabytes(environment_of(SERVERS[name][0], venvs))
            least = min(ready, costs[name].first_answer) if name in costs else ready
            costs[name] = Cost(least, resident, installed)
            print(f"round {turn + 1}: {name}, first answer after {ready:.2f} s", flush=True)
        rounds.append(seen)
    return rounds, limits, costs


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure this server beside others.")
    parser.add_argument("--venvs", type=Path, required=True, help="a folder of their environments")
    parser.add_argument("--short", action="store_true", help="one round at 16 connections")
    args = parser.parse_args()
    need_wrk()
    connections, number = ((16,), 1) if args.short else (CONNECTIONS, ROUNDS)
    images = inputs()
    with tempfile.TemporaryDirectory() as folder:
        commands = commands_in(args.venvs, complete_bundle(Path(folder)))
        rounds, limits, costs = take_turns(commands, args.venvs, images, connections, number)
    breakdown = {name: stages(image) for name, image in images.items()}
    if args.short:
        print(page(rounds, costs, limits, breakdown))
        return
    with replacing(PAGE) as part:
        part.write_text(page(rounds, costs, limits, breakdown), encoding="utf-8")
    plots.save(draw(rounds), ROOT / "images" / "serving.png")
    print(f"Written: {PAGE.relative_to(ROOT)}, images/serving.png")


if __name__ == "__main__":
    main()

"""Jobs on a real cluster of several Ray nodes, all on this machine, of which some die."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks.cluster import add_node, ray_cluster
from rest_api.classifier import load_model
from rest_api.predict import classify_all
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, encode, picture

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(3600)]

SLOW, QUICK = 230, 20  # photos that take long to decode, and others


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a000.png").write_bytes(encode(picture(0, (1600, 1200))))
    for i in range(1, SLOW):
        (folder / f"a{i:03}.png").hardlink_to(folder / "a000.png")
    for i in range(QUICK):
        (folder / f"b{i:02}.png").write_bytes(encode(picture(i)))
    return folder


def start(cluster: Any, photos: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rest_api.predict", photos, *options]
    command += ["--cluster", cluster.address, "--output", output]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
    """The exit status, and what is written to standard error but by Ray's C++."""
    _, errors = process.communicate(timeout=600)
    return process.returncode, [line for line in errors.splitlines() if ".cc:" not in line]


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, "it has ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finished(output: Path) -> dict[str, int]:
    """When each file of predictions was written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("predictions/*")}


def rows(output: Path) -> list[dict]:
    return pq.read_table(output / "predictions").to_pylist()


def actors(cluster: Any) -> list[psutil.Process]:
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    return [
        child
        for raylet in raylets
        for child in psutil.Process(raylet).children()
        if "MapWorker" in " ".join(child.cmdline())
    ]


def test_killed_job_goes_on_to_the_answers_of_the_plain_command(cluster, photos, tmp_path):
    output = tmp_path / "out"
    (photos / "cut.jpg").write_bytes(FROG.read_bytes()[:5000])
    first = start(cluster, photos, output)
    wait_until(lambda: finished(output), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = finished(output)
    assert 0 < len(done) < 5

    status, lines = finish(start(cluster, photos, output))
    assert status == 1
    assert lines == [
        f"{photos}/cut.jpg: The JPEG file is truncated, damaged or too large.",
        "Files that could not be read: 1. --retry-errors tries them again.",
    ]
    assert finished(output).items() >= done.items()  # nothing was done again
    assert not list((output / "unfinished").iterdir())
    paths = sorted(map(str, photos.iterdir()))
    assert [row["path"] for row in rows(output)] == paths
    model = load_model(DEFAULT_MODEL, threads=2)
    for row, (path, alone) in zip(rows(output), classify_all(paths, model, 1, 2), strict=True):
        if path.endswith("cut.jpg"):
            assert row["error"] == str(alone)
            continue
        ((label, probability),) = alone.classes
        expected = (label, pytest.approx(probability, abs=1e-6))
        assert (row["label"], row["probability"]) == expected
        assert (row["uncertain"], row["none_of_these"]) == (alone.uncertain, alone.none_of_these)

    shutil.copy(FROG, photos / "cut.jpg")
    assert finish(start(cluster, photos, output, "--retry-errors")) == (0, [])
    assert [row["path"] for row in rows(output)] == paths
    (row,) = [row for row in rows(output) if row["path"].endswith("cut.jpg")]
    assert (row["label"], row["error"]) == ("frog", None)


def test_dead_actor_and_lost_node_cost_no_photo(cluster, photos, tmp_path):
    output = tmp_path / "out"
    process = start(cluster, photos, output, "--embeddings")
    wait_until(lambda: finished(output), process)
    actors(cluster)[0].kill()
    wait_until(lambda: len(finished(output)) > 1, process)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    assert process.poll() is None
    assert finish(process) == (0, [])
    assert [row["path"] for row in rows(output)] == sorted(map(str, photos.iterdir()))
    assert not any(row["error"] for row in rows(output))
    assert {len(row["embedding"]) for row in rows(output)} == {288}
    add_node(cluster, cpus=1)


def test_cluster_is_closed_to_whoever_lacks_its_token(cluster, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another-cluster-for-tests-elsewhere")
    process = start(cluster, photos, tmp_path / "out")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(f"error: the job on {cluster.address} stopped: ")
    assert not finished(tmp_path / "out")

"""Features and runs on a cluster of Ray nodes, all on this machine.

What imports Ray is imported in the tests: its authentication is what the environment says then.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cluster import ray_cluster
from rest_api.errors import JobError
from tests.support import encode, picture, small_backbone
from training.checkpoint import RunError
from training.cifar10.study import VARIANTS
from training.cifar10.train import run_recipe
from training.photos.features import features, pooled, read_cache
from training.photos.inspect import Photo, inspect

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Photo]:
    """Twenty photos in the working directory, whose relative paths no node knows."""
    monkeypatch.chdir(tmp_path)
    for i in range(20):
        Path(f"{i}.png").write_bytes(encode(picture(i)))
    found, _ = inspect([(Path(f"{i}.png"), "any") for i in range(20)])
    return found


def test_features_of_a_cluster_are_those_of_one_machine(cluster, photos, tmp_path):
    from training.cluster import compute_features

    network = pooled(small_backbone(), 32)
    there, here = tmp_path / "there.npz", tmp_path / "here.npz"
    on_cluster = partial(compute_features, cluster.address)
    found = features(network, photos, there, views=4, compute=on_cluster)
    np.testing.assert_allclose(found, features(network, photos, here, views=4), atol=1e-3)
    assert read_cache(there, 24).keys() == read_cache(here, 24).keys()

    nowhere = partial(compute_features, "nowhere")  # would be refused
    again = features(network, photos, here, views=4, compute=nowhere)
    np.testing.assert_allclose(found, again, atol=1e-3)
    lost = replace(photos[0], path=Path("lost.png"), digest="0" * 64)
    with pytest.raises(JobError, match=rf"^the job on {cluster.address} stopped: .*lost\.png"):
        features(network, [*photos, lost], there, compute=on_cluster)


def test_runs_side_by_side_outlive_their_processes_and_each_others_errors(
    cluster, tmp_path, small_cifar, monkeypatch
):
    from training.cluster import side_by_side

    monkeypatch.chdir(tmp_path)
    variant = partial(run_recipe, "blocks-1", VARIANTS["blocks-1"], epochs=1, dtype="float32")

    def dies() -> str:
        checkpoint = Path("checkpoint")
        if checkpoint.exists():
            return f"went on with {os.environ['TF_NUM_INTRAOP_THREADS']} thread"
        checkpoint.touch()
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def diverges() -> str:
        raise RunError("Training diverged.")

    calls = {"dies": dies, "variant": partial(variant, data=small_cifar)}
    went_on, result = side_by_side(calls, cluster.address)
    assert went_on == "went on with 1 thread"
    assert result["epochs"] == 1
    assert (tmp_path / "runs" / "blocks-1-seed0" / "result.json").exists()

    Path("checkpoint").unlink()
    with pytest.raises(RunError, match=r"^Training diverged\.$"):
        side_by_side({"diverges": diverges, "dies": dies}, cluster.address)
    assert Path("checkpoint").exists()

    def always_dies() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def lives() -> str:
        Path("lived").touch()
        return ""

    with pytest.raises(JobError, match=r"^hopeless: "):
        side_by_side({"hopeless": always_dies, "lives": lives}, cluster.address)
    assert Path("lived").exists()


@pytest.mark.parametrize(
    ("runs", "nodes", "cpus"),
    [(3, [2], 1), (3, [8, 0, 8], 4), (1, [4.0, 16.0], 4), (22, [16], 1), (2, [], 1)],
)
def test_runs_share_the_processors_of_the_nodes(runs, nodes, cpus):
    from training.cluster import cpus_of_each

    assert cpus_of_each(runs, nodes) == cpus

"""Training on a Ray cluster: the option `--cluster ADDRESS` of the commands.

Either the features of photos are computed on all nodes, or whole runs, each on one node. No
training is spread over nodes.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray
from tqdm import tqdm

from rest_api.bundle import Resize
from rest_api.cluster import connected
from rest_api.errors import JobError

if TYPE_CHECKING:
    import keras

    from training.photos.inspect import Photo

AHEAD = 1000  # batches that wait for a node, so that the list of waiting ones stays short
RETRIES = 3  # of a task whose node or process died
PACKAGE = Path(__file__).parent
DIRECTORIES = ("CIFAR10_DIR", "CIFAR100_DIR")  # variables that a task gets from here
Result = TypeVar("Result")


def compute_features(
    address: str, network: "keras.Model", wanted: "Sequence[tuple[Photo, int]]", resize: Resize
) -> Iterator[tuple[list[str], np.ndarray]]:
    """The same as training.photos.features.compute, on every CPU of a cluster.

    The nodes read the photos by their paths. Raises JobError.
    """
    from training.photos.features import BATCH

    found = [(replace(photo, path=photo.path.absolute()), view) for photo, view in wanted]
    batches = (found[start : start + BATCH] for start in range(0, len(found), BATCH))
    with connected(address, PACKAGE):
        extract = task(features_of, cpus=1)
        # In a list: an argument of its own would be unpickled for each batch.
        shared = [ray.put(network)]
        waiting = [extract.remote(shared, batch, resize) for batch in islice(batches, AHEAD)]
        while waiting:
            (done,), waiting = ray.wait(waiting)
            waiting += [extract.remote(shared, batch, resize) for batch in islice(batches, 1)]
            yield ray.get(done)


def features_of(
    shared: list[ray.ObjectRef], batch: "Sequence[tuple[Photo, int]]", resize: Resize
) -> tuple[list[str], np.ndarray]:
    """The keys of a batch of views and their features, (B, channels) float16."""
    from training.photos.features import compute

    (result,) = compute(unpickled(*shared), batch, resize)
    return result


@cache
def unpickled(network: ray.ObjectRef) -> "keras.Model":
    """A network, built once in each process."""
    return ray.get(network)


def side_by_side(calls: Mapping[str, Callable[[], Result]], address: str) -> list[Result]:
    """The results of calls, named for the progress bar, each made in a Ray task of its own.

    Tasks work in this working directory, which all nodes share. So one whose node died goes on
    from the checkpoint of its run. Raises what a call has raised, when all have ended; JobError.
    """
    results: dict[ray.ObjectRef, Any] = {}
    with (
        connected(address, PACKAGE),
        tqdm(total=len(calls), desc="runs", unit="run", disable=None) as bar,
    ):
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        start = task(run_in, cpus_of_each(len(calls), nodes))
        names = {start.remote(Path.cwd(), call): name for name, call in calls.items()}
        waiting = list(names)
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:  # its process died again and again
                result = JobError(f"{names[done]}: {error}")
            results[done] = result
            bar.update()
            failed = isinstance(result, Exception)
            tqdm.write(f"{names[done]}: {'stopped by an error' if failed else 'finished'}")
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return [results[each] for each in names]


def run_in(folder: Path, call: Callable[[], Result]) -> Result | Exception:
    """The result of a call, or what it raised: other runs do not end with this one."""
    os.chdir(folder)
    try:
        return call()
    except Exception as error:  # raised in side_by_side
        return error


def cpus_of_each(runs: int, nodes: Sequence[float]) -> int:
    """The CPUs of a run: those of the smallest node, shared among the runs that fall to it.

    `nodes` are the CPUs of each node; one without any, such as the head, takes no run.
    """
    working = [cpus for cpus in nodes if cpus >= 1]
    return max(1, int(min(working) // math.ceil(runs / len(working)))) if working else 1


def task(function: Callable[..., Any], cpus: int) -> Any:
    """A Ray task that computes in so many threads, and is started again where its node dies."""
    variables = {"TF_NUM_INTRAOP_THREADS": str(cpus)}
    variables |= {name: os.environ[name] for name in DIRECTORIES if name in os.environ}
    return ray.remote(function).options(
        num_cpus=cpus, max_retries=RETRIES, runtime_env={"env_vars": variables}
    )

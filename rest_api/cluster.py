"""Classify millions of photos on a Ray cluster: `python -m rest_api.predict … --cluster ADDRESS`.

A job is a folder, OUTPUT, on storage that all nodes share:

    manifest/       the paths of the photos, in parts of 50 to 5,000, listed once
    job.json        the request, and how many parts there are; written when they are complete
    predictions/    one Parquet file for each part that is done, of the same name
    unfinished/     files that are being written

An actor, one for each CPU, reads a part of the manifest, then the photos, and renames the finished
file into its place. So a part is done or not, whatever dies when; it may be done twice, which
gives the same file. The same command does the parts that are not there yet. Nothing else is kept:
Ray Data's own checkpoints hold the path of each photo that is done in the memory of each filter.
"""

import itertools
import json
import logging
import os
import posixpath
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import ray
import ray.data
from pyarrow.fs import FileType
from ray._private.services import canonicalize_bootstrap_address
from tqdm import tqdm

from rest_api.bundle import FILENAMES, MANIFEST, Bundle, Engine
from rest_api.classifier import load_model
from rest_api.errors import JobError, RequestError
from rest_api.files import map_ahead, no_files_in, reason
from rest_api.images import silence_pillow
from rest_api.manifest import (
    absolute,
    exists,
    locate,
    names_in,
    part_name,
    photos_of,
    read,
    read_manifest,
    read_parquet,
    write_manifest,
    write_parquet,
)

READERS = 16  # photos that an actor reads at a time, since remote storage answers late
CONNECT_TIMEOUT = 10  # seconds
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "probability": pa.float32(),
        "uncertain": pa.bool_(),
        "none_of_these": pa.bool_(),
        "error": pa.string(),  # null where the photo was classified; else the others are
    }
)


class Job(NamedTuple):
    """A request. A folder that holds another one is refused."""

    paths: list[str]
    engine: Engine
    max_pixels: int
    embeddings: bool
    model: dict[str, Any]  # the bundle's model.json, in which is the SHA-256 of its network


class Classifier:
    """Classifies parts of the manifest, in an actor of one CPU."""

    def __init__(
        self,
        files: dict[str, bytes],
        engine: Engine,
        max_pixels: int,
        embeddings: bool,
        output: str,
    ) -> None:
        """`files` are those of the bundle, which need not be on the node."""
        silence_pillow()
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            self.model = load_model(folder, engine, 1, max_pixels)
        self.embeddings = embeddings
        self.schema = SCHEMA
        if embeddings:
            size = self.model.bundle.embedding_size
            self.schema = SCHEMA.append(pa.field("embedding", pa.list_(pa.float32(), size)))
        self.output = output

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"part": (N,) str}, once the predictions of all N are in their place."""
        for part in batch["part"]:
            self.classify_part(str(part))
        return batch

    def classify_part(self, part: str) -> None:
        """Write the predictions of a part; those that an earlier run had are kept, errors not."""
        target = f"{self.output}/predictions/{part}"
        rows: dict[str, dict[str, Any]] = {}
        if exists(target):
            rows = {
                row["path"]: row for row in read_parquet(target).to_pylist() if not row["error"]
            }
        paths = read_manifest(self.output, part).to_pylist()
        missing = [path for path in paths if path not in rows]
        for path, data in zip(missing, map_ahead(read, missing, READERS), strict=True):
            rows[path] = self.classify(path, data)
        table = pa.Table.from_pylist([rows[path] for path in paths], self.schema)
        write_parquet(table, target, f"{self.output}/unfinished")

    def classify(self, path: str, data: bytes | OSError) -> dict[str, Any]:
        """The row of a photo."""
        try:
            if isinstance(data, OSError):
                raise data
            prediction = self.model.classify(data, top=1, embedded=self.embeddings)
        except (RequestError, OSError) as error:
            return {"path": path, "error": reason(error)}
        ((label, probability),) = prediction.classes
        return {
            "path": path,
            "label": label,
            "probability": probability,
            "uncertain": prediction.uncertain,
            "none_of_these": prediction.none_of_these,
            "embedding": prediction.embedding,
        }


def classify_on_cluster(
    address: str, job: Job, output: str, bundle: Bundle, retry_errors: bool
) -> Iterator[tuple[str, str]]:
    """Classify the photos of a job that no earlier run has classified.

    Yields each photo that could not be read, and why. Raises JobError and BundleError.
    """
    output = absolute(output).rstrip("/")
    network = bundle.file(job.engine)
    files = {MANIFEST: (bundle.path / MANIFEST).read_bytes(), FILENAMES[job.engine]: network}
    try:
        parts, images = open_job(job, output)
        left = sorted(set(map(part_name, range(parts))) - names_in(f"{output}/predictions"))
        if retry_errors:
            left = sorted({*left, *(file for _, _, file in failures_in(output))})
        if left:
            run(address, left, images, (files, job.engine, job.max_pixels, job.embeddings, output))
            filesystem, scratch = locate(f"{output}/unfinished")
            filesystem.delete_dir_contents(scratch)  # of processes that were killed
        for path, error, _ in failures_in(output):
            yield path, error
    except (pa.ArrowException, OSError, UnicodeError) as error:  # a name that is not UTF-8
        raise JobError(f"{output}: {reason(error)}.") from error


def open_job(job: Job, output: str) -> tuple[int, int]:
    """The numbers of parts and photos of the job in a folder, which is begun if there is none.

    Raises JobError if it is another job's, or there are no photos.
    """
    filesystem, folder = locate(output)
    path = posixpath.join(folder, "job.json")
    if filesystem.get_file_info(path).type == FileType.File:
        try:
            with filesystem.open_input_stream(path) as stream:
                begun = json.loads(stream.read())
            counts = int(begun["parts"]), int(begun["images"])
            differ = [each for each, value in job._asdict().items() if begun["job"][each] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise JobError(f"{output}/job.json is damaged. Name another --output.") from error
        if differ:
            raise JobError(
                f"{output} holds a job with another `{differ[0]}`. Name another --output."
            )
    else:
        for name in ("manifest", "predictions", "unfinished"):
            filesystem.create_dir(posixpath.join(folder, name))
        found = itertools.chain.from_iterable(map(photos_of, job.paths))
        parts, images = write_manifest(found, output)
        if not images:
            raise JobError(no_files_in(job.paths))
        counts = parts, images
        begun = {"job": job._asdict(), "parts": parts, "images": images}
        scratch = posixpath.join(folder, "unfinished", "job.json")
        with filesystem.open_output_stream(scratch) as stream:
            stream.write(json.dumps(begun, indent=1).encode())
        filesystem.move(scratch, path)
    return counts


def run(address: str, parts: Sequence[str], images: int, arguments: tuple[Any, ...]) -> None:
    """Have actors with the arguments of Classifier do parts; shows progress. Raises JobError."""
    with connected(address):
        todo = ray.data.from_items(
            [{"part": part} for part in parts], override_num_blocks=len(parts)
        )
        done = todo.map_batches(
            Classifier,
            fn_constructor_args=arguments,
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1),
        )
        rows = done.iter_rows()
        for _ in tqdm(rows, f"{images:,} photos", total=len(parts), unit="part", disable=None):
            pass


def refuse_unreachable(address: str) -> None:
    """Raise JobError where nothing listens, since Ray would try for minutes."""
    try:
        found = canonicalize_bootstrap_address(address)  # also that of `auto`; None for `local`
        if found:
            host, _, port = found.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise JobError(
            f"no Ray cluster answers at {address} ({reason(error)}). "
            "Start one, or give the HOST:PORT of its head node."
        ) from error


@contextmanager
def connected(address: str, *packages: Path) -> Iterator[None]:
    """Use a Ray cluster whose nodes get the code of this package and of others of ours.

    Raises JobError, also in place of what Ray raises meanwhile.
    """
    refuse_unreachable(address)
    # Ray reports its use to its makers where nobody forbids it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    modules = [str(package) for package in (Path(__file__).parent, *packages)]
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(
            address,
            runtime_env={"py_modules": modules, "excludes": ["assets", "static", "notebooks"]},
            logging_level=logging.ERROR,
            log_to_driver=False,
            **options,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        last = (str(error).strip() or repr(error)).splitlines()[-1]  # below a node's traceback
        raise JobError(f"the job on {address} stopped: {last}") from error
    finally:
        ray.shutdown()


def failures_in(output: str) -> Iterator[tuple[str, str, str]]:
    """Each photo that could not be read: its path, why, and the name of its part."""
    filesystem, folder = locate(f"{output}/predictions")
    files = [posixpath.join(folder, name) for name in sorted(names_in(f"{output}/predictions"))]
    predictions = pyarrow.dataset.dataset(files, SCHEMA, "parquet", filesystem)
    for batch in predictions.to_batches(
        columns=["path", "error", "__filename"],
        filter=pc.field("error").is_valid(),
        batch_size=10_000,
    ):
        for row in batch.to_pylist():
            yield row["path"], row["error"], posixpath.basename(row["__filename"])

"""The photos of a cluster's job: paths and URIs on any storage, listed once, in parts.

pyarrow reads s3:// and gs://, and what fsspec knows, as fsspec+NAME://.
"""

import glob
import io
import itertools
import posixpath
import re
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate
from pandas.util import hash_array
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from rest_api.errors import JobError
from rest_api.files import files_of, reason

MIN_PART, MAX_PART = 50, 5000  # photos of a part


def locate(path: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and what the path is called there.

    A name is taken as it stands, without %-escapes. Raises JobError.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return LocalFileSystem(), str(Path(path).absolute())
    host, _, name = rest.partition("/")
    filesystem, root = filesystem_of(f"{scheme}://{host}/")
    return filesystem, posixpath.join(root, name)


@cache
def filesystem_of(uri: str) -> tuple[FileSystem, str]:
    try:
        filesystem, root = FileSystem.from_uri(uri)
    except (pa.ArrowException, ImportError, OSError, ValueError) as error:
        raise JobError(f"{uri} cannot be reached: {reason(error)}") from error
    return filesystem, root


def absolute(path: str) -> str:
    """A path that means the same on every node."""
    return path if "://" in path else str(Path(path).absolute())


def read(path: str) -> bytes | OSError:
    """The bytes of a photo, or why there are none."""
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        filesystem, name = locate(path)
        with filesystem.open_input_stream(name) as stream:
            return bytes(stream.read())
    except OSError as error:
        return error
    except (JobError, pa.ArrowException) as error:
        return OSError(str(error))


def write_parquet(table: pa.Table, path: str, scratch: str) -> None:
    """Write a file in the folder `scratch`, then rename it; both are in one file system."""
    filesystem, name = locate(path)
    part = posixpath.join(locate(scratch)[1], uuid.uuid4().hex)
    pq.write_table(table, part, filesystem=filesystem)
    filesystem.move(part, name)


def read_parquet(path: str) -> pa.Table:
    filesystem, name = locate(path)
    return pq.read_table(name, filesystem=filesystem, partitioning=None)


def exists(path: str) -> bool:
    filesystem, name = locate(path)
    return bool(filesystem.get_file_info(name).type != FileType.NotFound)


def names_in(folder: str) -> set[str]:
    filesystem, name = locate(folder)
    return {entry.base_name for entry in filesystem.get_file_info(FileSelector(name))}


def photos_of(path: str) -> Iterator[str]:
    """The photos that a PATH stands for.

    Of a folder, all below it but hidden ones; of a pattern, the files that fit it; of a .txt or
    .parquet file, the paths and URIs in its lines or its column `path`. Raises JobError.
    """
    try:
        filesystem, name = locate(path)
        kind = filesystem.get_file_info(name).type
        if kind == FileType.NotFound and re.search(r"[*?[]", path):
            for match in matches(path):
                yield from listed_in(match)
        elif kind == FileType.Directory and "://" not in path:
            yield from files_of([path])
        elif kind == FileType.Directory:
            yield from walk(filesystem, name, path.partition("://")[0])
        else:
            yield from listed_in(path)
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{path} cannot be listed: {reason(error)}.") from error


def walk(filesystem: FileSystem, folder: str, scheme: str) -> Iterator[str]:
    """The URIs below a folder in the order of files_of; holds one folder's names at a time."""
    entries = filesystem.get_file_info(FileSelector(folder))
    entries = sorted((e for e in entries if e.base_name[:1] != "."), key=lambda e: e.path)
    yield from (f"{scheme}://{e.path}" for e in entries if e.type == FileType.File)
    for entry in entries:
        if entry.type == FileType.Directory:
            yield from walk(filesystem, entry.path, scheme)


def matches(pattern: str) -> Iterator[str]:
    """The files that fit a pattern with *, **, ? or […]. Raises JobError."""
    scheme, separator, _ = pattern.partition("://")
    if not separator:
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (a pattern may be absolute)
        yield from (name for name in found if not Path(name).is_dir())
        return
    filesystem, name = locate(pattern)
    folder = posixpath.dirname(re.split(r"[*?[]", name)[0])
    try:
        fits = re.compile(glob_translate(f"{scheme}://{name}")).match
    except ValueError as error:
        raise JobError(f"{pattern} is no pattern: {error}.") from error
    yield from filter(fits, walk(filesystem, folder, scheme))


def listed_in(file: str) -> Iterator[str]:
    """The paths that a list holds; any other file stands for itself. Raises JobError."""
    if not file.endswith((".txt", ".parquet")):
        yield file
        return
    filesystem, name = locate(file)
    try:
        if file.endswith(".txt"):
            with io.TextIOWrapper(filesystem.open_input_stream(name), "utf-8") as lines:
                yield from (absolute(line.strip()) for line in lines if line.strip())
            return
        with filesystem.open_input_file(name) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(10_000, columns=["path"]):
                yield from map(absolute, batch["path"].to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{file} is no list of paths: {reason(error)}.") from error


def write_manifest(paths: Iterable[str], output: str) -> tuple[int, int]:
    """Write the parts of the manifest; returns their number and that of the photos."""
    parts = images = 0
    rest = iter(paths)
    # A hundredth of the photos so far: a short list has parts for all CPUs, a long one few files.
    while part := list(itertools.islice(rest, min(max(images // 100, MIN_PART), MAX_PART))):
        write_part(pa.array(part), parts, output)
        parts, images = parts + 1, images + len(part)
    return parts, images - drop_repeats(parts, output)


def write_part(paths: pa.Array, number: int, output: str) -> None:
    table = pa.table({"path": paths.cast(pa.string())})
    write_parquet(table, f"{output}/manifest/{part_name(number)}", f"{output}/unfinished")


def part_name(number: int) -> str:
    return f"part-{number:07}.parquet"


def drop_repeats(parts: int, output: str) -> int:
    """Leave out what was listed before; returns how often. Holds 16 bytes a path."""

    def part(number: int) -> np.ndarray:  # of str
        return np.array(read_manifest(output, part_name(number)).to_pylist(), object)

    digests = [hash_array(part(number), categorize=False) for number in range(parts)]
    sorted_digests = np.concatenate([np.array([], np.uint64), *digests])
    sorted_digests.sort()
    twice = sorted_digests[1:][sorted_digests[1:] == sorted_digests[:-1]]
    seen: set[str] = set()
    dropped = 0
    for number in range(parts) if len(twice) else ():
        paths = part(number)
        keep = np.ones(len(paths), bool)
        for i in np.flatnonzero(np.isin(digests[number], twice)):
            keep[i] = paths[i] not in seen
            seen.add(paths[i])
        if not keep.all():
            dropped += int((~keep).sum())
            write_part(pa.array(paths[keep]), number, output)
    return dropped


def read_manifest(output: str, part: str) -> pa.ChunkedArray:
    return read_parquet(f"{output}/manifest/{part}")["path"]

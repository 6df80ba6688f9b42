"""The files that paths stand for, and work on many of them."""

import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

STDIN = "-"
Item = TypeVar("Item")
Result = TypeVar("Result")


def files_of(paths: Sequence[str]) -> Iterator[str]:
    """The files that the paths stand for: of a folder, all below it but hidden and special ones,
    and the folders that cannot be read, which are then reported as a file is."""
    unreadable: list[str] = []
    for path in paths:
        if path == STDIN or not stat.S_ISDIR(mode_of(path)):
            yield path
            continue
        below = os.walk(path, onerror=lambda error: unreadable.append(error.filename))
        for folder, folders, names in below:
            folders[:] = sorted(name for name in folders if name[0] != ".")
            files = (path_of(folder, name) for name in sorted(names) if name[0] != ".")
            # A pipe would be waited for. What cannot be looked at is reported when it is read.
            yield from (file for file in files if stat.S_ISREG(mode_of(file) or stat.S_IFREG))
    yield from unreadable


def path_of(folder: str, name: str) -> str:
    """The path of a file, which is not that of standard input."""
    path = str(Path(folder, name))
    return path if path != STDIN else f".{os.sep}{name}"


def mode_of(path: str) -> int:
    """The type of a file, for the module stat; 0 where it cannot be looked at."""
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0


def no_files_in(paths: Sequence[str]) -> str:
    return f"no files in {', '.join(paths)}. Name images, or a folder with some."


def map_ahead(
    call: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Call `call` on each item in threads; yields the results in the items' order.

    A few items ahead only, so that memory does not grow with their number.
    """
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(call, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def reason(error: Exception) -> str:
    """What went wrong, in one line without the name of the file."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


@contextmanager
def needs_ray() -> Iterator[None]:
    """Exit with one line that says how to install Ray, where an import lacks it."""
    try:
        yield
    except ImportError as error:
        sys.exit(
            'error: --cluster needs Ray: pip install "cifar10-cnn[cluster]", or in a clone: '
            f"pip install -r rest_api/requirements-cluster.txt ({error})"
        )

"""Write files so that a crash never leaves half of one in the place of a good one."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be written into a folder, which need not exist yet."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` if the block ends without error."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in the place of what was there."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` if the block ends without error.

    It is removed if not, at the latest by the next who replaces `path`: one at a time may do so.
    """
    scratch = path.with_name(f".{path.name}.part")
    new, old = scratch / "new", scratch / "old"

    def clean() -> None:
        if old.exists() and not path.exists():
            old.rename(path)
        if scratch.exists():
            shutil.rmtree(scratch)

    clean()
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        clean()

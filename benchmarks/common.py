"""What all benchmarks share: command lines, timing, figures with their spread, tables, images."""

import argparse
import io
import statistics
import timeit
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training import files
from training.files import check_writable, replacing

ROOT = Path(__file__).parents[1]
FROG = ROOT / "rest_api" / "frog.jpg"


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark, whose `--help` begins with the docstring of its module."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def output_file(text: str) -> Path:
    """A file of the command line that can be written; its folder need not exist yet."""
    path = Path(text)
    try:
        check_writable(path.parent)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{path} cannot be written: {error.strerror}. Give a file that can be."
        ) from error
    return path


def write_json(path: Path, record: object) -> None:
    """Write what was measured to an `output_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image file in one of Pillow's formats."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def milliseconds(call: Callable[[], object], n: int) -> np.ndarray:
    """The duration of each of `n` calls, (n,) float64; garbage is collected meanwhile, as ever."""
    return 1000 * np.array(timeit.repeat(call, "gc.enable()", number=1, repeat=n))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median of some rounds, the least and the most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def mean_and_std(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """The mean of some runs, and their sample standard deviation where there are several."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}{unit}"


def fpr95(known: np.ndarray, other: np.ndarray) -> float:
    """The false-positive rate at 95 % true positives: the share of the scores `other` that reach
    the threshold which 95 % of the scores `known` reach."""
    return float((other >= np.quantile(known, 0.05)).mean())


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table line by line; all columns but the first are numbers."""
    for cells in (heads, ["---", *["---:"] * (len(heads) - 1)]):
        yield f"| {' | '.join(cells)} |"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(table_lines(heads, rows))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print each row as soon as it has been measured."""
    for line in table_lines(heads, rows):
        print(line, flush=True)


def publish(sections: Sequence[str], page: Path, *, short: bool) -> None:
    """Write a page of the repository; only print it where the measurement was a short one."""
    text = "\n\n".join(sections) + "\n"
    if short:
        print(text)
        return
    with replacing(page) as part:
        part.write_text(text, encoding="utf-8")
    print(f"Written: {page.relative_to(ROOT)}")

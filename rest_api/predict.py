"""Classify images without a server: `python -m rest_api.predict photo.jpg folder/`.

Folders are searched to their depths, `-` is an image on standard input. All cores work; memory
stays the same however many images there are. With --output, the same command after an
interruption goes on where it was; it holds the names of the files that are answered.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO

from tqdm import tqdm

from rest_api.bundle import FILENAMES, Bundle, BundleError, load_bundle
from rest_api.classifier import LoadedModel, Prediction, load_model, percent
from rest_api.errors import JobError, RequestError, interruptible
from rest_api.files import STDIN, files_of, map_ahead, needs_ray, no_files_in, reason
from rest_api.images import read_image, silence_pillow
from rest_api.settings import DEFAULT_MODEL, VERSION, available_cores, model_path, option_of

MANY = 20  # files from which on there is a progress bar, on a terminal
NAMES = "surrogateescape"  # how names of files that are not UTF-8 are read, and so written
KILLED_BY_PIPE = 128 + 13  # what shells have as the status of a command that SIGPIPE ended


def classify_all(
    files: Iterable[str], model: LoadedModel, top: int, threads: int
) -> Iterator[tuple[str, Prediction | Exception]]:
    """Each file with its prediction, or with what went wrong, in their order."""

    def attempt(file: str) -> tuple[str, Prediction | Exception]:
        try:
            data = sys.stdin.buffer.read() if file == STDIN else read_image(file)
            return file, model.classify(data, top)
        except (RequestError, OSError) as error:
            return file, error

    yield from map_ahead(attempt, files, threads)


def is_same(path: str, output: Path | None) -> bool:
    """Whether a file is the one that the answers are written to, standard output by default."""
    try:
        written = output.stat() if output else os.fstat(sys.stdout.fileno())
        return os.path.samestat(written, Path(path).stat())
    except OSError:  # one of them is not there
        return False


def as_table(file: str, prediction: Prediction, _: Bundle) -> str:
    guesses = "  ".join(f"{label} {percent(share)}" for label, share in prediction.classes)
    verdict = "none of these: " if prediction.none_of_these else "uncertain: "
    return f"{file}  {verdict if prediction.uncertain else ''}{guesses}"


def as_json(file: str, prediction: Prediction, bundle: Bundle) -> str:
    best = [{"label": label, "probability": round(share, 6)} for label, share in prediction.classes]
    return json.dumps(
        {
            "file": file,
            "uncertain": prediction.uncertain,
            "none_of_these": prediction.none_of_these,
            "predictions": best,
            "model": {"name": bundle.name, "version": bundle.version},
        }
    )


def as_csv(file: str, prediction: Prediction, bundle: Bundle) -> str:
    guesses = [cell for label, share in prediction.classes for cell in (label, f"{share:.6f}")]
    verdicts = [str(each).lower() for each in (prediction.uncertain, prediction.none_of_these)]
    return csv_line([file, *verdicts, *guesses, bundle.name, bundle.version])


def csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # what ends a line is put in quotes
    return line.getvalue().removesuffix("\r\n")


def csv_header(top: int) -> str:
    guesses = [f"{name}_{i}" for i in range(1, top + 1) for name in ("label", "probability")]
    return csv_line(["file", "uncertain", "none_of_these", *guesses, "model", "version"])


FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}


def already_in(output: Path, form: str, top: int, bundle: Bundle) -> set[str]:
    """The files that an earlier run has answered; cuts off a line that it did not finish.

    Raises ValueError if it was another kind of run, or of another model.
    """
    if not output.exists():
        return set()
    with output.open("rb+") as file:
        lines = whole_lines(file)
        files, models = answers_in_json(lines) if form == "json" else answers_in_csv(lines, top)
        ours = (bundle.name, bundle.version)
        if others := models - {ours}:
            theirs = " ".join(map(str, others.pop()))
            raise ValueError(f"its answers are those of {theirs}, not of {' '.join(ours)}")
        file.truncate()
    return files


def whole_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a file, which is left at the end of the last whole one.

    Raises ValueError if there is a part of a line alone.
    """
    end = 0
    for line in file:
        if line.endswith(b"\n"):
            end += len(line)
            yield line.decode(errors=NAMES)
        elif not end:
            raise ValueError
    file.seek(end)


def answers_in_json(lines: Iterable[str]) -> tuple[set[str], set[tuple[str, str]]]:
    """The files that were answered, and the models' names and versions. Raises ValueError."""
    files, models = set(), set()
    try:
        for row in map(json.loads, lines):
            files.add(row["file"])
            models.add((row["model"]["name"], row["model"]["version"]))
    except (ValueError, TypeError, KeyError):
        raise ValueError("its lines are not JSON objects of this command") from None
    return files, models


def answers_in_csv(lines: Iterable[str], top: int) -> tuple[set[str], set[tuple[str, str]]]:
    """The same of a table with so many classes. Raises ValueError."""
    header = csv_header(top)
    columns = header.split(",")
    files, models = set(), set()
    try:
        rows = csv.reader(lines)
        if next(rows, columns) != columns:
            raise ValueError
        for row in rows:
            if len(row) != len(columns):
                raise ValueError
            files.add(row[0])
            models.add((row[-2], row[-1]))
    except (ValueError, csv.Error):
        raise ValueError(f"its columns are not {header}") from None
    return files, models


def write(
    predictions: Iterable[tuple[str, Prediction | Exception]],
    out: TextIO,
    form: str,
    bundle: Bundle,
) -> list[str]:
    """Write a line for each prediction; returns a line for each file that has none."""
    failures = []
    for file, prediction in predictions:
        if isinstance(prediction, Exception):
            failures.append(f"{file}: {reason(prediction)}")
        else:
            out.write(FORMATS[form](file, prediction, bundle) + "\n")
            out.flush()
    return failures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify images without a server.")
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="files, folders, or - for standard input")
    add("--version", action="version", version=VERSION)
    bundle = "a model bundle, or the name of a shipped one (%(default)s)"
    add("--model", type=model_path, default=DEFAULT_MODEL, help=bundle)
    add("--engine", choices=list(FILENAMES), help="what runs it (the model's own choice)")
    add("--top", type=int, default=3, help="classes to name, the best first (%(default)s)")
    add("--format", choices=list(FORMATS), default="table", help="of the answers (%(default)s)")
    add("--output", help="file for csv or json, continued where it ends; a folder with --cluster")
    add("--cluster", metavar="ADDRESS", help="Ray cluster: local, auto or HOST:PORT")
    add("--retry-errors", action="store_true", help="with --cluster: try again what had an error")
    add("--embeddings", action="store_true", help="with --cluster: write features as well")
    limit = option_of("max_pixels")
    about = f"{limit.help} ({limit.default})"
    add(limit.flag, default=limit.default, help=about, **limit.parsing)
    args = parser.parse_args()
    if args.top < 1:
        parser.error(f"--top must be 1 or more, not {args.top}")
    if args.cluster:
        if not args.output:
            parser.error("--cluster needs --output, a folder that all nodes can write to")
        if (args.top, args.format) != (parser.get_default("top"), parser.get_default("format")):
            parser.error("--cluster writes the best class to Parquet, without --top and --format")
        if STDIN in args.paths:
            parser.error("--cluster cannot read from standard input")
    elif args.retry_errors or args.embeddings:
        option = "--retry-errors" if args.retry_errors else "--embeddings"
        parser.error(f"{option} needs --cluster")
    elif args.output and args.format == "table":
        parser.error("--output needs --format csv or --format json")
    return args


def classify_on_cluster(args: argparse.Namespace) -> None:
    """Run the job of rest_api.cluster; list what could not be read. Raises BundleError."""
    with needs_ray():
        from rest_api import cluster, manifest
    bundle = load_bundle(args.model)
    engine = args.engine or bundle.engine
    if args.embeddings and not bundle.embedding_size:
        raise BundleError(f"{args.model} returns no features: export it again for --embeddings.")
    paths = [manifest.absolute(path) for path in args.paths]
    job = cluster.Job(paths, engine, args.max_pixels, args.embeddings, bundle.manifest)
    number = 0
    try:
        for path, why in cluster.classify_on_cluster(
            args.cluster, job, args.output, bundle, args.retry_errors
        ):
            number += 1
            print(f"{path}: {why}", file=sys.stderr)
    except JobError as error:
        sys.exit(f"error: {error}")
    if number:
        sys.exit(f"Files that could not be read: {number}. --retry-errors tries them again.")


def refuse_to_continue(output: str, error: Exception) -> NoReturn:
    sys.exit(f"error: {output} cannot be continued: {error}. Name another --output.")


@contextmanager
def opened(output: Path | None) -> Iterator[TextIO]:
    """The end of a file, or standard output. Ends the program where it cannot be written."""
    try:
        if output:
            with output.open("a", encoding="utf-8", errors=NAMES) as file:
                yield file
            return
        if isinstance(sys.stdout, io.TextIOWrapper):
            encoding = None if sys.stdout.isatty() else "utf-8"  # None leaves it as it is
            sys.stdout.reconfigure(encoding=encoding, errors=NAMES)
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # as of `predict folder | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more, and complain
        sys.exit(KILLED_BY_PIPE)
    except OSError as error:
        refuse_output(output or "standard output", error)


def refuse_output(output: Path | str, error: OSError) -> NoReturn:
    sys.exit(f"error: {output} cannot be written: {reason(error)}. Name a file that can be.")


def classify_here(args: argparse.Namespace) -> None:
    """Write an answer for each file; list what could not be read. Raises BundleError."""
    threads = available_cores()
    output = Path(args.output) if args.output else None
    model = load_model(args.model, args.engine, threads, args.max_pixels)
    bundle = model.bundle
    top = min(args.top, len(bundle.labels))
    try:
        done = already_in(output, args.format, top, bundle) if output else set()
    except ValueError as error:
        refuse_to_continue(args.output, error)
    except OSError as error:
        refuse_output(args.output, error)
    done.discard(STDIN)  # where another image may be each time

    def files() -> Iterator[str]:
        return (file for file in files_of(args.paths) if not is_same(file, output))

    answered = Counter(file in done for file in files())
    if not answered:
        sys.exit(f"error: {no_files_in(args.paths)}")
    if answered[True]:
        print(f"Files that {output} already answers: {answered[True]}.", file=sys.stderr)
    number = answered[False]
    waiting = (file for file in files() if file not in done)
    predictions = classify_all(waiting, model, top, threads)
    predictions = tqdm(predictions, total=number, unit="img", disable=number < MANY or None)
    with opened(output) as out:
        if args.format == "csv" and not (output and out.tell()):
            out.write(csv_header(top) + "\n")
        failures = write(predictions, out, args.format, bundle)
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {number} files could not be read:", *failures]))


def main() -> None:
    args = parse_arguments()
    silence_pillow()
    try:
        with interruptible("The same command continues." if args.output else ""):
            (classify_on_cluster if args.cluster else classify_here)(args)
    except BundleError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""A bundle on real photos: `python -m benchmarks.quality.photos_in_the_wild PHOTOS --others DIR …`.

PHOTOS holds a folder a class, named as the bundle's labels; each DIR, searched to its depths, holds
photos of other things (out-of-distribution, OOD). Prints how many photos are classified right, how
well probabilities are calibrated, how many are answered (not `uncertain`), and how well the
bundle's score tells known photos from others; shares with their 95 % Wilson intervals. Those of the
shipped bundles are kept in benchmarks/quality/records.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import command_line, fpr95, output_file, print_table, write_json
from rest_api.bundle import BundleError
from rest_api.classifier import LoadedModel, load_model
from rest_api.errors import RequestError
from rest_api.settings import DEFAULT_MODEL
from training import metrics
from training.card import Row, share
from training.photos.inspect import PhotosError, by_name, files_in, labelled_files

CONFIDENT = 0.9  # probability


class Classified(NamedTuple):
    """What the model says about N photos."""

    probabilities: np.ndarray  # (N, classes)
    scores: np.ndarray  # (N,)
    answered: np.ndarray  # (N,) bool: not uncertain


def classify(model: LoadedModel, files: Iterable[Path]) -> Classified:
    """Classify files one by one. Raises PhotosError, naming the file, if one is no photo."""
    rows = []
    for file in files:
        try:
            prediction = model.classify(file.read_bytes())
        except (RequestError, OSError) as error:
            raise PhotosError(f"{file}: {error}") from error
        by_label = dict(prediction.classes)
        probabilities = [by_label[label] for label in model.bundle.labels]
        rows.append((probabilities, prediction.score, not prediction.uncertain))
    return Classified(*map(np.array, zip(*rows, strict=True)))


def known_rows(known: Classified, class_ids: np.ndarray, labels: Sequence[str]) -> Iterator[Row]:
    """Photos of the bundle's classes, of which `class_ids` (N,) are the true ones."""
    right = known.probabilities.argmax(1) == class_ids
    yield share("right (accuracy)", right)
    for class_id in np.unique(class_ids):
        yield share(f"right, {labels[class_id]}", right[class_ids == class_id])
    error = metrics.expected_calibration_error(known.probabilities, class_ids)
    yield ["expected calibration error", f"{len(right):,}", f"{error:.1%}", ""]
    yield share("answered (coverage)", known.answered)
    yield share("right of those answered (selective accuracy)", right[known.answered])


def other_rows(name: str, others: Classified, known: Classified) -> Iterator[Row]:
    """Photos of other things, which should not be answered."""
    n = f"{len(others.scores):,}"
    confident = others.answered & (others.probabilities.max(1) > CONFIDENT)
    yield share(f"{name}: answered", others.answered)
    yield share(f"{name}: answered at over {CONFIDENT:.0%}", confident)
    yield [f"{name}: AUROC", n, f"{metrics.auroc(known.scores, others.scores):.3f}", ""]
    yield [f"{name}: FPR95", n, f"{fpr95(known.scores, others.scores):.1%}", ""]


def rows(model: LoadedModel, photos: Path, folders: Sequence[Path]) -> Iterator[Row]:
    """Raises PhotosError if a folder cannot be used."""
    files = labelled_files(photos, model.bundle.labels)
    others_in = {name: files_in(folder) for name, folder in by_name(folders).items()}
    known = classify(model, (file for file, _ in files))
    class_ids = np.array([class_id for _, class_id in files])
    yield from known_rows(known, class_ids, model.bundle.labels)
    others = {name: classify(model, inside) for name, inside in others_in.items()}
    if len(others) > 1:
        pooled = Classified(*map(np.concatenate, zip(*others.values(), strict=True)))
        others = {"all others": pooled} | others
    for name, some in others.items():
        yield from other_rows(name, some, known)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("photos", type=Path, help="a folder a class, named as the labels are")
    parser.add_argument(
        "--others", type=Path, nargs="+", default=[], metavar="DIR", help="photos of other things"
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    parser.add_argument("--output", type=output_file, help="file that takes the figures, as JSON")
    args = parser.parse_args()
    try:
        model = load_model(args.model)
        measured = list(rows(model, args.photos, args.others))
    except (BundleError, PhotosError) as error:
        sys.exit(f"error: {error}")
    print_table(["measure", "photos", "figure", "95 % interval"], measured)
    if args.output:
        record = {
            "version": model.bundle.version,
            "sha256": model.bundle.files[model.bundle.engine].sha256,
            "figures": {name: figures for name, *figures in measured},
        }
        write_json(args.output, record)


if __name__ == "__main__":
    main()

"""Trained networks on real photos: which views, at what size, and which OOD score?

    python -m benchmarks.quality.street RUN … --photos DIR --others DIR …

Each RUN is a finished run on CIFAR-10, such as runs/street-seed0-final, or on a variant of the
study. DIR holds a folder a class, named as CIFAR-10's; the DIRs of --others, searched to their
depths, hold photos of other things (out-of-distribution, OOD). Prints how many photos each view,
and each pair of views, gets right, the pair that is served also with a size for each; how well its
probabilities are calibrated if they are averaged, and if logits are; then each score's AUROC and
FPR95: photos against photos of other things, and images that the run did not see against the
CIFAR-100 classes that no recipe sees.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from benchmarks.common import command_line, fpr95, output_file, print_table, write_json
from rest_api.bundle import Resize, View, sizes_of
from training import import_keras, metrics
from training.cifar10 import recipes
from training.cifar10.data import LABELS, DataError, load_cifar10, split_validation
from training.cifar10.outliers import held_out, load_cifar100

if TYPE_CHECKING:
    import keras

    from training.ood import Score

SIZES = (32, 36, 40, 44, 48)  # pixels that the network sees of a photo, each way
VIEWS = tuple(View(resize, mirror) for resize, mirror in product(get_args(Resize), (False, True)))
KNOWN = len(LABELS)


class Outputs(NamedTuple):
    """What a network returns for N images, each perhaps in V views."""

    logits: np.ndarray  # (N[, V], classes)
    features: np.ndarray  # (N[, V], D), of the last layer but one


def outputs(network: "keras.Model", images: np.ndarray) -> Outputs:
    """Of images (…, side, side, 3)."""
    import keras

    both = keras.Model(network.input, [network.output, network.get_layer("head").input])
    flat = images.reshape(-1, *images.shape[-3:])
    batches = [both.predict_on_batch(flat[i : i + 1000]) for i in range(0, len(flat), 1000)]
    return Outputs(
        *(
            np.concatenate(each).astype(np.float32).reshape(*images.shape[:-3], -1)
            for each in zip(*batches, strict=True)
        )
    )


def photos_in_views(files: Iterable[Path], size: int) -> np.ndarray:
    """Photos (N, V, size, size, 3) uint8 in each of VIEWS. Raises PhotosError."""
    from rest_api.images import to_views
    from training.photos.inspect import read

    return np.stack([to_views(read(path, size), size, VIEWS) for path in files])


def right(logits: np.ndarray, class_ids: np.ndarray, views: Sequence[View]) -> float:
    """The accuracy of the mean of some views' logits, of those (N, VIEWS, classes) of all."""
    chosen = [VIEWS.index(view) for view in views]
    return metrics.accuracy(logits[:, chosen, :KNOWN].mean(1), class_ids)


def averaging(logits: np.ndarray, class_ids: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Accuracy, calibration error and cross-entropy (nats) by what is averaged over views.

    Logits are (N, V, 10). Each half of the photos has the temperature that suits the other.
    """
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "probabilities": lambda each: metrics.softmax(each).mean(1),
        "logits": lambda each: metrics.softmax(each.mean(1)),
    }
    halves = slice(0, None, 2), slice(1, None, 2)
    found = {}
    for name, average in ways.items():
        probabilities = np.empty((len(logits), logits.shape[-1]))
        for half, other in (halves, halves[::-1]):
            losses = {
                t: metrics.cross_entropy(average(logits[other] / t), class_ids[other])
                for t in np.geomspace(0.25, 4, 100)
            }
            probabilities[half] = average(logits[half] / min(losses, key=losses.__getitem__))
        measures = metrics.accuracy, metrics.expected_calibration_error, metrics.cross_entropy
        accuracy, error, loss = (measure(probabilities, class_ids) for measure in measures)
        found[name] = accuracy, error, loss
    return found


def scores(logits: np.ndarray) -> dict[str, np.ndarray]:
    """OOD scores (…) of logits (…, classes), the larger, the more like CIFAR-10's classes."""
    from scipy.special import logsumexp

    known = logsumexp(logits[..., :KNOWN], -1)
    best = logits[..., :KNOWN].max(-1)
    found = {"probability of the best class": np.exp(best - known), "energy": known}
    if logits.shape[-1] == KNOWN:
        return found
    others = logsumexp(logits[..., KNOWN:], -1)
    return found | {"log odds": known - others, "log odds of the best class": best - others}


def score_rows(
    known: Outputs, others: Outputs, fitted: "Score"
) -> Iterator[tuple[str, float, float]]:
    """Name, AUROC and FPR95 of each score; those of several views are averaged."""

    def all_scores(some: Outputs) -> dict[str, np.ndarray]:
        distance = np.asarray(fitted(some.features.reshape(-1, some.features.shape[-1]), None))
        found = scores(some.logits) | {"mahalanobis": distance.reshape(some.logits.shape[:-1])}
        return {name: each.reshape(len(each), -1).mean(1) for name, each in found.items()}

    of_known, of_others = all_scores(known), all_scores(others)
    for name, each in of_known.items():
        yield name, metrics.auroc(each, of_others[name]), fpr95(each, of_others[name])


def measure(
    run: Path,
    files: list[tuple[Path, int]],
    others: list[Path],
    data: str | None,
    cifar100: str | None,
) -> dict[str, Any]:
    """Every figure of a run, by name. Raises RunError, DataError and PhotosError."""
    from training.cifar10.study import PHOTOS
    from training.cifar10.train import load_network
    from training.ood import mahalanobis

    network, result = load_network(run, PHOTOS)
    training, test = load_cifar10(data)
    if result["measured_on"] == "validation":
        training, test = split_validation(*training)
    images, _ = test
    class_ids = np.array([class_id for _, class_id in files])
    paths, views = [path for path, _ in files], recipes.load("street").views
    sizes = sizes_of(views, SIZES[0])
    served = [VIEWS.index(View(view.resize, view.mirror)) for view in views]
    known = {size: outputs(network, photos_in_views(paths, size)) for size in SIZES}
    sets = [(view,) for view in VIEWS] + list(product(VIEWS[::2], VIEWS[1::2]))
    by_size = {
        size: {" + ".join(map(text, views)): right(each.logits, class_ids, views) for views in sets}
        for size, each in known.items()
    }

    def of_sizes(*sizes: int) -> np.ndarray:
        """The logits (N, 2, 10) of the views that are served, at these sizes."""
        logits = [known[s].logits[:, view, :KNOWN] for s, view in zip(sizes, served, strict=True)]
        return np.stack(logits, 1)

    pair = Outputs(*(each[:, served] for each in known[SIZES[0]]))
    shown = outputs(network, photos_in_views(others, SIZES[0])[:, served])
    trained = outputs(network, training[0][:10_000])
    fitted = mahalanobis(trained.features, training[1][:10_000])
    unseen = outputs(network, held_out(*load_cifar100(cifar100))[0])
    return {
        "photos": len(files),
        "right": by_size,
        "right_by_sizes": {
            one: {two: metrics.accuracy(of_sizes(one, two).mean(1), class_ids) for two in SIZES}
            for one in SIZES
        },
        "averaging": averaging(of_sizes(*sizes), class_ids),
        "confusion": metrics.confusion_matrix(of_sizes(*sizes).mean(1), class_ids).tolist(),
        "others": list(score_rows(pair, shown, fitted)),
        "cifar100": list(score_rows(outputs(network, images), unseen, fitted)),
    }


def text(view: View) -> str:
    return view.resize + ":mirrored" * view.mirror


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="finished runs, whose names are printed")
    add("--photos", required=True, type=Path, help="a folder a class, named as CIFAR-10's")
    add("--others", required=True, nargs="+", type=Path, metavar="DIR", help="of other things")
    add("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    add("--outliers", help="directory of cifar-100-python, default $CIFAR100_DIR")
    add("--output", type=output_file, help="file that takes the figures, as JSON")
    args = parser.parse_args()
    import_keras()
    from training.checkpoint import RunError
    from training.photos.inspect import PhotosError, by_name, files_in, labelled_files

    try:
        runs, files = by_name(args.runs), labelled_files(args.photos, LABELS)
        others = [path for folder in args.others for path in files_in(folder)]
        measured = {
            name: measure(run, files, others, args.data, args.outliers)
            for name, run in runs.items()
        }
    except (RunError, DataError, PhotosError) as error:
        sys.exit(f"error: {error}")
    for name, figures in measured.items():
        report(name, figures)
    if args.output:
        write_json(args.output, measured)


def report(name: str, figures: dict[str, Any]) -> None:
    """Print a run's tables."""
    print(f"\n{name}\n")
    by_size = figures["right"]
    print_table(
        [f"{figures['photos']} photos, right", *(f"{size} pixels" for size in by_size)],
        (
            [views, *(f"{each[views]:.1%}" for each in by_size.values())]
            for views in by_size[SIZES[0]]
        ),
    )
    print()
    print_table(
        ["stretch; mirrored center crop", *(f"{size} pixels" for size in SIZES)],
        (
            [f"{size} pixels", *(f"{each:.1%}" for each in of.values())]
            for size, of in figures["right_by_sizes"].items()
        ),
    )
    print()
    print_table(
        ["averaged over both", "right", "calibration error", "cross-entropy (nats)"],
        (
            [name, f"{accuracy:.1%}", f"{error:.1%}", f"{loss:.3f}"]
            for name, (accuracy, error, loss) in figures["averaging"].items()
        ),
    )
    print()
    print_table(
        ["score: AUROC, FPR95", "photos of other things", "CIFAR-100 classes not shown"],
        (
            [one[0], *(f"{auroc:.3f}, {rate:.0%}" for _, auroc, rate in (one, two))]
            for one, two in zip(figures["others"], figures["cifar100"], strict=True)
        ),
    )


if __name__ == "__main__":
    main()

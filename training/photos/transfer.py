"""A folder of photos in, a served classifier out: `python -m training.transfer PHOTOS`.

PHOTOS holds one folder of photos a class. What a backbone, trained on ImageNet, sees in them is
computed once and kept; a linear head is trained on that, then the backbone's last layers too where
the validation photos gain by it. When all is chosen, the same is trained once more, on the
validation photos too. The bundle's network also says how familiar a photo is, so that "none of
these" can be an answer. The same command goes on after an interruption.
"""

import argparse
import datetime
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from rest_api.bundle import BundleError, Resize, load_bundle
from rest_api.engine import Outputs
from training import metrics, plots
from training.checkpoint import RunError, versions
from training.export import COVERAGE, ExportError, export, refuse_other_folder
from training.ood import Known, Score, mahalanobis
from training.photos.backbones import BACKBONES, WeightsError, load_backbone
from training.photos.features import VIEWS, answers_to, cache_name, features, pooled, view_of
from training.photos.inspect import (
    MIN_PHOTOS,
    Part,
    Photo,
    PhotosError,
    Survey,
    files_in,
    grouped,
    look,
    report,
    split,
    survey,
    without_copies,
)
from training.photos.report import as_lines, examine, write_report
from training.photos.tuning import (
    HEAD_L2,
    SETTINGS,
    best_penalty,
    best_share,
    blend,
    fit_heads,
    one_hot,
    side_of_tuning,
    tune,
    validated,
)

MOST_CHECKED = 500  # test photos on which the exported formats are compared
BACKGROUND = "(background)"  # the class of what is none of the classes


def above_background(features: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """The log of the odds that a photo is of a class, where the last logit is the background's.

    A classifier that has been shown other things rejects those it has not been shown, too
    (Hendrycks, Mazeika & Dietterich 2019, arXiv:1812.04606).
    """
    return ops.logsumexp(logits[:, :-1], -1) - logits[:, -1]


@dataclass(frozen=True)
class Photos:
    """Photos by part; those of the background come after all classes."""

    labels: list[str]
    parts: dict[Part, list[Photo]]

    def numbers(self, part: Part) -> np.ndarray:
        """The class of each photo as a number, (N,) integers."""
        numbers = {label: number for number, label in enumerate([*self.labels, BACKGROUND])}
        return np.array([numbers[photo.label] for photo in self.parts[part]])

    def joined(self, parts: Sequence[Part]) -> tuple[list[Photo], np.ndarray]:
        """The photos of several parts, and the class of each."""
        photos = [photo for part in parts for photo in self.parts[part]]
        return photos, np.concatenate([self.numbers(part) for part in parts])

    def of(self, part: Part, *, background: bool) -> list[Photo]:
        return [p for p in self.parts[part] if (p.label == BACKGROUND) == background]


def gather(folder: Path, background: Path | None, seed: int) -> tuple[Survey, Photos]:
    """Look at the photos, split them, and add those of the background. Raises PhotosError."""
    found = survey(folder)
    parts = split(found.photos, seed)
    if background:
        others, _ = look([(path, BACKGROUND) for path in files_in(background)])
        if len(others) < MIN_PHOTOS:
            raise PhotosError(
                f"{background} holds {len(others)} photos; give {MIN_PHOTOS} or more."
            )
        others, _ = without_copies(others)
        for part, some in split(grouped(others), seed).items():
            parts[part] += some
    return found, Photos(found.labels, parts)


@dataclass(frozen=True)
class Task:
    """What is learnt from, and how. Both networks are features.pooled of one backbone."""

    photos: Photos
    network: keras.Model  # as it is served
    tuned: keras.Model | None  # for images of any size; None where it is not to be changed
    resize: Resize
    runs: Path
    seed: int

    def seen(self, photos: Sequence[Photo], views: int = 1) -> np.ndarray:
        """What the network, as it now is, sees in photos: (N, views, channels)."""
        cache = self.runs / "features" / cache_name(self.network, self.resize)
        return features(self.network, photos, cache, resize=self.resize, views=views)


@dataclass(frozen=True)
class Choice:
    """What the validation photos decide."""

    penalty: float  # L2 of the head
    factors: tuple[float, ...] = ()  # of the learning rate in each epoch of tuning
    share: float = 0.0  # of the way to the tuned weights; 0: tuning is not worth it


def learn(
    task: Task, parts: Sequence[Part], choice: Choice | None = None
) -> tuple[keras.Model, Choice, list[dict[str, float]]]:
    """Train a head, features → logits, and the network's last layers with it, on some parts.

    Without a `choice` the validation photos decide. Returns the head, what was chosen and the
    history of tuning.
    """
    head, penalty = learn_head(task, parts, choice)
    if task.tuned is None or (choice and not choice.share):
        return head, Choice(penalty), []
    whole = keras.Model(task.tuned.input, head(task.tuned.output))
    start = whole.get_weights()
    choice, history = learn_rest(task, parts, whole, choice or Choice(penalty))
    blend(whole, start, whole.get_weights(), choice.share)
    return head, choice, history


def learn_head(
    task: Task, parts: Sequence[Part], choice: Choice | None
) -> tuple[keras.Model, float]:
    """The head, and the penalty that it was trained with."""
    photos, numbers = task.photos.joined(parts)
    penalties = [choice.penalty] if choice else HEAD_L2
    heads = fit_heads(task.seen(photos, VIEWS), numbers, task.seed, penalties)
    if choice:
        return heads[choice.penalty], choice.penalty
    checked, answers = task.photos.joined(["validation"])
    penalty = best_penalty(heads, task.seen(checked)[:, 0], answers)
    return heads[penalty], penalty


def learn_rest(
    task: Task, parts: Sequence[Part], whole: keras.Model, choice: Choice
) -> tuple[Choice, list[dict[str, float]]]:
    """Tune the `whole` network, images → logits; complete the choice where it is open."""
    photos, numbers = task.photos.joined(parts)
    start, side, resize = whole.get_weights(), task.network.input_shape[1], task.resize
    network = cache_name(task.network, resize)
    what = repr([network, task.seed, SETTINGS, choice, [(p.digest, p.label) for p in photos]])
    run = task.runs / f"tuning-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    shown = whole, photos, one_hot(numbers), side_of_tuning(side), resize, run
    if choice.share:
        return choice, tune(*shown, factors=choice.factors)
    watch = partial(validated, whole, *task.photos.joined(["validation"]), side, resize)
    history = tune(*shown, watch=watch)
    factors = tuple(row["factor"] for row in history)
    return Choice(choice.penalty, factors, best_share(whole, start, watch)), history


@dataclass(frozen=True)
class Classifier:
    """A trained classifier: images → features → logits, and a score of the features."""

    task: Task
    head: keras.Model
    score_name: str
    score: Score

    def served(self, temperature: float) -> keras.Model:
        """The network as it is served: from images to probabilities of the classes and scores."""
        features = self.task.network.output
        logits = self.head(features)
        known = logits[:, : len(self.task.photos.labels)]
        scaled = keras.layers.Rescaling(1 / temperature, name="temperature")(known)
        probabilities = keras.layers.Softmax(name="probabilities")(scaled)
        return keras.Model(self.task.network.input, [probabilities, self.score(features, logits)])


def with_score(task: Task, parts: Sequence[Part], head: keras.Model) -> Classifier:
    """Add a score of how familiar a photo is: by the background, or else by its distance."""
    if task.photos.of("train", background=True):
        return Classifier(task, head, "above background", above_background)
    photos, numbers = task.photos.joined(parts)
    known = Known(task.seen(photos)[:, 0], numbers)
    return Classifier(task, head, "mahalanobis", mahalanobis(known))


def calibrate(classifier: Classifier) -> tuple[float, dict[str, Any]]:
    """The temperature, and what model.json says of it and of the threshold of the score.

    The classifier must not have learnt from the validation photos.
    """
    task = classifier.task
    validation = task.photos.of("validation", background=False)
    raw = classifier.served(1.0)
    probabilities, scores = answers_to(
        lambda images: Outputs(*raw.predict_on_batch(images)),
        validation,
        task.network.input_shape[1],
        task.resize,
    )
    numbers = task.photos.numbers("validation")[: len(validation)]
    temperature = metrics.fit_temperature(np.log(probabilities + 1e-12), numbers)
    fitted_on = f"{len(validation)} validation photos, before they were learnt from"
    return temperature, {
        "calibration": {"temperature": round(temperature, 4), "fitted_on": fitted_on},
        "uncertainty": {
            "score": classifier.score_name,
            "threshold": round(float(np.quantile(scores, 1 - COVERAGE)), 4),
            "fitted_on": fitted_on,
            "coverage": COVERAGE,
        },
    }


def train_twice(
    task: Task,
) -> tuple[Classifier, float, dict[str, Any], list[dict[str, float]]]:
    """Train, choose and calibrate by the validation photos; then train anew, on those too.

    Returns the second classifier, the temperature, what model.json says of calibration, and the
    history of the first tuning.
    """
    untouched = task.network.get_weights()
    head, choice, history = learn(task, ["train"])
    temperature, fitted = calibrate(with_score(task, ["train"], head))
    task.network.set_weights(untouched)
    head, _, _ = learn(task, ["train", "validation"], choice)
    return with_score(task, ["train", "validation"], head), temperature, fitted, history


def export_classifier(
    classifier: Classifier,
    temperature: float,
    destination: Path,
    training: dict[str, Any],
    fitted: dict[str, Any],
    saved_model: bool,
) -> None:
    """Write the bundle, its formats compared on the test photos. Raises ExportError."""
    task = classifier.task
    photos, side = task.photos, task.network.input_shape[1]
    test = photos.of("test", background=False)[:MOST_CHECKED]
    parts = photos.parts
    description = {
        "name": destination.name,
        "version": f"{datetime.date.today().isoformat()}-{training['backbone']}",
        "labels": photos.labels,
        "input_size": side,
        "resize": task.resize,
        "accuracy": {"measured_on": "test photos, kept back from training"},
        **fitted,
        "training": training
        | {
            "photos": {part: len(photos.of(part, background=False)) for part in parts},
            "background": {part: len(photos.of(part, background=True)) for part in parts},
        },
        "versions": versions(),
    }
    export(
        classifier.served(temperature),
        destination,
        description,
        np.stack([view_of(photo, 0, side, task.resize) for photo in test]),
        photos.numbers("test")[: len(test)],
        saved_model=saved_model,
    )


def transfer(
    folder: Path,
    destination: Path,
    *,
    backbone: str = "mobilenetv2",
    weights: str | Path | None = None,
    width: float = 1.0,
    side: int | None = None,
    resize: Resize = "squash",
    background: Path | None = None,
    tuning: bool = True,
    saved_model: bool = False,
    seed: int = 0,
    runs: Path = Path("runs"),
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Train on a folder of photos, write the bundle and, in `runs`, a report.

    Returns the report's figures and, by their captions, its pictures. Raises PhotosError,
    WeightsError and ExportError; then no bundle is written.
    """
    started = time.perf_counter()
    refuse_other_folder(destination)
    found, photos = gather(folder, background, seed)
    print(report(found, seed), flush=True)
    maps, side = load_backbone(backbone, weights, width=width), side or BACKBONES[backbone].side
    task = Task(photos, pooled(maps, side), pooled(maps) if tuning else None, resize, runs, seed)
    classifier, temperature, fitted, history = train_twice(task)
    training = {"backbone": backbone, "width": width, "seed": seed, "tuned_epochs": len(history)}
    export_classifier(classifier, temperature, destination, training, fitted, saved_model)

    figures, pictures = examine(
        load_bundle(destination),
        photos.of("test", background=False),
        photos.of("test", background=True),
    )
    figures["seconds"] = round(time.perf_counter() - started, 1)
    if history:
        pictures["Fine-tuning"] = plots.against_epochs({"fine-tuning": history}, columns=1)
    page = write_report(runs / f"report-{destination.name}", figures, pictures, report(found, seed))
    print(f"Report: {page}")
    return figures, pictures


def compare(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of backbones."""
    lines = ["| backbone | accuracy | 8-bit network (MB) | one photo (ms) | minutes |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"| {name} | {row['accuracy']:.1%} | {row['megabytes']:.1f} "
            f"| {row['milliseconds']:.1f} | {row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a classifier on a folder of photos.")
    add = parser.add_argument
    add("photos", type=Path, help="a folder that holds a folder of photos a class")
    add("--output", type=Path, help="the bundle's folder (bundles/NAME-OF-PHOTOS)")
    add("--backbone", choices=list(BACKBONES), default="mobilenetv2", help="(%(default)s)")
    add("--compare", nargs="+", choices=list(BACKBONES), help="train several, print a table")
    add("--weights", help="file of ImageNet weights, or 'random' (Keras's download)")
    add("--width", type=float, default=1.0, help="MobileNetV2's alpha (%(default)s)")
    add("--size", type=int, help="pixels of a side (the backbone's)")
    add("--resize", choices=get_args(Resize), default="squash", help="(%(default)s)")
    add("--background", type=Path, help="photos of anything else, to be told apart")
    add("--saved-model", action="store_true", help="write a TensorFlow SavedModel, too")
    add("--no-tuning", action="store_true", help="train the head alone")
    add("--seed", type=int, default=0, help="of the split and of everything random (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    output = args.output or Path("bundles", args.photos.resolve().name)
    names = args.compare or [args.backbone]
    rows = []
    try:
        for name in names:
            destination = output.with_name(f"{output.name}-{name}") if args.compare else output
            figures, _ = transfer(
                args.photos,
                destination,
                backbone=name,
                weights=args.weights,
                width=args.width,
                side=args.size,
                resize=args.resize,
                background=args.background,
                tuning=not args.no_tuning,
                saved_model=args.saved_model,
                seed=args.seed,
            )
            rows.append(figures)
            print("\n".join(f"{name:<32}{value}" for name, value in as_lines(figures).items()))
            print(f"Serve it: python rest_api/app.py --model {destination}", flush=True)
    except (PhotosError, WeightsError, RunError, BundleError, ExportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on where it was.")
    if args.compare:
        print(compare(names, rows))


if __name__ == "__main__":
    main()

"""Transfer learning: from a folder of photos to a bundle that can be served.

A backbone with ImageNet weights turns photos into features, on which a linear head is trained;
then the backbone's last layers are fine-tuned, which is kept only where the validation photos gain
by it. `select` makes these decisions, `fit` trains the final network on the validation photos too.
The network also returns an out-of-distribution score, so that "none of these" can be an answer.
"""

import datetime
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rest_api.bundle import FILENAMES, Bundle, Engine, Resize, View, load_bundle
from training import plots
from training.cam import activation_maps, shares_of_mean
from training.card import card, write_card
from training.checkpoint import RunError, versions
from training.explanations import faithful
from training.export import calibrate, change_manifest, export, refuse_other_folder
from training.files import check_writable, replacing, replacing_folder
from training.ood import log_odds, mahalanobis
from training.photos import COVERAGE, head, inspect, tuning
from training.photos.backbones import BACKBONES, DEFAULT, load_backbone
from training.photos.features import (
    VIEWS,
    Compute,
    cache_name,
    compute,
    features,
    pooled,
    served,
)
from training.photos.inspect import MIN_PHOTOS, Part, Photo, PhotosError, Survey
from training.photos.report import examine, write_report
from training.synthetic import synthesise

CALIBRATION = 100  # training photos that the ranges of integers are taken from
EXPLAINED = 200  # photos on which class activation maps are tried
MAX_COMPARED = 500  # test photos on which the exported formats are compared
FOLDS = 5  # of the photos on which thresholds are fitted
SYNTHETIC_PHOTOS = 64  # in the background
BACKGROUND = "(background)"  # the label of photos that belong to no class


@dataclass(frozen=True)
class Dataset:
    """Photos by part. Those of the background belong to one more class, after all others."""

    labels: list[str]
    parts: dict[Part, list[Photo]]

    def photos(self, *parts: Part) -> list[Photo]:
        """The photos of the classes, without the background."""
        return [p for part in parts for p in self.parts[part] if p.label != BACKGROUND]

    def background(self, *parts: Part) -> list[Photo]:
        return [p for part in parts for p in self.parts[part] if p.label == BACKGROUND]

    def to_tune_on(self, *parts: Part) -> list[Photo]:
        """The photos to fine-tune on: of the background, which may be large, no more than of a
        class on average."""
        known = self.photos(*parts)
        return known + some_of(self.background(*parts), len(known) // len(self.labels))

    def class_ids(self, photos: Sequence[Photo]) -> np.ndarray:
        """The class of each photo, (N,) integers."""
        ids = {label: number for number, label in enumerate([*self.labels, BACKGROUND])}
        return np.array([ids[photo.label] for photo in photos])


def gather(folder: Path, background: Sequence[Path], seed: int) -> tuple[Survey, Dataset]:
    """Inspect and split the photos of the classes and of the folders of the background.

    Raises PhotosError.
    """
    found = inspect.survey(folder)
    parts = inspect.split(found.photos, seed)
    if background:
        others = [photo for each in background for photo in photos_of_nothing(each)]
        others, _ = inspect.deduplicate(others)
        together = inspect.group_near_duplicates([*found.photos, *others])
        names = " and ".join(map(str, background))
        check_apart(together, names)
        others = [photo for photo in together if photo.label == BACKGROUND]
        inspect.check_groups(len({photo.group for photo in others}), names)
        for part, some in inspect.split(others, seed).items():
            parts[part] += some
    return found, Dataset(found.labels, parts)


def synthetic_photos(folder: Path) -> list[Photo]:
    """Plain colours, noise and the like, written into the folder: a background of photos alone
    lets them pass."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, pixels in enumerate(synthesise(SYNTHETIC_PHOTOS, seed=0)):
        files.append((folder / f"{number:02}.png", BACKGROUND))
        with replacing(files[-1][0]) as part:
            Image.fromarray(pixels).save(part, "png")
    photos, _ = inspect.inspect(files)
    return inspect.group_near_duplicates(photos)


def check_apart(photos: Sequence[Photo], background: str) -> None:
    """Raise PhotosError where photos of classes and of the background are near-duplicates: they
    would be trained on under both labels, and lie on both sides of the split."""
    groups = inspect.group_by(photos, "group").values()
    both = [group for group in groups if len({photo.label == BACKGROUND for photo in group}) > 1]
    if both:
        names = "".join(f"\n  {', '.join(str(p.path) for p in group)}" for group in both[:10])
        number = sum(photo.label == BACKGROUND for group in both for photo in group)
        raise PhotosError(
            f"There are {number} near-duplicates of photos of the classes in {background}. "
            f"Remove either from their folder.{names}"
        )


def photos_of_nothing(folder: Path) -> list[Photo]:
    """The photos of a folder, which are of no class. Raises PhotosError."""
    if not folder.is_dir():
        raise PhotosError(f"{folder} is not a folder. Give one that holds photos of other things.")
    photos, unusable = inspect.inspect([(path, BACKGROUND) for path in inspect.files_in(folder)])
    photos, copies = inspect.deduplicate(photos)
    skipped = sorted(unusable + copies)
    lines = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:10])
    if len(photos) < MIN_PHOTOS:
        raise PhotosError(f"{folder} holds {len(photos)} photos, not {MIN_PHOTOS} or more.{lines}")
    if skipped:
        print(inspect.printable(f"skipped: {len(skipped)} of the files in {folder}:{lines}"))
    return photos


def unseen_photos(folder: Path, dataset: Dataset) -> list[Photo]:
    """The photos of a folder, of no class, but near-duplicates of photos of the dataset, which say
    nothing of new ones. Raises PhotosError."""
    photos = photos_of_nothing(folder)
    known = [photo for part in dataset.parts.values() for photo in part]
    groups = [photo.group for photo in inspect.group_near_duplicates([*known, *photos])]
    seen = set(groups[: len(known)])
    unseen = [p for p, group in zip(photos, groups[len(known) :], strict=True) if group not in seen]
    if not unseen:
        raise PhotosError(f"{folder} holds only near-duplicates of the other folders' photos.")
    if number := len(photos) - len(unseen):
        print(f"left out: {number} photos in {folder}, near-duplicates of the other folders'")
    return unseen


def some_of(photos: Sequence[Photo], number: int) -> list[Photo]:
    """So many of the photos, or all, in an order that depends on their content alone."""
    return sorted(photos, key=lambda photo: photo.digest)[:number]


@dataclass(frozen=True)
class Task:
    """What to train on, and how. select and fit change the weights of `backbone`."""

    dataset: Dataset
    backbone: keras.Model  # images of any size → feature maps
    image_size: int
    views: tuple[View, ...]  # of a photo when it is served; the first one's policy is trained with
    tuning: bool
    coverage: float  # of the known photos, the fraction that is answered
    seed: int
    runs: Path
    compute: Compute = compute  # features

    @cached_property
    def network(self) -> keras.Model:
        """From images as they are served to features."""
        return pooled(self.backbone, self.image_size)

    @property
    def resize(self) -> Resize:
        return self.views[0].resize

    def features(
        self, photos: Sequence[Photo], views: int = 1, resize: Resize | None = None
    ) -> np.ndarray:
        """The features of photos with the present weights: (N, views, channels)."""
        resize = resize or self.resize
        cache = self.runs / "features" / cache_name(self.network, resize)
        options: dict[str, Any] = {"resize": resize, "views": views, "compute": self.compute}
        return features(self.network, photos, cache, **options)

    def served_features(self, photos: Sequence[Photo]) -> np.ndarray:
        """The same of photos as they are served: (N, views, channels)."""
        # The last of one view is the photo as it is, of two its mirror image.
        of_views = [self.features(photos, 1 + v.mirror, v.resize) for v in self.views]
        return np.stack([each[:, -1] for each in of_views], 1)


@dataclass(frozen=True)
class Selection:
    """What the validation photos decide."""

    penalty: float  # L2 of the head
    epochs: int  # of fine-tuning, until the best one
    interpolation: float  # of the way to the tuned weights; 0 where tuning is rejected
    temperature: float
    calibration: dict[str, Any]  # what model.json says of it and of the thresholds
    history: list[dict[str, float]]  # of fine-tuning


def select(task: Task) -> Selection:
    """Train on the training photos, decide by the validation photos; restores the backbone.

    Raises RunError and PhotosError.
    """
    pretrained = task.backbone.get_weights()
    dataset = task.dataset
    train, validation = dataset.parts["train"], dataset.parts["validation"]
    heads = head.fit_heads(task.features(train, VIEWS), dataset.class_ids(train), task.seed)
    penalty = head.best_penalty(
        heads, task.features(validation)[:, 0], dataset.class_ids(validation)
    )
    epochs, interpolation, history = 0, 0.0, []
    if task.tuning:
        whole = end_to_end(task, heads[penalty])
        start = whole.get_weights()
        # Of the classes alone: the background's photos, nearly all rejected, would hide a gain.
        known = dataset.photos("validation")
        shown = known, dataset.class_ids(known), len(dataset.labels), task.image_size, task.resize
        validate = partial(tuning.validate, whole, *shown)
        tuned_on = dataset.to_tune_on("train")
        history = tune(task, whole, tuned_on, penalty, tuning.EPOCHS, validate)
        epochs = len(history) - tuning.epochs_since_best(history)
        interpolation = tuning.best_interpolation(whole, start, validate)
        tuning.interpolate(whole, start, whole.get_weights(), interpolation)
    tuned = heads[penalty] if interpolation else None
    temperature, calibration = calibrate_unseen(task, penalty, tuned)
    task.backbone.set_weights(pretrained)
    return Selection(penalty, epochs, interpolation, temperature, calibration, history)


def calibrate_unseen(
    task: Task, penalty: float, tuned: keras.Model | None
) -> tuple[float, dict[str, Any]]:
    """The temperature, and what model.json says of it and of the thresholds.

    They are fitted on photos that neither head nor OOD score has seen. Each photo is in one of
    FOLDS, for which both are fitted on the others (cross-fitting): so there are as many photos as
    can be, and as many are answered later as are here. Where the backbone was fine-tuned, together
    with the head `tuned`, only the validation photos are unseen. Raises PhotosError.
    """
    dataset = task.dataset
    photos = dataset.parts["train"] + dataset.parts["validation"]
    folds = [(dataset.parts["train"], dataset.parts["validation"])]
    if not tuned:
        folds = [apart(photos, fold, task.seed) for fold in range(FOLDS)]
    outputs = []
    for seen, unseen in folds:
        known = [photo for photo in unseen if photo.label != BACKGROUND]
        if not known or {p.label for p in seen} != {p.label for p in photos}:
            continue  # a class of so few photos that it lies in one fold
        classifier = tuned or fit_head(task, seen, penalty)
        scorer = with_score(task, [p for p in seen if p.label != BACKGROUND], classifier)
        vectors = task.served_features(known)
        logits, scores = map(np.asarray, scorer(np.concatenate(vectors)))
        logits = logits[:, : len(dataset.labels)].reshape(*vectors.shape[:2], -1)
        outputs.append((logits, scores.reshape(vectors.shape[:2]), dataset.class_ids(known)))
    if not outputs:
        raise PhotosError(
            "Thresholds cannot be fitted: too few photos of a class differ to leave some out. "
            "Add photos that are no near-duplicates of others."
        )
    logits, scores, class_ids = map(np.concatenate, zip(*outputs, strict=True))
    how = "validation" if tuned else "training and validation"
    fitted_on = f"{len(class_ids):,} {how} photos, by networks that had not seen them"
    return calibrate(logits, class_ids, fitted_on, scores, score_name(dataset), task.coverage)


def fit_head(task: Task, photos: Sequence[Photo], penalty: float) -> keras.Model:
    """The linear classifier of the photos' features."""
    class_ids = task.dataset.class_ids(photos)
    return head.fit_heads(task.features(photos, VIEWS), class_ids, task.seed, [penalty])[penalty]


def apart(photos: Sequence[Photo], fold: int, seed: int) -> tuple[list[Photo], list[Photo]]:
    """The photos outside a fold, and those in it. Near-duplicates are in the same."""
    parts: tuple[list[Photo], list[Photo]] = [], []
    for photo in photos:
        place = inspect.place_of(photo.group, seed)
        parts[int(1000 * FOLDS * place) % FOLDS == fold].append(photo)
    return parts


def fit(task: Task, selection: Selection) -> keras.Model:
    """Train on training and validation photos: from images to probabilities, OOD scores, class
    activation maps and features.

    Raises RunError.
    """
    dataset, penalty = task.dataset, selection.penalty
    photos = dataset.parts["train"] + dataset.parts["validation"]
    classifier = fit_head(task, photos, penalty)
    if selection.interpolation:
        whole = end_to_end(task, classifier)
        start = whole.get_weights()
        tuned_on = dataset.to_tune_on("train", "validation")
        tune(task, whole, tuned_on, penalty, selection.epochs)
        tuning.interpolate(whole, start, whole.get_weights(), selection.interpolation)
    scorer = with_score(task, dataset.photos("train", "validation"), classifier)
    logits, score = scorer(task.network.output)
    known = logits[:, : len(dataset.labels)]
    scaled = keras.layers.Rescaling(1 / selection.temperature, name="temperature")(known)
    probabilities = keras.layers.Softmax(name="probabilities")(scaled)
    shares, features = shares_of_mean(task.network.get_layer("mean").input), task.network.output
    maps = activation_maps(shares, features, head.kernel_of(classifier)[:, : len(dataset.labels)])
    # Features have one rank more than probabilities, which tells them apart.
    return keras.Model(task.network.input, [probabilities, score, maps, features[:, None]])


def end_to_end(task: Task, classifier: keras.Model) -> keras.Model:
    """From images of any size, since fine-tuning takes smaller ones, to logits."""
    network = pooled(task.backbone)
    return keras.Model(network.input, classifier(network.output))


def tune(
    task: Task,
    whole: keras.Model,
    photos: Sequence[Photo],
    penalty: float,
    epochs: int,
    validate: tuning.Validate | None = None,
) -> list[dict[str, float]]:
    """Fine-tune in a directory whose name changes with everything that the result depends on."""
    settings = head.SETTINGS, tuning.SETTINGS, penalty, task.seed, epochs, validate is not None
    # Beside the photos, those that the head was trained on and those that choose the best epoch.
    parts = task.dataset.parts["train"], task.dataset.parts["validation"]
    content = [[(photo.digest, photo.label) for photo in some] for some in (photos, *parts)]
    what = repr([cache_name(task.network, task.resize), settings, content])
    run = task.runs / f"tuning-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    targets = head.one_hot(task.dataset.class_ids(photos))
    shown = photos, targets, tuning.tuning_size(task.image_size), task.resize
    return tuning.tune(whole, *shown, run, seed=task.seed, epochs=epochs, validate=validate)


def with_score(task: Task, photos: Sequence[Photo], classifier: keras.Model) -> keras.Model:
    """From features to logits and the OOD score, which is fitted on the photos of the classes."""
    vectors = keras.Input(classifier.input_shape[1:])
    logits = classifier(vectors)
    if score_name(task.dataset) == "mahalanobis":
        fitted = mahalanobis(task.features(photos)[:, 0], task.dataset.class_ids(photos))
        score = fitted(vectors, logits)
    else:
        score = log_odds(logits, -1)  # the last logit is the background's
    return keras.Model(vectors, [logits, score])


def score_name(dataset: Dataset) -> str:
    return "above background" if dataset.background("train") else "mahalanobis"


def describe(task: Task, selection: Selection, backbone: str, width: float) -> dict[str, Any]:
    """What model.json says beside its name and files."""
    dataset = task.dataset
    return {
        "version": f"{datetime.date.today().isoformat()}-{backbone}",
        "labels": dataset.labels,
        "input_size": task.image_size,
        "views": msgspec.to_builtins(task.views),
        "accuracy": {"measured_on": "test photos, kept back from training"},
        **selection.calibration,
        "embedding_size": task.network.output_shape[-1],
        "training": {
            "backbone": backbone,
            "width": width,
            "seed": task.seed,
            "tuned_epochs": selection.epochs if selection.interpolation else 0,
            "photos": {part: len(dataset.photos(part)) for part in dataset.parts},
            "background": {part: len(dataset.background(part)) for part in dataset.parts},
        },
        "versions": versions(),
    }


def check_size(backbone: str, image_size: int | None, *, tune: bool) -> None:
    """Raise RunError where images are too small for a backbone, perhaps once it is fine-tuned."""
    least = BACKBONES[backbone].least_size
    while tune and tuning.tuning_size(least) < BACKBONES[backbone].least_size:
        least += 1
    if image_size and image_size < least:
        how = "it is fine-tuned on smaller ones" if tune else "its last layers would leave nothing"
        raise RunError(
            f"Images of {image_size} pixels are too small for {backbone}: {how}. "
            f"Give --size {least} or more, or another --backbone."
        )


def transfer(
    folder: Path,
    destination: Path,
    *,
    backbone: str = DEFAULT,
    weights: str | Path | None = None,
    width: float = 1.0,
    image_size: int | None = None,
    views: Sequence[View] = (View("stretch"),),
    background: Sequence[Path] = (),
    others: Sequence[Path] = (),
    source: str = "",
    tuning: bool = True,
    coverage: float = COVERAGE,
    engines: Sequence[Engine] = tuple(FILENAMES),
    saved_model: bool = False,
    seed: int = 0,
    runs: Path = Path("runs"),
    compute: Compute = compute,
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Train on a folder of photos, write the bundle with its card and, in `runs`, a report.

    `background` are folders of photos of no class, which are trained with as such; `others` only
    measure what is made of such photos. `coverage` is the fraction of known photos that the
    thresholds let pass. `source` is what the card says of the photos' origin, `compute` what
    computes features. Returns the report's figures and its plots by caption. Raises PhotosError,
    WeightsError, RunError and ExportError; then no bundle is written.
    """
    started = time.perf_counter()
    destination = destination.absolute()  # "." has no name
    check_folders(folder, destination, background, others, runs)
    keras.utils.set_random_seed(seed)  # for weights and dropout of the backbone
    maps = load_backbone(backbone, weights, width=width)
    found, dataset = gather(folder, background, seed)
    ood_photos = {path.name: unseen_photos(path, dataset) for path in others}
    if background:  # in a hidden folder, which is in no background, and not that of another run
        dataset.parts["train"] += synthetic_photos(runs / f".synthetic-{destination.name}")
    text = inspect.report(found, seed)
    print(text, flush=True)
    image_size = image_size or BACKBONES[backbone].image_size
    task = Task(dataset, maps, image_size, tuple(views), tuning, coverage, seed, runs, compute)
    selection = select(task)
    network = fit(task, selection)
    unseen = dataset.background("test")
    for each in background:
        if inside := [photo for photo in unseen if photo.path.is_relative_to(each)]:
            ood_photos[each.name] = inside
    description = {"name": destination.name, **describe(task, selection, backbone, width)}
    with replacing_folder(destination) as bundle_folder:  # until it has its card, too
        bundle = write_bundle(task, network, bundle_folder, description, engines, saved_model)
        parts = {part: dataset.photos(part) for part in dataset.parts}
        figures, drawings = examine(bundle, parts, ood_photos)
        failures = [
            f"{label} taken for {other}: {count} of {n} test photos"
            for label, other, count, n in figures["mistaken"]
        ]
        write_card(bundle_folder, card(bundle.manifest, figures["rows"], failures, source))
    figures["seconds"] = round(time.perf_counter() - started, 1)
    if selection.interpolation:
        history = {"fine-tuning": selection.history}
        drawings["Fine-tuning"] = plots.against_epochs(history, columns=1)
    page = write_report(runs / f"report-{destination.name}", figures, drawings, text)
    print(f"Report: {page}")
    return figures, drawings


def check_folders(
    folder: Path,
    destination: Path,
    background: Sequence[Path],
    others: Sequence[Path],
    runs: Path,
) -> None:
    """Refuse, before anything is computed, folders that cannot be written or lie in one another.

    Raises ExportError, RunError and PhotosError.
    """
    refuse_other_folder(destination)
    try:
        check_writable(runs)
    except OSError as error:
        raise RunError(
            f"{runs}/ cannot be written: {error.strerror}. Start it in another directory."
        ) from error
    inspect.by_name([*background, *others])  # or one would be lost
    inspect.check_names([destination, *background, *others])
    inspect.check_separate([folder, *background, *others])
    for place, photos in product((destination, runs), (folder, *background, *others)):
        if place.resolve().is_relative_to(photos.resolve()):
            raise RunError(
                f"{place} would lie among the photos in {photos.resolve()}. Start in another "
                "directory, or give another --output."
            )


def write_bundle(
    task: Task,
    network: keras.Model,
    folder: Path,
    description: dict[str, Any],
    engines: Sequence[Engine],
    saved_model: bool,
) -> Bundle:
    """Export the network, compared on test photos; it explains its answers if they rest on what
    the explanations show. Raises ExportError."""
    dataset = task.dataset
    compared = dataset.photos("test")[:MAX_COMPARED]
    calibration = some_of(dataset.photos("train"), CALIBRATION)
    export(
        network,
        folder,
        description,
        served(compared, task.image_size, task.views),
        dataset.class_ids(compared),
        engines=engines,
        calibration=served(calibration, task.image_size, [View(task.resize)])[0],
        saved_model=saved_model,
    )
    bundle = load_bundle(folder)
    explained = some_of(dataset.photos(*dataset.parts), EXPLAINED)
    if faithful(bundle, [photo.path for photo in explained]):
        return change_manifest(bundle, explains=True)
    return bundle

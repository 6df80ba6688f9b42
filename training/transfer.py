"""A folder of photos in, a served classifier out: `python -m training.transfer PHOTOS`.

PHOTOS holds one folder of photos a class. What a backbone, trained on ImageNet, sees in them is
computed once and kept; a linear head is trained on that, then the backbone's last layers too where
the validation photos gain by it. The bundle's network also says how familiar a photo is, so that
"none of these" can be an answer. The same command goes on after an interruption.
"""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from rest_api.bundle import FILENAMES, BundleError, Resize, load_bundle
from rest_api.engine import Answers, Predict, load_engine
from rest_api.engine import answers as as_answers
from training import metrics, plots
from training.backbones import BACKBONES, WeightsError, load_backbone
from training.export import COVERAGE, MAX_LOSS, ExportError, export
from training.features import BATCH, VIEWS, batches, cache_name, features, view_of
from training.files import replacing
from training.photos import (
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
from training.rejection import Known, Score, mahalanobis
from training.report import write_report
from training.train import versions

HEAD_EPOCHS = 60
HEAD_BATCH = 256  # views
HEAD_RATE = 3e-3
HEAD_DECAYS = (1e-3, 1e-2, 1e-1)  # of the weights; the best on the validation photos is taken
HEAD_DROPOUT = 0.2
LABEL_SMOOTHING = 0.1
TUNED = 0.3  # share of the backbone's layers, from its end, that fine-tuning changes
TUNE_EPOCHS = 10
TUNE_RATE = 1e-4
MOST_CHECKED = 500  # test photos on which the exported formats are compared
BACKGROUND = "(background)"  # the class of what is none of the classes


class Batches(keras.utils.PyDataset):
    """Photos for training, each time in another view; or, with `view`, always in the same."""

    def __init__(self, photos, labels, side: int, resize: Resize, view: int | None = None):
        super().__init__(workers=2, max_queue_size=4)
        self.photos, self.labels = photos, labels
        self.side, self.resize, self.view = side, resize, view
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.photos) // BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.epoch)
        order = rng.permutation(len(self.photos))[index * BATCH :][:BATCH]
        view = VIEWS + self.epoch if self.view is None else self.view
        pixels = [view_of(self.photos[i], view, self.side, self.resize) for i in order]
        return np.stack(pixels), self.labels[order]

    def on_epoch_end(self) -> None:
        self.epoch += 1


def fit_head(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    seed: int,
) -> keras.Model:
    """The linear head, features (N, D) → logits, that is best on the validation photos.

    `train` is (N, views, D), `validation` (N, D), labels are (N,) integers.
    """
    rows, targets = train.reshape(-1, train.shape[-1]), train_labels.repeat(train.shape[1])
    best, least = None, np.inf
    for decay in HEAD_DECAYS:
        keras.utils.set_random_seed(seed)
        scale = keras.layers.Normalization(name="standardise")
        scale.adapt(rows)
        head = keras.Sequential(
            [
                keras.Input((rows.shape[-1],)),
                scale,
                keras.layers.Dropout(HEAD_DROPOUT),
                keras.layers.Dense(int(targets.max()) + 1, name="logits"),
            ],
            name="head",
        )
        steps = HEAD_EPOCHS * -(-len(rows) // HEAD_BATCH)
        rate = keras.optimizers.schedules.CosineDecay(HEAD_RATE, steps)
        compile_for(head, keras.optimizers.AdamW(rate, weight_decay=decay))
        head.fit(rows, one_hot(targets), HEAD_BATCH, HEAD_EPOCHS, verbose=0)
        loss = loss_of(head.predict_on_batch(validation), validation_labels)
        if loss < least:
            best, least = head, loss
    return best


def join(backbone: keras.Model, head: keras.Model) -> keras.Model:
    """The network from images (N, side, side, 3), values 0..255, to features and logits."""
    features = keras.layers.GlobalAveragePooling2D(name="features")(backbone.output)
    return keras.Model(backbone.input, head(features), name=backbone.name)


def fine_tune(
    network: keras.Model, train: Batches, validation: Batches, run: Path
) -> list[dict[str, float]]:
    """Go on training, the backbone's last layers too, if the validation photos gain by it.

    The network ends at its best epoch, and as it was if there was none. An interrupted run is
    continued, a finished one repeated. Returns the figures of each epoch.
    """
    weights, record = run / "tuned.weights.h5", run / "tuning.json"
    if record.exists():
        network.load_weights(weights)
        return json.loads(record.read_text(encoding="utf-8"))
    layers = next(layer for layer in network.layers if isinstance(layer, keras.Model)).layers
    for position, layer in enumerate(layers):
        # The statistics of BatchNorm stay ImageNet's: those of a few photos are worse.
        norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = position >= len(layers) * (1 - TUNED) and not norm
    compile_for(network, keras.optimizers.AdamW(TUNE_RATE))
    before, start = network.evaluate(validation, verbose=0)[0], network.get_weights()
    callbacks = [
        keras.callbacks.BackupAndRestore(run / "backup"),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.3),
        keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True),
    ]
    figures = network.fit(
        train, epochs=TUNE_EPOCHS, validation_data=validation, callbacks=callbacks, verbose=2
    ).history
    if min(figures["val_loss"]) >= before:
        network.set_weights(start)
    history = [
        dict(zip(("epoch", *figures), (epoch, *row), strict=True))
        for epoch, row in enumerate(zip(*figures.values(), strict=True), 1)
    ]
    network.save_weights(weights)
    with replacing(record) as part:
        part.write_text(json.dumps(history), encoding="utf-8")
    return history


def compile_for(network: keras.Model, optimizer: keras.Optimizer) -> None:
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    network.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]


def loss_of(logits: np.ndarray, labels: np.ndarray) -> float:
    return metrics.cross_entropy(metrics.softmax(logits), labels)


def above_background(features: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """The log of the odds that a photo is of a class, where the last logit is the background's.

    A classifier that has been shown other things rejects those it has not been shown, too
    (Hendrycks, Mazeika & Dietterich 2019, arXiv:1812.04606).
    """
    return ops.logsumexp(logits[:, :-1], -1) - logits[:, -1]


def served(network: keras.Model, classes: int, temperature: float, score: Score) -> keras.Model:
    """The network as it is served: from images to probabilities of the classes and scores."""
    logits = network.output
    known = keras.layers.Rescaling(1 / temperature, name="temperature")(logits[:, :classes])
    probabilities = keras.layers.Softmax(name="probabilities")(known)
    return keras.Model(
        network.input, [probabilities, score(network.get_layer("features").output, logits)]
    )


@dataclass(frozen=True)
class Photos:
    """Photos by part; those of the background come after all classes."""

    labels: list[str]
    parts: dict[Part, list[Photo]]

    def numbers(self, part: Part) -> np.ndarray:
        """The class of each photo as a number, (N,) integers."""
        numbers = {label: number for number, label in enumerate([*self.labels, BACKGROUND])}
        return np.array([numbers[photo.label] for photo in self.parts[part]])

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


def train_network(
    photos: Photos, backbone: keras.Model, resize: Resize, run: Path, *, tune: bool, seed: int
) -> tuple[keras.Model, list[dict[str, float]]]:
    """The network from images to logits that is best on the validation photos.

    Returns the history of fine-tuning, too: empty where the head alone is as good.
    """
    cache = run.parent / "features" / cache_name(backbone, resize)
    train = features(backbone, photos.parts["train"], cache, resize=resize, views=VIEWS)
    validation = features(backbone, photos.parts["validation"], cache, resize=resize)[:, 0]
    numbers = photos.numbers("validation")
    head = fit_head(train, photos.numbers("train"), validation, numbers, seed)
    network = join(backbone, head)
    if not tune:
        return network, []
    side = backbone.input_shape[1]
    tuning, watched = (
        Batches(photos.parts[part], one_hot(photos.numbers(part)), side, resize, view)
        for part, view in (("train", None), ("validation", 0))
    )
    return network, fine_tune(network, tuning, watched, run)


def scorer(photos: Photos, network: keras.Model, resize: Resize, runs: Path) -> tuple[str, Score]:
    """How familiar a photo is, and what that is called: by the background, or else by distance."""
    if photos.of("train", background=True):
        return "above background", above_background
    maps = keras.Model(network.input, network.get_layer("features").input, name=network.name)
    cache = runs / "features" / cache_name(maps, resize)
    train = features(maps, photos.parts["train"], cache, resize=resize)[:, 0]
    return "mahalanobis", mahalanobis(Known(train, photos.numbers("train")))


def answers_to(predict: Predict, photos: Sequence[Photo], side: int, resize: Resize) -> Answers:
    """What the network says of photos, as the server would show them to it."""
    answers = [predict(pixels) for _, pixels in batches([(p, 0) for p in photos], side, resize)]
    return Answers(*(np.concatenate(each) for each in zip(*answers, strict=True)))


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
    tune: bool = True,
    saved_model: bool = False,
    seed: int = 0,
    runs: Path = Path("runs"),
) -> dict[str, Any]:
    """Train on a folder of photos and write the bundle and, in `runs`, the report.

    Returns the figures of the test photos. Raises PhotosError, WeightsError and ExportError;
    then no bundle is written.
    """
    started = time.perf_counter()
    found, photos = gather(folder, background, seed)
    print(report(found, seed), flush=True)
    run = runs / f"transfer-{destination.name}-{backbone}-seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    base = load_backbone(backbone, weights, width=width, side=side)
    side = base.input_shape[1]
    network, history = train_network(photos, base, resize, run, tune=tune, seed=seed)

    classes = len(photos.labels)
    name, score = scorer(photos, network, resize, runs)
    validation, test = (photos.of(part, background=False) for part in ("validation", "test"))
    numbers = photos.numbers("validation")[: len(validation)]
    uncalibrated = served(network, classes, 1.0, score)
    raw = answers_to(
        lambda images: as_answers(uncalibrated.predict_on_batch(images)), validation, side, resize
    )
    temperature = metrics.fit_temperature(np.log(raw.probabilities + 1e-12), numbers)
    threshold = float(np.quantile(raw.scores, 1 - COVERAGE))
    description = {
        "name": destination.name,
        "version": f"{datetime.date.today().isoformat()}-{backbone}-seed{seed}",
        "labels": photos.labels,
        "input_size": side,
        "resize": resize,
        "accuracy": {"measured_on": "photos kept back for the test"},
        "calibration": {
            "temperature": round(temperature, 4),
            "fitted_on": f"{len(validation)} validation photos",
        },
        "uncertainty": {
            "score": name,
            "threshold": round(threshold, 4),
            "fitted_on": f"{len(validation)} validation photos",
            "coverage": COVERAGE,
        },
        "training": {
            "backbone": backbone,
            "width": width,
            "seed": seed,
            "photos": {part: len(photos.of(part, background=False)) for part in photos.parts},
            "background": {part: len(photos.of(part, background=True)) for part in photos.parts},
        },
        "versions": versions(),
    }
    pixels = np.stack([view_of(photo, 0, side, resize) for photo in test[:MOST_CHECKED]])
    numbers = photos.numbers("test")[: len(test)]
    checked = numbers[: len(pixels)]
    model = served(network, classes, temperature, score)
    allowed = MAX_LOSS + 1 / len(pixels)  # one photo, where they are few
    export(
        *(model, destination, description, pixels, checked),
        loss_allowed=allowed,
        saved_model=saved_model,
    )

    predict = load_engine(load_bundle(destination))
    answers = answers_to(predict, test, side, resize)
    strangers = photos.of("test", background=True)
    start = time.perf_counter()
    for image in pixels[:50]:
        predict(image[None])
    figures = measure(answers, numbers, threshold) | {
        "milliseconds": 1000 * (time.perf_counter() - start) / len(pixels[:50]),
        "megabytes": (destination / FILENAMES["litert"]).stat().st_size / 1e6,
    }
    if strangers:
        strange = answers_to(predict, strangers, side, resize)
        figures |= {
            "background_photos": len(strangers),
            "background_accepted": float((strange.scores >= threshold).mean()),
            "background_auroc": metrics.auroc(answers.scores, strange.scores),
        }
    figures["seconds"] = round(time.perf_counter() - started, 1)
    page = write_report(
        run / "report",
        f"{destination.name}: {backbone}",
        {key.replace("_", " "): as_text(value) for key, value in figures.items()},
        report(found, seed),
        pictures_of(answers, numbers, test, photos.labels, history),
        metrics.confusion_matrix(answers.probabilities, numbers),
        photos.labels,
    )
    print(f"Report: {page}")
    return figures


def measure(answers: Answers, numbers: np.ndarray, threshold: float) -> dict[str, Any]:
    """The figures of answers to photos of the classes (N,)."""
    right = int((answers.probabilities.argmax(1) == numbers).sum())
    low, high = metrics.interval(right, len(numbers))
    return {
        "test_photos": len(numbers),
        "accuracy": right / len(numbers),
        "accuracy_from": low,
        "accuracy_to": high,
        "expected_calibration_error": metrics.expected_calibration_error(
            answers.probabilities, numbers
        ),
        "accepted": float((answers.scores >= threshold).mean()),
    }


def as_text(value: float) -> str:
    return f"{value:.1%}" if isinstance(value, float) and value <= 1 else f"{value:g}"


def pictures_of(
    answers: Answers,
    numbers: np.ndarray,
    photos: Sequence[Photo],
    labels: Sequence[str],
    history: Sequence[dict[str, float]],
) -> dict[str, Figure]:
    """The report's figures by their captions."""
    best = answers.probabilities.argmax(1)
    confidence = answers.probabilities.max(1)
    wrong = np.flatnonzero(best != numbers)
    worst = wrong[np.argsort(-confidence[wrong])][:16]
    figures = {
        "Confusion": plots.confusion(
            metrics.confusion_matrix(answers.probabilities, numbers), labels
        ),
        "Calibration": plots.reliability(
            {"test photos": metrics.reliability(answers.probabilities, numbers)}
        ),
        "Rejection": plots.rejection(answers.scores, best == numbers),
    }
    if history:
        figures["Fine-tuning"] = plots.against_epochs({"fine-tuning": history}, columns=1)
    if len(worst):
        figures["Mistakes"] = plots.pictures(
            np.stack([view_of(photos[i], 0, 96, "pad") for i in worst]),
            [f"{labels[best[i]]} {confidence[i]:.0%}\nis {labels[numbers[i]]}" for i in worst],
        )
    return figures


def compare(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of backbones."""
    lines = ["| backbone | accuracy | bundle (MB) | one photo (ms) | minutes |"]
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
    add("--size", type=int, help="pixels of a side (what the backbone was trained at)")
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
            figures = transfer(
                args.photos,
                destination,
                backbone=name,
                weights=args.weights,
                width=args.width,
                side=args.size,
                resize=args.resize,
                background=args.background,
                tune=not args.no_tuning,
                saved_model=args.saved_model,
                seed=args.seed,
            )
            rows.append(figures)
            print("\n".join(f"{key:<28}{as_text(value)}" for key, value in figures.items()))
            print(f"Serve it: python rest_api/app.py --model {destination}", flush=True)
    except (PhotosError, WeightsError, BundleError, ExportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on where it was.")
    if args.compare:
        print(compare(names, rows))


if __name__ == "__main__":
    main()

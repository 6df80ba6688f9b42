"""Train a recipe on CIFAR-10, in a directory that keeps the run; the command is training/train.py.

A run's directory holds checkpoint.npz, written after each epoch, history.csv, curves.png and, at
the end, result.json. An interrupted run goes on from it; a finished one is read.
"""

import csv
import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from math import ceil, inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from training import augment, metrics, plots
from training.augment import Augmentation
from training.checkpoint import (
    CHECKPOINT,
    RunError,
    TrainState,
    restore_checkpoint,
    save_checkpoint,
    versions,
)
from training.cifar10 import outliers, recipes
from training.cifar10.data import LABELS, Split, load_cifar10, split_validation
from training.cifar10.recipes import Recipe
from training.files import replacing

HISTORY, CURVES, RESULT = "history.csv", "curves.png", "result.json"


def train(
    recipe: Recipe,
    data: Split,
    validation: Split | None,
    run: Path,
    *,
    others: Split | None = None,
    seed: int = 0,
    epochs: float | None = None,
    started: float | None = None,
) -> tuple[keras.Model, TrainState]:
    """Train, or go on training, in the directory `run`; returns the network and its history.

    Images are (N, 32, 32, 3) uint8, labels (N,) integers; the labels of `others`, images of none
    of the ten classes, begin at 10. All randomness is a function of the
    seed and the epoch, so a run that was interrupted ends at the same figures as one that was
    not. `started` (time.perf_counter()) backdates the clock. Raises RunError.
    """
    started = time.perf_counter() if started is None else started
    images, labels = data
    epochs = recipe.epochs if epochs is None else epochs
    drawn = min(round(recipe.outliers * len(images)), len(others[1])) if others else 0
    batch_size = min(recipe.batch_size, len(images))
    steps_per_epoch = (len(images) + drawn) // batch_size
    total_steps = steps_in(epochs, steps_per_epoch)

    network = build(recipe, images, seed, steps_per_epoch, epochs)
    averages = {"lookahead": network.get_weights()} if recipe.lookahead else {}
    state = TrainState({"seed": seed, "epochs": epochs, "images": len(images)})
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINT).exists():
        state, averages = restore_checkpoint(run / CHECKPOINT, network, state.settings, averages)
    first, before = state.epoch, state.seconds

    def after_step() -> None:
        state.step += 1
        if recipe.lookahead and state.step % recipe.lookahead == 0:
            look_ahead(network, averages["lookahead"], state.step / total_steps)

    bar = tqdm(total=total_steps * batch_size, initial=state.step * batch_size, unit="img")
    for epoch in range(first, ceil(epochs)):
        image_size = image_size_of_epoch(recipe, epoch)
        if epoch == first or image_size != image_size_of_epoch(recipe, epoch - 1):
            network.make_train_function(force=True)  # one graph per image size: fixed shapes
            size = images.shape[1] if recipe.augmentation.boxes else image_size  # boxes change it
            known = augment.resize(images, size), labels
            unknown = (augment.resize(others[0], size), others[1]) if others else None
        shown = outliers.draw(known, unknown, drawn, epoch, seed) if unknown else known
        augmentation = augmentation_of_epoch(recipe, epoch, epochs)
        batches = batches_of_epoch(
            *shown, augmentation, batch_size, epoch, seed, image_size, network.output_shape[-1]
        )
        bar.set_description(f"epoch {epoch + 1}/{ceil(epochs)}")
        figures = train_steps(network, islice(batches, total_steps - state.step), after_step, bar)
        if recipe.lookahead and state.step == total_steps:
            network.set_weights(averages["lookahead"])

        figures |= validate(network, validation) if validation else {}
        state.epoch = epoch + 1
        state.seconds = round(before + time.perf_counter() - started, 1)
        row = {"epoch": epoch + 1, "image_size": image_size, **figures, "seconds": state.seconds}
        state.history.append(row)
        save_checkpoint(run / CHECKPOINT, network, state, averages)
        write_history(run / HISTORY, state.history)
        tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    bar.close()
    return network, state


def steps_in(epochs: float, steps_per_epoch: int) -> int:
    """The optimizer steps of a training. Raises RunError where there is not one."""
    if not 1 <= steps_per_epoch * epochs < inf:
        least = ceil(1000 / steps_per_epoch) / 1000
        raise RunError(
            f"Cannot train for {epochs:g} epochs: an epoch has {steps_per_epoch} steps, "
            f"so give a number of at least {least:g}."
        )
    return ceil(steps_per_epoch * epochs)


def train_steps(
    network: keras.Model, batches: Iterable[Split], after_step: Callable[[], None], bar: tqdm
) -> dict[str, float]:
    """Train on each of some batches; returns their mean loss and accuracy."""
    sums = {"loss": 0.0, "accuracy": 0.0}
    for done, (images, targets) in enumerate(batches, start=1):
        network.reset_metrics()
        logs = network.train_on_batch(images, targets, return_dict=True)
        after_step()
        sums = {key: total + float(logs[key]) for key, total in sums.items()}
        bar.set_postfix({key: f"{sums[key] / done:.3f}" for key in sums}, refresh=False)
        bar.update(len(images))
    return {key: round(total / done, 5) for key, total in sums.items()}


def build(
    recipe: Recipe, images: np.ndarray, seed: int, steps_per_epoch: int, epochs: float
) -> keras.Model:
    """The recipe's network, initialised by the seed and compiled with its optimizer."""
    keras.utils.set_random_seed(seed)
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.dtype)
    network = recipe.network()
    keras.config.set_dtype_policy(default)
    if recipe.initialise:
        recipe.initialise(network, images[:5000], seed)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=recipe.label_smoothing
    )
    optimizer = recipe.optimizer(steps_per_epoch, epochs)
    # XLA's convolutions are slower than oneDNN's on a CPU: no jit.
    network.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    optimizer.build(network.trainable_variables)
    return network


def batches_of_epoch(
    images: np.ndarray,
    labels: np.ndarray,
    augmentation: Augmentation,
    batch_size: int,
    epoch: int,
    seed: int,
    image_size: int = 32,
    classes: int = len(LABELS),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Augmented batches of one epoch, a function of seed and epoch alone.

    Yields images (B, H, W, 3) and one-hot labels (B, classes) float32; a last, smaller batch
    is left out.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(images))
    mirrored = augment.flips(len(images), augmentation, epoch, seed, rng)
    one_hot = np.eye(classes, dtype=np.float32)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        batch = augment.flip(images[chosen], mirrored[chosen])
        yield augment.augment(batch, augmentation, rng, image_size), one_hot[labels[chosen]]


def image_size_of_epoch(recipe: Recipe, epoch: int) -> int:
    """Width and height, in pixels, of the training images in that epoch."""
    return recipe.resolution[max(start for start in recipe.resolution if start <= epoch)]


def augmentation_of_epoch(recipe: Recipe, epoch: int, epochs: float) -> Augmentation:
    """What is done to the images in that epoch."""
    if epoch < epochs - recipe.sharp_epochs:
        return recipe.augmentation
    return replace(recipe.augmentation, rotation=0, shift=0)


def look_ahead(network: keras.Model, average: list[np.ndarray], done: float) -> None:
    """Take the weights into their running `average`, and set them to it.

    BatchNorm's moving statistics are among them. The average is longer towards the end; `done` is
    the fraction of training done. Lookahead is Zhang et al. 2019 (arXiv:1907.08610), the cubic
    schedule airbench's.
    """
    keep = 0.95**5 * done**3
    for i, weight in enumerate(network.get_weights()):
        average[i] = keep * average[i] + (1 - keep) * weight
    network.set_weights(average)


def validate(network: keras.Model, validation: Split) -> dict[str, float]:
    """Cross-entropy and accuracy on images that are not trained on."""
    logits = predict(network, validation[0])[:, : len(LABELS)]
    loss = metrics.cross_entropy(metrics.softmax(logits), validation[1])
    return {
        "val_loss": round(loss, 5),
        "val_accuracy": metrics.accuracy(logits, validation[1]),
    }


def predict(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Logits (N, classes) float32."""
    starts = range(0, len(images), 1000)
    return np.concatenate([network.predict_on_batch(images[i : i + 1000]) for i in starts])


def predict_views(network: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 10) of the ten classes, without and with test-time augmentation."""
    weights, views = zip(*metrics.views(images), strict=True)
    logits = [predict(network, view)[:, : len(LABELS)] for view in views]
    return logits[0], sum(w * each for w, each in zip(weights, logits, strict=True))


def load_network(
    run: Path, variants: Mapping[str, Recipe] = MappingProxyType({})
) -> tuple[keras.Model, dict[str, Any]]:
    """The trained network of a finished run and its result.json.

    The run is of a recipe, or of one of `variants`. Raises RunError.
    """
    result = read_result(run)
    try:
        recipe = variants.get(result["recipe"]) or recipes.load(result["recipe"])
    except ValueError as error:
        raise RunError(f"{run}: {error}") from None
    network = build(recipe, np.zeros((1, 32, 32, 3), np.uint8), 0, 1, 1)
    restore_checkpoint(run / CHECKPOINT, network)
    return network, result


def read_result(run: Path) -> dict[str, Any]:
    """The result.json of a finished run. Raises RunError if there is none, or a damaged one."""
    path = run / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"recipe", "epochs", "date", "versions"} - set(result):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except FileNotFoundError:
        raise RunError(f"{run} has no {RESULT}: it is not finished. Train it first.") from None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} is damaged: {error}. Remove it, and train again to write it anew."
        ) from error
    return result


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def run_recipe(
    name: str,
    recipe: Recipe,
    *,
    seed: int = 0,
    final: bool = False,
    epochs: float | None = None,
    data: str | Path | None = None,
    cifar100: str | Path | None = None,
    run: Path | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train, measure and write result.json, or read it where the run is finished.

    `run` is its directory, runs/NAME-seedN[-final] by default; `data` that of CIFAR-10, `cifar100`
    that of CIFAR-100, for a recipe with outliers. Raises DataError and RunError.
    """
    run = run or directory(name, seed, final)
    if (run / RESULT).exists():
        return finished(run, recipe.epochs if epochs is None else epochs)
    trained_on, test = load_cifar10(data)
    validation = None
    if not final:
        trained_on, validation = split_validation(*trained_on)
    others = None
    if recipe.outliers:
        others = outliers.outliers(outliers.load_cifar100(cifar100), seed)
    network, state = train(
        recipe,
        trained_on,
        validation,
        run,
        others=others,
        seed=seed,
        epochs=epochs,
        started=started,
    )
    evaluation = time.perf_counter()
    images, labels = validation or test
    logits, logits_tta = predict_views(network, images)
    evaluation = time.perf_counter() - evaluation
    plots.save(plots.curves(state.history, run.name), run / CURVES)
    result = {
        "recipe": name,
        **state.settings,
        "date": datetime.date.today().isoformat(),
        "measured_on": "test" if final else "validation",
        "accuracy": metrics.accuracy(logits, labels),
        "accuracy_tta": metrics.accuracy(logits_tta, labels),
        "seconds": round(state.seconds + evaluation, 1),
        "versions": versions(),
    }
    with replacing(run / RESULT) as part:
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def directory(name: str, seed: int, final: bool) -> Path:
    """Where a run is kept unless told otherwise."""
    return Path("runs", f"{name}-seed{seed}" + "-final" * final)


def finished(run: Path, epochs: float) -> dict[str, Any]:
    """The result of a finished run. Raises RunError if it was one of other length."""
    result = read_result(run)
    if result["epochs"] != epochs:
        raise RunError(
            f"{run} holds a finished run of {result['epochs']:g} epochs, not {epochs:g}. "
            "Remove it, or give another --output."
        )
    print(f"{run} is finished; remove it to train again.")
    return result

"""Train a recipe on CIFAR-10, in a directory that keeps the run; the command is training/train.py.

A run's directory holds checkpoint.npz, written after each epoch, history.csv, curves.png and, at
the end, result.json. An interrupted run goes on from it; a finished one is read.
"""

import csv
import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import ceil, inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import KerasTensor as Tensor
from keras import ops
from keras.losses import categorical_crossentropy
from tqdm import tqdm

from training import augment, metrics, plots
from training.augment import Augmentation
from training.checkpoint import (
    CHECKPOINT,
    RunError,
    TrainState,
    read_settings,
    restore_checkpoint,
    save_checkpoint,
    versions,
)
from training.cifar10 import outliers, recipes
from training.cifar10.averages import Weights, average_after, begin_averages, set_averages
from training.cifar10.data import HELD_OUT, LABELS, Split, load_cifar10, split_validation
from training.cifar10.recipes import Recipe
from training.files import check_writable, replacing, write_json
from training.precision import fastest_dtype, on_accelerator

STEPS_IN_A_GRAPH = 8  # on an accelerator, where Python's part of each step counts
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, one-hot labels, positions
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
    """Train, or go on training, in the directory `run`; returns the network and the run's state.

    Images are (N, 32, 32, 3) uint8, labels (N,) integers; the labels of `others`, images of none
    of the ten classes, begin at 10. All randomness is a function of the seed and the epoch, so a
    run that was interrupted ends at the same figures as one that was not. `started`
    (time.perf_counter()) backdates the clock. Raises RunError.
    """
    started = time.perf_counter() if started is None else started
    images, _ = data
    epochs = recipe.epochs if epochs is None else epochs
    recipe = replace(recipe, dtype=dtype_of(recipe, run / CHECKPOINT))
    drawn = min(round(recipe.outliers * len(images)), len(others[1])) if others else 0
    batch_size = min(recipe.batch_size, len(images))
    steps_per_epoch = (len(images) + drawn) // batch_size
    steps_of_epoch = steps_of_epochs(recipe, epochs, steps_per_epoch)
    total_steps = sum(steps_of_epoch)

    network = build(recipe, images, seed, steps_per_epoch, total_steps / steps_per_epoch)
    averages = begin_averages(recipe, network)
    settings = {"seed": seed, "epochs": epochs, "images": len(images), "dtype": recipe.dtype}
    state = TrainState(settings)
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINT).exists():
        state, averages = restore_checkpoint(run / CHECKPOINT, network, state.settings, averages)
        write_history(run / HISTORY, state.history)  # it may lack the epoch of the checkpoint
    first, before = state.epoch, state.seconds

    ends: list[float] = []  # of the epoch's steps

    def after_step() -> None:
        state.step += 1
        average_after(state.step, total_steps, recipe, network, averages)
        ends.append(time.perf_counter())
        bar.update(batch_size)

    done = state.step * batch_size
    bar = tqdm(total=total_steps * batch_size, initial=done, unit="img", disable=None)
    losses = np.array(state.losses or np.full(len(images) + drawn, inf), np.float32)
    train_steps = fit_steps if on_accelerator() else single_steps
    if shows_hardest(recipe):
        train_steps = partial(single_steps, losses=losses)
    for epoch in range(first, ceil(epochs)):
        image_size, _ = phase = phase_of_epoch(recipe, epoch)
        if epoch == first or phase != phase_of_epoch(recipe, epoch - 1):
            begin_phase(network, recipe, epoch)
            known = at_size(data, recipe, image_size)
            unknown = at_size(others, recipe, image_size) if others else None
        shown = outliers.draw(known, unknown, drawn, epoch, seed) if unknown else known
        make_batches = partial(
            batches_of_epoch,
            *shown,
            augmentation=augmentation_of_epoch(recipe, epoch, epochs),
            batch_size=batch_size,
            epoch=epoch,
            seed=seed,
            image_size=image_size,
            classes=network.output_shape[-1],
        )
        bar.set_description(f"epoch {epoch + 1}/{ceil(epochs)}")
        steps = steps_of_epoch[epoch]
        ends.clear()
        losses[len(images) :] = inf  # outliers, which are others in each epoch
        wanted = hardest(losses, steps * batch_size) if shows_hardest(recipe) else None
        batches = islice(make_batches(wanted=wanted), steps)
        figures = train_steps(network, batches, steps, after_step, bar)
        if state.step == total_steps:
            set_averages(network, recipe, averages, make_batches())
        figures |= validate(network, validation) if validation else {}
        if shows_hardest(recipe):
            state.losses = losses.tolist()
        state.epoch = epoch + 1
        state.seconds = round(before + time.perf_counter() - started, 1)
        row = {
            "epoch": epoch + 1,
            "image_size": image_size,
            **figures,
            "seconds": state.seconds,
            "seconds_in_steps": seconds_in_steps(ends, network.steps_per_execution),
        }
        state.history.append(row)
        keep_epoch(run, network, state, averages)
    bar.close()
    return network, state


def begin_phase(network: keras.Model, recipe: Recipe, epoch: int) -> None:
    """Freeze what is not trained from this epoch on, and have a new graph made."""
    for name in phase_of_epoch(recipe, epoch)[1]:
        freeze(network, name)
    network.make_train_function(force=True)  # one graph for each phase: fixed shapes


def keep_epoch(
    run: Path, network: keras.Model, state: TrainState, averages: Mapping[str, Weights]
) -> None:
    """Write the checkpoint and the history, and print the epoch's figures."""
    save_checkpoint(run / CHECKPOINT, network, state, averages)
    write_history(run / HISTORY, state.history)
    tqdm.write("  ".join(f"{key} {value:.4g}" for key, value in state.history[-1].items()))


def dtype_of(recipe: Recipe, checkpoint: Path | None = None) -> str:
    """The dtype policy to train in: where the recipe leaves it open, that of the checkpoint, or
    else the fastest on this machine. Raises RunError."""
    if recipe.dtype != "auto":
        return recipe.dtype
    if checkpoint and checkpoint.exists():
        return str(read_settings(checkpoint).get("dtype"))
    return fastest_dtype(recipe.network())


def steps_of_epochs(recipe: Recipe, epochs: float, steps_per_epoch: int) -> list[int]:
    """The optimizer steps of each epoch, of which the last may be a part of one.

    Raises RunError where there is not one step.
    """
    if not 1 <= steps_per_epoch * epochs < inf:
        least = ceil(1000 / steps_per_epoch) / 1000
        raise RunError(
            f"Cannot train for {epochs:g} epochs: an epoch has {steps_per_epoch} steps, "
            f"so give a number of at least {least:g}."
        )
    shares = (value_at(recipe.hardest, epoch) for epoch in range(ceil(epochs)))
    whole = [max(1, int(share * steps_per_epoch)) for share in shares]
    last = round(whole[-1] * (epochs - len(whole) + 1), 6)  # 50 · (1.1 - 1) is over 5
    return [*whole[:-1], ceil(last)]


def single_steps(
    network: keras.Model,
    batches: Iterator[Batch],
    steps: int,
    after_step: Callable[[], None],
    bar: tqdm,
    losses: np.ndarray | None = None,
) -> dict[str, float]:
    """Train on so many batches, one after the other; returns their mean loss and accuracy.

    The images' `losses` are updated, if the network has the metric LossOfEach.
    """
    sums = {"loss": 0.0, "accuracy": 0.0}
    for done, (images, targets, chosen) in enumerate(batches, start=1):
        logs = network.train_on_batch(images, targets, return_dict=True)
        if losses is not None:
            losses[chosen] = logs[LossOfEach.NAME]
        after_step()
        sums = {key: total + float(logs[key]) for key, total in sums.items()}
        bar.set_postfix({key: f"{sums[key] / done:.3f}" for key in sums}, refresh=False)
    return {key: round(total / steps, 5) for key, total in sums.items()}


def fit_steps(
    network: keras.Model,
    batches: Iterator[Batch],
    steps: int,
    after_step: Callable[[], None],
    bar: tqdm,
) -> dict[str, float]:
    """The same by Keras's fit: several steps in one graph, the next batches made meanwhile."""
    done = 0

    def after_group(last: int, logs: dict[str, float]) -> None:
        nonlocal done
        before, done = done, min(last + 1, steps)
        for _ in range(before, done):
            after_step()
        bar.set_postfix({key: f"{float(logs[key]):.3f}" for key in logs}, refresh=False)

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=after_group)
    fitted = network.fit(
        (batch[:2] for batch in batches),
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    return {key: round(float(fitted.history[key][0]), 5) for key in ("loss", "accuracy")}


def seconds_in_steps(ends: Sequence[float], first: int) -> float:
    """The time of an epoch's steps, from when they ended.

    The `first` of them end together, after their graph was built: they count as the others do.
    """
    others = len(ends) - first
    return round((ends[-1] - ends[first - 1]) * len(ends) / others, 1) if others > 0 else 0.0


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
    each = [LossOfEach(min(recipe.batch_size, len(images)))] if shows_hardest(recipe) else []
    # Averages of weights are taken between two steps, and so is the loss of each image.
    single = recipe.lookahead or recipe.averaged or shows_hardest(recipe)
    steps = STEPS_IN_A_GRAPH if on_accelerator() and not single else 1
    # XLA is left to Keras: it takes it on a GPU, but not on a CPU, where oneDNN is faster.
    network.compile(optimizer, loss, metrics=["accuracy", *each], steps_per_execution=steps)
    network.optimizer.build(network.trainable_variables)  # with loss scaling, if float16 needs it
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
    wanted: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Augmented batches of one epoch, a function of seed, epoch and `wanted` alone.

    `wanted` (N,) bool leaves images out. Yields images (B, H, W, 3), one-hot labels (B, classes)
    float32 and the images' positions (B,); a last, smaller batch is left out.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(images))
    order = order if wanted is None else order[wanted[order]]
    mirrored = augment.flips(len(images), augmentation, epoch, seed, rng)
    one_hot = np.eye(classes, dtype=np.float32)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        batch = augment.flip(images[chosen], mirrored[chosen])
        batch = augment.augment(batch, augmentation, rng, image_size)
        yield batch, one_hot[labels[chosen]], chosen


class LossOfEach(keras.metrics.Metric):
    """The cross-entropies (B,) of the images of the last batch, for `hardest`."""

    NAME = "loss_of_each"

    def __init__(self, batch_size: int):
        super().__init__(name=self.NAME)
        self.losses = self.add_variable((batch_size,), "zeros", name="losses")

    def update_state(self, targets: Tensor, logits: Tensor, sample_weight: None = None) -> None:
        self.losses.assign(categorical_crossentropy(targets, logits, from_logits=True))

    def result(self) -> Tensor:
        return ops.convert_to_tensor(self.losses)


def shows_hardest(recipe: Recipe) -> bool:
    """Whether some epochs show a part of the images alone."""
    return min(recipe.hardest.values()) < 1


def hardest(losses: np.ndarray, number: int) -> np.ndarray:
    """Which images have so many of the largest losses, (N,) bool.

    A loss is that of the image when it was last shown, so one that is left out comes up again
    when the others' have fallen below it (Jiang et al. 2019, arXiv:1910.00762, "stale").
    """
    wanted = np.zeros(len(losses), bool)
    wanted[np.argsort(-losses, kind="stable")[:number]] = True
    return wanted


def value_at(values: Mapping[int, Any], epoch: int) -> Any:
    """What holds in an epoch of values that are given by the epoch from which they hold."""
    return values[max(start for start in values if start <= epoch)]


def at_size(data: Split, recipe: Recipe, image_size: int) -> Split:
    """Images and labels for epochs of that size; boxes are cut out of the images as they are."""
    images, labels = data
    return (images if recipe.augmentation.boxes else augment.resize(images, image_size)), labels


def phase_of_epoch(recipe: Recipe, epoch: int) -> tuple[int, list[str]]:
    """The image size, and the layers to freeze: each phase has its graph.

    Optimizers on JAX take the gradients of all variables, or none.
    """
    frozen = [name for name, start in recipe.frozen.items() if start <= epoch]
    everything = keras.backend.backend() == "jax"
    return value_at(recipe.resolution, epoch), [] if everything else frozen


def freeze(network: keras.Model, name: str) -> None:
    """Stop training a layer and all before it, so that no gradient is computed for them.

    Our BatchNorm, frozen, still normalises by each batch and goes on updating its statistics.
    """
    last = network.get_layer(name)
    for layer in network.layers:
        layer.trainable = False
        if layer is last:
            return


def augmentation_of_epoch(recipe: Recipe, epoch: int, epochs: float) -> Augmentation:
    """What is done to the images in that epoch."""
    if epoch < epochs - recipe.sharp_epochs:
        return recipe.augmentation
    return replace(recipe.augmentation, rotation=0, shift=0)


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


def predict_views(
    network: keras.Model, images: np.ndarray, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 10) of the ten classes, without and with test-time augmentation.

    Only the fraction `share` of the images, those least sure in one view, is shown in all views.
    """
    one_view = predict(network, images)[:, : len(LABELS)]
    confidence = metrics.softmax(one_view).max(1)
    unsure = np.argsort(confidence)[: round(share * len(images))]
    (weight, _), *others = metrics.views(images[unsure])
    augmented = one_view.copy()
    augmented[unsure] *= weight
    for weight, view in others:
        augmented[unsure] += weight * predict(network, view)[:, : len(LABELS)]
    return one_view, augmented


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
    # In float32, as it is served: any machine computes that.
    recipe = replace(recipe, dtype="float32")
    network = build(recipe, np.zeros((1, 32, 32, 3), np.uint8), 0, 1, 1)
    restore_checkpoint(run / CHECKPOINT, network)
    return network, result


def read_result(run: Path) -> dict[str, Any]:
    """The result.json of a finished run. Raises RunError if there is none, or a damaged one."""
    path = run / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"recipe", "epochs", "date", "measured_on", "versions"} - set(result):
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
    dtype: str | None = None,
    hold_out: bool = False,
    data: str | Path | None = None,
    cifar100: str | Path | None = None,
    run: Path | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train, measure and write result.json, or read it where the run is finished.

    `run` is its directory, runs/NAME-seedN[-final] by default; `data` that of CIFAR-10, `cifar100`
    that of CIFAR-100, for a recipe with outliers. With `hold_out`, a `final` run leaves HELD_OUT
    training images to the export, which calibrates on them. Raises DataError and RunError.
    """
    recipe = replace(recipe, dtype=dtype or recipe.dtype)
    run = run or directory(name, seed, final)
    if (run / RESULT).exists():
        wanted = {
            "recipe": name,
            "seed": seed,
            "epochs": recipe.epochs if epochs is None else epochs,
            "measured_on": "test" if final else "validation",
            "held_out": hold_out,
        }
        return finished(run, wanted if recipe.dtype == "auto" else wanted | {"dtype": recipe.dtype})
    try:
        check_writable(run)
    except OSError as error:
        raise RunError(
            f"{run} cannot be written: {error.strerror}. Give another --output."
        ) from error
    trained_on, measured_on, held_out = split_data(data, final, HELD_OUT if hold_out else 0)
    others = None
    if recipe.outliers:
        others = outliers.outliers(outliers.load_cifar100(cifar100), seed)
    network, state = train(
        recipe,
        trained_on,
        None if final else measured_on,
        run,
        others=others,
        seed=seed,
        epochs=epochs,
        started=started,
    )
    plots.save(plots.curves(state.history, run.name), run / CURVES)
    result = {
        "recipe": name,
        **state.settings,
        "held_out": held_out,
        "date": datetime.date.today().isoformat(),
        "measured_on": "test" if final else "validation",
        **measure(network, recipe, measured_on, state),
        "versions": versions(),
    }
    write_json(run / RESULT, result)
    return result


def split_data(
    directory: str | Path | None, final: bool, held_out: int
) -> tuple[Split, Split, int]:
    """What is trained on, what is measured on, and how many training images are held out.

    Raises DataError.
    """
    training, test = load_cifar10(directory)
    if not final:
        return *split_validation(*training), 0
    if held_out:
        training, (_, kept) = split_validation(*training, held_out)
        held_out = len(kept)
    return training, test, held_out


def measure(
    network: keras.Model, recipe: Recipe, measured_on: Split, state: TrainState
) -> dict[str, float]:
    """The figures of a trained network, and the seconds that they and the training took."""
    started = time.perf_counter()
    images, labels = measured_on
    logits, logits_tta = predict_views(network, images, recipe.augmented_share)
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "accuracy_tta": metrics.accuracy(logits_tta, labels),
        "seconds": round(state.seconds + time.perf_counter() - started, 1),
        "seconds_in_steps": round(sum(row["seconds_in_steps"] for row in state.history), 1),
    }


def directory(name: str, seed: int, final: bool) -> Path:
    """Where a run is kept unless told otherwise."""
    return Path("runs", f"{name}-seed{seed}" + "-final" * final)


def finished(run: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a finished run. Raises RunError if it was another one than is wanted."""
    result = read_result(run)
    held = {key: result.get(key, value) for key, value in wanted.items()}
    held["held_out"] = bool(held["held_out"])  # images, or none
    if held != wanted:
        raise RunError(
            f"{run} holds a finished run with {difference(held, wanted)}. "
            "Remove it, or give another --output."
        )
    print(f"{run} is finished; remove it to train again.")
    return result


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What is held and what is wanted, where they differ."""
    other = [key for key in wanted if held[key] != wanted[key]]
    texts = (", ".join(f"{key} {each[key]}" for key in other) for each in (held, wanted))
    return ", not ".join(texts)

"""Fine-tuning: train the backbone's last layers together with the head.

benchmarks/README.md lists what was tried and what it gained.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from rest_api.bundle import Resize
from training import metrics
from training.checkpoint import CHECKPOINT, TrainState, restore_checkpoint, save_checkpoint
from training.photos.features import BATCH, VIEWS, batches
from training.photos.head import calibrated_loss, compile_for
from training.photos.inspect import Photo

UNFROZEN = 0.6  # fraction of all layers, from the end, that are trained
SIZE_RATIO = 7 / 8  # of the size that is served, in multiples of 32 pixels: training sees crops,
# which show things larger than whole photos do (Touvron et al. 2019, arXiv:1906.06423)
EPOCHS = 7
LEARNING_RATE = 4e-4  # at most: one epoch of warm-up, then a cosine
MIXUP = 0.3  # parameter of the beta distribution of mixup
INTERPOLATIONS = (0.25, 0.5, 0.75, 1.0)  # of the way from the weights before to those after tuning
MIN_GAIN = 0.01  # of validation accuracy: OOD detection gets worse, so tuning must be worth it
SETTINGS = (UNFROZEN, SIZE_RATIO, EPOCHS, LEARNING_RATE, MIXUP)

Validate = Callable[[], tuple[float, float]]  # loss and accuracy on the validation photos


def tune(
    network: keras.Model,
    photos: Sequence[Photo],
    targets: np.ndarray,
    image_size: int,
    resize: Resize,
    run: Path,
    *,
    seed: int,
    epochs: int,
    validate: Validate | None = None,
) -> list[dict[str, float]]:
    """Train the last layers of a network, images → logits, on one-hot targets (N, classes).

    With `validate`, training ends at the weights of the best epoch. The directory `run` keeps a
    checkpoint: an interrupted run is continued, a finished one is not repeated. Returns the
    figures of each epoch. Raises RunError.
    """
    unfreeze(network)
    steps = max(1, len(photos) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / 10, (EPOCHS - 1) * steps, warmup_target=LEARNING_RATE, warmup_steps=steps
    )
    compile_for(network, keras.optimizers.AdamW(schedule))
    network.optimizer.build(network.trainable_variables)
    best = network.get_weights()
    state = TrainState({"photos": len(photos), "epochs": epochs, "seed": seed})
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINT).exists():
        state, groups = restore_checkpoint(run / CHECKPOINT, network, state.settings, ["best"])
        best = groups["best"]
    while state.epoch < epochs:
        shown = batches_of_epoch(photos, targets, image_size, resize, state.epoch, seed)
        row = {"epoch": state.epoch + 1, **train_epoch(network, shown)}
        if validate:
            row["val_loss"], row["val_accuracy"] = validate()
        state.history.append(row)
        state.epoch += 1
        if epochs_since_best(state.history) == 0:
            best = network.get_weights()
        save_checkpoint(run / CHECKPOINT, network, state, {"best": best})
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    network.set_weights(best)
    return state.history


def unfreeze(network: keras.Model) -> None:
    """Make the last layers trainable, and no others."""
    layers = flattened(network)
    for position, layer in enumerate(layers):
        # BatchNorm keeps ImageNet's statistics: those of a few photos are worse.
        batchnorm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = position >= len(layers) * (1 - UNFROZEN) and not batchnorm


def flattened(network: keras.Model) -> list[keras.Layer]:
    """The layers of a network and of the networks nested in it, in order."""
    nested = (flattened(e) if isinstance(e, keras.Model) else [e] for e in network.layers)
    return [layer for layers in nested for layer in layers]


def batches_of_epoch(
    photos: Sequence[Photo],
    targets: np.ndarray,
    image_size: int,
    resize: Resize,
    epoch: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled, cropped and mixed photos of one epoch, a function of seed and epoch alone.

    Yields images (B, image_size, image_size, 3) uint8 and targets (B, classes) float32. A last,
    smaller batch is left out: TensorFlow would trace its graph again.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(photos))
    if len(photos) > BATCH:
        order = order[: len(photos) // BATCH * BATCH]
    view = VIEWS + seed * EPOCHS + epoch
    wanted = [(photos[i], view) for i in order]
    for start, (_, pixels) in enumerate(batches(wanted, image_size, resize)):
        yield mixup(pixels, targets[order[start * BATCH :][:BATCH]], rng)


def mixup(
    images: np.ndarray, targets: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend each image (N, H, W, 3) uint8, and its target, with another (arXiv:1710.09412)."""
    weight = rng.beta(MIXUP, MIXUP, len(images))
    weight = np.maximum(weight, 1 - weight).astype(np.float32)
    other = rng.permutation(len(images))
    pictures = [Image.fromarray(image) for image in images]
    blended = [
        np.asarray(Image.blend(pictures[second], picture, float(w)))
        for picture, second, w in zip(pictures, other, weight, strict=True)
    ]
    weight = weight[:, None]
    return np.stack(blended), weight * targets + (1 - weight) * targets[other]


def train_epoch(
    network: keras.Model, shown: Iterable[tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Train on batches; the means of their loss and accuracy."""
    logs = [network.train_on_batch(*batch, return_dict=True) for batch in shown]
    return {key: float(np.mean([each[key] for each in logs])) for key in logs[0]}


def epochs_since_best(history: Sequence[dict[str, float]]) -> int:
    """Epochs since the least validation loss; 0 where none is measured."""
    losses = [row["val_loss"] for row in history if "val_loss" in row]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def tuning_size(image_size: int) -> int:
    """Pixels per side of the images to tune on, for a network that is served `image_size`."""
    return max(32, round(image_size * SIZE_RATIO / 32) * 32)


def best_interpolation(
    network: keras.Model, start: Sequence[np.ndarray], validate: Validate
) -> float:
    """How far to go from the weights `start` to the network's own; 0 where tuning gains too little.

    Weights in between are often better than at either end (Wortsman et al. 2022, arXiv:2109.01903).
    """
    tuned = network.get_weights()
    interpolate(network, start, tuned, 0)
    least, accuracy = validate()
    best, required = 0.0, accuracy + MIN_GAIN
    for interpolation in INTERPOLATIONS:
        interpolate(network, start, tuned, interpolation)
        loss, accuracy = validate()
        if loss < least and accuracy >= required:
            best, least = interpolation, loss
    interpolate(network, start, tuned, 1)
    return best


def interpolate(
    network: keras.Model, start: Sequence[np.ndarray], end: Sequence[np.ndarray], fraction: float
) -> None:
    """Set the weights to start + fraction · (end - start)."""
    if fraction:
        start = [(1 - fraction) * a + fraction * b for a, b in zip(start, end, strict=True)]
    # At 0 the very same bytes, -0.0 too: features are cached under a hash of the weights.
    network.set_weights(start)


def validate(
    network: keras.Model,
    photos: Sequence[Photo],
    class_ids: np.ndarray,
    classes: int,
    size: int,
    resize: Resize,
) -> tuple[float, float]:
    """The calibrated cross-entropy and the accuracy of a network, images → logits, on photos.

    Of the logits, the first `classes` count, as they do when it is served.
    """
    shown = batches([(photo, 0) for photo in photos], size, resize)
    logits = np.concatenate([network.predict_on_batch(pixels) for _, pixels in shown])
    logits = logits[:, :classes]
    return calibrated_loss(logits, class_ids), metrics.accuracy(logits, class_ids)

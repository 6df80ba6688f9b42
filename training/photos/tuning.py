"""Training on a few photos: a linear head on frozen features, then the backbone's last layers.

What was tried, and what it brought, is in benchmarks/README.md.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import ops
from PIL import Image

from rest_api.bundle import Resize
from training import metrics
from training.checkpoint import CHECKPOINT, TrainState, restore_checkpoint, save_checkpoint
from training.photos.features import BATCH, VIEWS, batches
from training.photos.inspect import Photo

HEAD_EPOCHS = 60
HEAD_BATCH = 64  # views
HEAD_RATE = 3e-3
HEAD_L2 = (0.01, 0.03, 0.1, 0.3)  # of the weights; the best on the validation photos is taken
LABEL_SMOOTHING = 0.1
TUNED = 0.6  # share of all layers, from the end, that fine-tuning changes
TUNE_SIDE = 7 / 8  # of the side that is served, in multiples of 32 pixels: tuning sees crops, in
# which things look larger than in whole photos (Touvron et al. 2019, arXiv:1906.06423)
TUNE_EPOCHS = 11
TUNE_RATE = 4e-4  # at most: it rises for an epoch and falls as a cosine
PLATEAU = 4  # epochs without a better validation loss before the rate is halved
PATIENCE = 8  # such epochs before tuning ends
MIXUP = 0.3  # of the beta distribution that photos are mixed by
BLENDS = (0.25, 0.5, 0.75, 1.0)  # of the way from the weights before to those after tuning
MIN_GAIN = 0.01  # of accuracy: what is tuned tells strangers less well, so it must be worth it
# A run of tuning is continued with the same settings alone.
HEAD_SETTINGS = (HEAD_EPOCHS, HEAD_BATCH, HEAD_RATE, HEAD_L2, LABEL_SMOOTHING)
TUNE_SETTINGS = (TUNED, TUNE_SIDE, TUNE_EPOCHS, TUNE_RATE, PLATEAU, PATIENCE, MIXUP)
SETTINGS = (*HEAD_SETTINGS, *TUNE_SETTINGS)

Watch = Callable[[], tuple[float, float]]  # loss and accuracy on the validation photos


def fit_heads(
    train: np.ndarray, labels: np.ndarray, seed: int, penalties: Sequence[float] = HEAD_L2
) -> dict[float, keras.Model]:
    """For each L2 penalty the linear head, features (N, D) → logits.

    `train` is (N, views, D), `labels` (N,) integers. The heads are trained side by side in one
    network, which takes no longer than one of them.
    """
    rows, targets = train.reshape(-1, train.shape[-1]), one_hot(labels.repeat(train.shape[1]))
    heads, classes = len(penalties), targets.shape[1]
    of_column = np.repeat(penalties, classes).astype(np.float32)
    keras.utils.set_random_seed(seed)
    scale = scaler(rows)
    dense = keras.layers.Dense(
        heads * classes,
        kernel_initializer="zeros",
        kernel_regularizer=lambda kernel: ops.sum(of_column * ops.square(kernel)) / heads,
    )
    apart = keras.layers.Reshape((heads, classes))
    network = keras.Sequential([keras.Input(rows.shape[1:]), scale, dense, apart])
    steps = HEAD_EPOCHS * -(-len(rows) // HEAD_BATCH)
    rate = keras.optimizers.schedules.CosineDecay(HEAD_RATE, steps)
    compile_for(network, keras.optimizers.Adam(rate), steps_per_execution=16)
    repeated = np.repeat(targets[:, None], heads, axis=1)  # (N·views, heads, classes)
    network.fit(rows, repeated, HEAD_BATCH, HEAD_EPOCHS, verbose=0)
    kernels, biases = (np.split(each, heads, -1) for each in dense.get_weights())
    return {
        penalty: linear_head(scale, kernel, bias, penalty)
        for penalty, kernel, bias in zip(penalties, kernels, biases, strict=True)
    }


def linear_head(
    scale: keras.Layer, kernel: np.ndarray, bias: np.ndarray, penalty: float
) -> keras.Model:
    """Scaled features @ kernel (D, classes) + bias, penalised where it is trained further."""
    inputs, classes = kernel.shape
    logits = keras.layers.Dense(
        classes, kernel_regularizer=keras.regularizers.L2(penalty), name="logits"
    )
    head = keras.Sequential([keras.Input((inputs,)), scale, logits], name="head")
    logits.set_weights([kernel, bias])
    return head


def best_penalty(
    heads: Mapping[float, keras.Model], validation: np.ndarray, labels: np.ndarray
) -> float:
    """The penalty of the head that is best on the validation photos' features (N, D)."""
    return min(
        heads, key=lambda each: calibrated_loss(heads[each].predict_on_batch(validation), labels)
    )


def scaler(rows: np.ndarray) -> keras.layers.Normalization:
    """The layer that centres features by these rows (N, D), and scales all by one factor.

    Features that vary little say little: to scale each to the same variance would raise noise.
    """
    mean, variance = rows.mean(0), np.full(rows.shape[1], rows.var(0).mean())
    return keras.layers.Normalization(mean=mean, variance=variance, name="scale")


def batches_of_epoch(
    photos: Sequence[Photo], targets: np.ndarray, side: int, resize: Resize, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Photos in an order and a view of this epoch's own, mixed, and their one-hot labels likewise.

    Yields images (B, side, side, 3) uint8 and labels (B, classes) float32, all of one size: a last,
    smaller batch is left out, for which TensorFlow would build its graph anew.
    """
    rng = np.random.default_rng(epoch)
    order = rng.permutation(len(photos))
    if len(photos) > BATCH:
        order = order[: len(photos) // BATCH * BATCH]
    wanted = [(photos[i], VIEWS + epoch) for i in order]
    for start, (_, pixels) in enumerate(batches(wanted, side, resize)):
        yield mixed(pixels, targets[order[start * BATCH :][:BATCH]], rng)


def mixed(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each image (N, H, W, 3) uint8 with another shining through, their one-hot labels likewise.

    Mixup (Zhang et al. 2018, arXiv:1710.09412).
    """
    share = rng.beta(MIXUP, MIXUP, len(images))
    share = np.maximum(share, 1 - share).astype(np.float32)
    other = rng.permutation(len(images))
    pictures = [Image.fromarray(image) for image in images]
    blended = [
        Image.blend(pictures[theirs], picture, float(own))
        for picture, theirs, own in zip(pictures, other, share, strict=True)
    ]
    share = share[:, None]
    return np.stack(blended), share * labels + (1 - share) * labels[other]


def tune(
    network: keras.Model,
    photos: Sequence[Photo],
    targets: np.ndarray,
    side: int,
    resize: Resize,
    run: Path,
    *,
    watch: Watch | None = None,
    factors: Sequence[float] = (),
) -> list[dict[str, float]]:
    """Go on training, the backbone's last layers too.

    `targets` are one-hot. With `watch` the rate is halved on a plateau, and training ends early
    where nothing is gained, at the weights of the best epoch. Without, `factors` are those that
    the rate had in each epoch then. An interrupted run is continued in the directory `run`, a
    finished one repeated. Returns the figures of each epoch. Raises RunError.
    """
    epochs = TUNE_EPOCHS if watch else len(factors)
    thaw(network)
    steps = max(1, len(photos) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(
        TUNE_RATE / 10, (TUNE_EPOCHS - 1) * steps, warmup_target=TUNE_RATE, warmup_steps=steps
    )
    compile_for(network, keras.optimizers.AdamW(TUNE_RATE))
    network.optimizer.build(network.trainable_variables)
    best = network.get_weights()
    state = TrainState({"photos": len(photos), "epochs": epochs})
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINT).exists():
        state, stored = restore_checkpoint(run / CHECKPOINT, network, state.settings, ["best"])
        best = stored["best"]
    for epoch in range(state.epoch, epochs):
        losses = [row["val_loss"] for row in state.history] if watch else []
        if since_best(losses) >= PATIENCE:
            break
        factor = 0.5 ** plateaus(losses) if watch else factors[epoch]
        shown = batches_of_epoch(photos, targets, side, resize, epoch)
        row = {"epoch": epoch + 1, "factor": factor, **fit_epoch(network, shown, rate, factor)}
        if watch:
            row["val_loss"], row["val_accuracy"] = watch()
            losses.append(row["val_loss"])
        if since_best(losses) == 0:
            best = network.get_weights()
        state.history.append(row)
        state.epoch = epoch + 1
        save_checkpoint(run / CHECKPOINT, network, state, {"best": best})
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    network.set_weights(best)
    return state.history


def thaw(network: keras.Model) -> None:
    """Let the last layers be trained, and no others."""
    layers = leaves(network)
    for position, layer in enumerate(layers):
        # The statistics of BatchNorm stay ImageNet's: those of a few photos are worse.
        norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = position >= len(layers) * (1 - TUNED) and not norm


def fit_epoch(
    network: keras.Model,
    shown: Iterable[tuple[np.ndarray, np.ndarray]],
    rate: Callable[[int], float],
    factor: float,
) -> dict[str, float]:
    """Train on batches at `factor` times the step's rate; the means of their figures."""
    logs = []
    for batch in shown:
        network.optimizer.learning_rate = factor * rate(int(network.optimizer.iterations))
        logs.append(network.train_on_batch(*batch, return_dict=True))
    return {key: float(np.mean([each[key] for each in logs])) for key in logs[0]}


def since_best(losses: Sequence[float]) -> int:
    """Epochs since the least loss; 0 where none is measured."""
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def plateaus(losses: Sequence[float]) -> int:
    """How often PLATEAU epochs in a row have brought no smaller loss."""
    stale = [since_best(losses[: end + 1]) for end in range(len(losses))]
    return sum(each > 0 and each % PLATEAU == 0 for each in stale)


def side_of_tuning(side: int) -> int:
    """Pixels of a side of the images that a network is tuned on, where `side` is served."""
    return max(32, round(side * TUNE_SIDE / 32) * 32)


def leaves(network: keras.Model) -> list[keras.Layer]:
    """The layers of a network and of the networks in it, in their order."""
    nested = (leaves(each) if isinstance(each, keras.Model) else [each] for each in network.layers)
    return [layer for layers in nested for layer in layers]


def best_share(network: keras.Model, start: Sequence[np.ndarray], watch: Watch) -> float:
    """How far on the way from the weights `start` to what they are the network is best; maybe 0.

    In between lies often a better network than at either end (Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    tuned = network.get_weights()
    blend(network, start, tuned, 0)
    least, accuracy = watch()
    best, wanted = 0.0, accuracy + MIN_GAIN
    for share in BLENDS:
        blend(network, start, tuned, share)
        loss, accuracy = watch()
        if loss < least and accuracy >= wanted:
            best, least = share, loss
    blend(network, start, tuned, 1)
    return best


def blend(
    network: keras.Model, start: Sequence[np.ndarray], end: Sequence[np.ndarray], share: float
) -> None:
    """Set the weights to those that lie this share of the way from `start` to `end`."""
    network.set_weights([(1 - share) * a + share * b for a, b in zip(start, end, strict=True)])


def validated(
    network: keras.Model, photos: Sequence[Photo], labels: np.ndarray, side: int, resize: Resize
) -> tuple[float, float]:
    """The cross-entropy that calibration will make of a network, and its accuracy."""
    shown = batches([(photo, 0) for photo in photos], side, resize)
    logits = np.concatenate([network.predict_on_batch(pixels) for _, pixels in shown])
    return calibrated_loss(logits, labels), metrics.accuracy(logits, labels)


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The cross-entropy at the best temperature: how timid a network is does not count."""
    logits = logits / metrics.fit_temperature(logits, labels)
    return metrics.cross_entropy(metrics.softmax(logits), labels)


def compile_for(
    network: keras.Model, optimizer: keras.Optimizer, steps_per_execution: int = 1
) -> None:
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    network.compile(
        optimizer,
        loss,
        metrics=["accuracy"],
        jit_compile=False,
        steps_per_execution=steps_per_execution,
    )


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]

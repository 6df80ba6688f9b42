"""Training on a few photos: a linear head on frozen features, then the backbone's last layers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import ops
from PIL import Image

from rest_api.bundle import Resize
from training import metrics
from training.features import BATCH, VIEWS, view_of
from training.files import replacing

HEAD_EPOCHS = 60
HEAD_BATCH = 64  # views
HEAD_RATE = 3e-3
HEAD_L2 = (0.01, 0.03, 0.1, 0.3)  # of the weights; the best on the validation photos is taken
LABEL_SMOOTHING = 0.1
TUNED = 0.6  # share of all layers, from the end, that fine-tuning changes
TUNE_SIDE = 7 / 8  # of the side that is served, in multiples of 32 pixels: tuning sees crops, in
# which things look larger than in whole photos (Touvron et al. 2019, arXiv:1906.06423)
TUNE_EPOCHS = 14
TUNE_RATE = 4e-4  # at most: it rises for an epoch and falls as a cosine
PATIENCE = 8  # epochs without a better validation loss before tuning ends
MIXUP = 0.3  # of the beta distribution that photos are mixed by
BLENDS = (0.25, 0.5, 0.75, 1.0)  # of the way from the weights before to those after tuning
MIN_GAIN = 0.01  # of accuracy: what is tuned tells strangers less well, so it must be worth it
SETTINGS = (HEAD_EPOCHS, HEAD_BATCH, HEAD_RATE, HEAD_L2, LABEL_SMOOTHING, TUNED, TUNE_EPOCHS)
SETTINGS += (
    TUNE_SIDE,
    TUNE_RATE,
    PATIENCE,
    MIXUP,
    BLENDS,
    MIN_GAIN,
)  # a run goes on with the same alone


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
    compile_for(network, keras.optimizers.Adam(rate))
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
        order = np.random.default_rng(self.epoch).permutation(len(self.photos))
        order = order[index * BATCH :][:BATCH]
        view = VIEWS + self.epoch if self.view is None else self.view
        pixels = np.stack([view_of(self.photos[i], view, self.side, self.resize) for i in order])
        if self.view is None:
            return mixed(pixels, self.labels[order], np.random.default_rng([self.epoch, index]))
        return pixels, self.labels[order]

    def on_epoch_end(self) -> None:
        self.epoch += 1


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
    train: Batches,
    run: Path,
    *,
    epochs: int,
    validation: Batches | None = None,
) -> list[dict[str, float]]:
    """Go on training for so many epochs, the backbone's last layers too.

    With `validation`, training ends early where nothing is gained, at the best epoch's weights. An
    interrupted run is continued, a finished one repeated. Returns the figures of each epoch.
    """
    run.mkdir(parents=True, exist_ok=True)
    weights, record = run / "tuned.weights.h5", run / "history.json"
    if record.exists():
        network.load_weights(weights)
        return json.loads(record.read_text(encoding="utf-8"))
    layers = leaves(network)
    for position, layer in enumerate(layers):
        # The statistics of BatchNorm stay ImageNet's: those of a few photos are worse.
        norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = position >= len(layers) * (1 - TUNED) and not norm
    rate = keras.optimizers.schedules.CosineDecay(
        TUNE_RATE / 10,
        decay_steps=TUNE_EPOCHS * len(train),
        warmup_target=TUNE_RATE,
        warmup_steps=len(train),
    )
    compile_for(network, keras.optimizers.AdamW(rate))

    def resume(_: dict) -> None:  # the views of the epochs that are left, not those of the first
        train.epoch = int(network.optimizer.iterations) // len(train)

    callbacks = [
        keras.callbacks.BackupAndRestore(run / "backup"),
        keras.callbacks.LambdaCallback(on_train_begin=resume),
    ]
    if validation:
        callbacks.append(
            keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
        )
    figures = network.fit(
        train, epochs=epochs, validation_data=validation, callbacks=callbacks, verbose=2
    ).history
    history = [
        dict(zip(("epoch", *figures), (epoch, *row), strict=True))
        for epoch, row in enumerate(zip(*figures.values(), strict=True), 1)
    ]
    network.save_weights(weights)
    with replacing(record) as part:
        part.write_text(json.dumps(history), encoding="utf-8")
    return history


def side_of_tuning(side: int) -> int:
    """Pixels of a side of the images that a network is tuned on, where `side` is served."""
    return max(32, round(side * TUNE_SIDE / 32) * 32)


def leaves(network: keras.Model) -> list[keras.Layer]:
    """The layers of a network and of the networks in it, in their order."""
    nested = (leaves(each) if isinstance(each, keras.Model) else [each] for each in network.layers)
    return [layer for layers in nested for layer in layers]


def best_share(network: keras.Model, start: Sequence[np.ndarray], validation: Batches) -> float:
    """How far on the way from the weights `start` to what they are the network is best; maybe 0.

    In between lies often a better network than at either end (Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    tuned = network.get_weights()
    blend(network, start, tuned, 0)
    least, accuracy = validated(network, validation)
    best, wanted = 0.0, accuracy + MIN_GAIN
    for share in BLENDS:
        blend(network, start, tuned, share)
        loss, accuracy = validated(network, validation)
        if loss < least and accuracy >= wanted:
            best, least = share, loss
    blend(network, start, tuned, 1)
    return best


def blend(
    network: keras.Model, start: Sequence[np.ndarray], end: Sequence[np.ndarray], share: float
) -> None:
    """Set the weights to those that lie this share of the way from `start` to `end`."""
    network.set_weights([(1 - share) * a + share * b for a, b in zip(start, end, strict=True)])


def validated(network: keras.Model, validation: Batches) -> tuple[float, float]:
    """The cross-entropy that calibration will make of a network, and its accuracy."""
    logits, targets = [], []
    for batch in range(len(validation)):
        images, labels = validation[batch]
        logits.append(network.predict_on_batch(images))
        targets.append(labels)
    logits, numbers = np.concatenate(logits), np.concatenate(targets).argmax(1)
    return calibrated_loss(logits, numbers), metrics.accuracy(logits, numbers)


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The cross-entropy at the best temperature: how timid a network is does not count."""
    logits = logits / metrics.fit_temperature(logits, labels)
    return metrics.cross_entropy(metrics.softmax(logits), labels)


def compile_for(network: keras.Model, optimizer: keras.Optimizer) -> None:
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    network.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]

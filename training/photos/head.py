"""Linear classifiers on the features of a frozen backbone."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from training import metrics

EPOCHS = 60
BATCH = 64  # views
LEARNING_RATE = 3e-3
PENALTIES = (0.01, 0.03, 0.1, 0.3)  # L2 of the weights; the validation photos decide
LABEL_SMOOTHING = 0.1
SETTINGS = (EPOCHS, BATCH, LEARNING_RATE, PENALTIES, LABEL_SMOOTHING)


def fit_heads(
    train: np.ndarray, class_ids: np.ndarray, seed: int, penalties: Sequence[float] = PENALTIES
) -> dict[float, keras.Model]:
    """The linear head, features (N, D) → logits, for each L2 penalty.

    `train` is (N, views, D), `class_ids` (N,) integers. All heads are trained as one network,
    which takes no longer than training one.
    """
    rows, targets = train.reshape(-1, train.shape[-1]), one_hot(class_ids.repeat(train.shape[1]))
    heads, classes = len(penalties), targets.shape[1]
    per_column = np.repeat(penalties, classes).astype(np.float32)
    keras.utils.set_random_seed(seed)
    scale = scaler(rows)
    dense = keras.layers.Dense(
        heads * classes,
        kernel_initializer="zeros",
        kernel_regularizer=lambda kernel: ops.sum(per_column * ops.square(kernel)) / heads,
    )
    separate = keras.layers.Reshape((heads, classes))
    network = keras.Sequential([keras.Input(rows.shape[1:]), scale, dense, separate])
    learning_rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE, EPOCHS * -(-len(rows) // BATCH)
    )
    compile_for(network, keras.optimizers.Adam(learning_rate), steps_per_execution=16)
    repeated = np.repeat(targets[:, None], heads, axis=1)  # (N·views, heads, classes)
    network.fit(rows, repeated, BATCH, EPOCHS, verbose=0)
    kernels, biases = (np.split(each, heads, -1) for each in dense.get_weights())
    return {
        penalty: linear_head(scale, kernel, bias, penalty)
        for penalty, kernel, bias in zip(penalties, kernels, biases, strict=True)
    }


def linear_head(
    scale: keras.Layer, kernel: np.ndarray, bias: np.ndarray, penalty: float
) -> keras.Model:
    """Scaled features @ kernel (D, classes) + bias, with the penalty for further training."""
    inputs, classes = kernel.shape
    logits = keras.layers.Dense(
        classes, kernel_regularizer=keras.regularizers.L2(penalty), name="logits"
    )
    head = keras.Sequential([keras.Input((inputs,)), scale, logits], name="head")
    logits.set_weights([kernel, bias])
    return head


def kernel_of(head: keras.Model) -> np.ndarray:
    """The weights (D, classes) of a linear head for features that are not scaled yet."""
    scale, logits = head.layers
    kernel: np.ndarray = logits.kernel.numpy() / np.sqrt(np.asarray(scale.variance)).T
    return kernel


def best_penalty(
    heads: Mapping[float, keras.Model], validation: np.ndarray, class_ids: np.ndarray
) -> float:
    """The penalty of the head with the least calibrated loss on validation features (N, D)."""
    return min(
        heads, key=lambda each: calibrated_loss(np.asarray(heads[each](validation)), class_ids)
    )


def scaler(rows: np.ndarray) -> keras.layers.Normalization:
    """The layer that subtracts the mean of rows (N, D) and divides all features by one deviation.

    Scaling each feature to unit variance would amplify the noise of those that vary little.
    """
    mean, variance = rows.mean(0), np.full(rows.shape[1], rows.var(0).mean())
    return keras.layers.Normalization(mean=mean, variance=variance, name="scale")


def calibrated_loss(logits: np.ndarray, class_ids: np.ndarray) -> float:
    """The cross-entropy at the best temperature: over- and underconfidence do not count."""
    logits = logits / metrics.fit_temperature(logits, class_ids)
    return metrics.cross_entropy(metrics.softmax(logits), class_ids)


def compile_for(
    network: keras.Model, optimizer: keras.Optimizer, steps_per_execution: int = 1
) -> None:
    """Compile for one-hot targets with label smoothing."""
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    network.compile(
        optimizer,
        loss,
        metrics=["accuracy"],
        jit_compile=False,
        steps_per_execution=steps_per_execution,
    )


def one_hot(class_ids: np.ndarray) -> np.ndarray:
    return np.eye(class_ids.max() + 1, dtype=np.float32)[class_ids]

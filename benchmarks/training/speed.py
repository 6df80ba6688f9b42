"""How fast a training step is, and how fast this machine multiplies matrices."""

from collections import defaultdict
from dataclasses import replace

import keras
import numpy as np

from benchmarks.common import milliseconds
from training.cifar10 import train
from training.cifar10.networks import operations
from training.cifar10.recipes import Recipe

STEPS = 4


def images_per_second(recipe: Recipe, image_size: int, frozen: str = "") -> float:
    """Throughput of the training step on random images: the median of STEPS, after one more.

    The layer `frozen`, and all before it, are not trained.
    """
    rng = np.random.default_rng(0)
    shape = (recipe.batch_size, image_size, image_size, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    recipe = replace(recipe, dtype=train.dtype_of(recipe))
    network = train.build(recipe, images, 0, 48, recipe.epochs)
    if frozen:
        train.freeze(network, frozen)
    classes = network.output_shape[-1]
    targets = np.eye(classes, dtype=np.float32)[np.arange(len(images)) % classes]
    times = milliseconds(lambda: network.train_on_batch(images, targets), STEPS + 1)
    return 1000 * len(images) / float(np.median(times[1:]))  # the first step compiles


def matrix_product_gflops(dtype: str) -> float:
    """What this machine reaches on square matrices, in 1e9 operations per second."""
    size, repeats = 2048, 20
    a = keras.ops.cast(keras.random.normal((size, size)), dtype)
    keras.ops.matmul(a, a)

    def products() -> None:
        for _ in range(repeats):
            product = keras.ops.matmul(a, a)
        keras.ops.convert_to_numpy(keras.ops.cast(product, "float32"))  # waits for the last

    return 2 * size**3 * repeats / milliseconds(products, 1)[0] / 1e6


def gflop_per_image(network: keras.Model, image_size: int) -> float:
    """Arithmetic of a training step: the products of forward pass and two backward ones, in 1e9.

    All layers are counted as trained: frozen ones, as in `fast94`, need fewer products.
    """
    return 3 * sum(operations(network, image_size).values()) / 1e9


def pflop(recipe: Recipe) -> float:
    """Arithmetic of a whole training on 50,000 images, counted so, in 1e15; without evaluation.

    Outliers count, too, as many as a recipe shows beside the images.
    """
    network = recipe.network()
    steps_per_epoch = round(50_000 * (1 + recipe.outliers)) // recipe.batch_size
    shown: dict[int, int] = defaultdict(int)  # {image size: images}
    steps_of_epoch = train.steps_of_epochs(recipe, recipe.epochs, steps_per_epoch)
    for epoch, steps in enumerate(steps_of_epoch):
        shown[train.value_at(recipe.resolution, epoch)] += steps * recipe.batch_size
    return sum(n * gflop_per_image(network, size) for size, n in shown.items()) / 1e6

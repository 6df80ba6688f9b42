"""What a training step of fast94 costs, by its parts: `python -m benchmarks.training.step`.

Prints images per second of the step alone, on random images, for the recipe and for variants
that differ from it in one thing.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import keras
import numpy as np

from training.cifar10 import networks, recipes, train
from training.cifar10.recipes import Recipe

STEPS = 4


def images_per_second(recipe: Recipe, side: int, freeze_bias: bool = False) -> float:
    """Median over STEPS steps, after one that compiles."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (recipe.batch_size, side, side, 3), dtype=np.uint8)
    targets = np.eye(10, dtype=np.float32)[np.arange(recipe.batch_size) % 10]
    network = train.build(recipe, images, 0, 48, recipe.epochs)
    if freeze_bias:
        network.get_layer("whiten").bias.trainable = False
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        network.train_on_batch(images, targets)
        times.append(time.perf_counter() - start)
    return recipe.batch_size / float(np.median(times[1:]))


def matrix_product_gflops(dtype: str, side: int = 2048, repeats: int = 20) -> float:
    """What this machine reaches on square matrices, in 1e9 operations a second."""
    a = keras.ops.cast(keras.random.normal((side, side)), dtype)
    keras.ops.matmul(a, a)
    start = time.perf_counter()
    for _ in range(repeats):
        product = keras.ops.matmul(a, a)
    keras.ops.convert_to_numpy(keras.ops.cast(product, "float32"))
    return 2 * side**3 * repeats / (time.perf_counter() - start) / 1e9


def thin_vgg() -> keras.Model:
    return networks.fast_vgg(widths=(32, 256, 256))


def exact_gelu(x):
    return keras.ops.gelu(x, approximate=False)


def tanh_gelu(x):
    return keras.ops.gelu(x, approximate=True)


def main() -> None:
    fast94 = recipes.load("fast94")
    keras_norm = patch.object(networks, "BatchNorm", keras.layers.BatchNormalization)
    variants: dict[str, tuple[Callable[[], float], list]] = {
        "`fast94` at 32 pixels": (lambda: images_per_second(fast94, 32), []),
        "at 28 pixels": (lambda: images_per_second(fast94, 28), []),
        "at 24 pixels": (lambda: images_per_second(fast94, 24), []),
        "at 20 pixels": (lambda: images_per_second(fast94, 20), []),
        "in float32": (lambda: images_per_second(replace(fast94, dtype="float32"), 32), []),
        "Keras's own BatchNormalization": (lambda: images_per_second(fast94, 32), [keras_norm]),
        "exact GELU": (
            lambda: images_per_second(fast94, 32),
            [patch.object(networks, "gelu", exact_gelu)],
        ),
        "GELU in its tanh form": (
            lambda: images_per_second(fast94, 32),
            [patch.object(networks, "gelu", tanh_gelu)],
        ),
        "ReLU": (
            lambda: images_per_second(fast94, 32),
            [patch.object(networks, "gelu", keras.ops.relu)],
        ),
        "whitening bias frozen": (lambda: images_per_second(fast94, 32, freeze_bias=True), []),
        "batches of 500": (lambda: images_per_second(replace(fast94, batch_size=500), 32), []),
        "first block of 32 filters": (
            lambda: images_per_second(replace(fast94, network=thin_vgg), 32),
            [],
        ),
    }
    for dtype in ("float32", "bfloat16"):
        print(f"Matrix product in {dtype}: {matrix_product_gflops(dtype):.0f} GFLOP/s")
    print("\n| variant | images/s |\n|---|---:|")
    for name, (measure, patches) in variants.items():
        with ExitStack() as stack:
            for each in patches:
                stack.enter_context(each)
            print(f"| {name} | {measure():.0f} |", flush=True)


if __name__ == "__main__":
    main()

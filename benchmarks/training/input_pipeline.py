"""Is the input pipeline ever the bottleneck? `python -m benchmarks.training.input_pipeline`.

Prints images per second of each augmentation and of each recipe's whole pipeline, beside the
training step that it feeds. Random images: the content does not change the cost.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import command_line, print_table
from training import import_keras

if TYPE_CHECKING:
    from training.cifar10.recipes import Recipe

BATCH = 1024
SECONDS = 1.0  # of measuring, for each line


def images_per_second(step: Callable[[], np.ndarray]) -> float:
    """Throughput of a function that returns a batch of images; the first call is not timed."""
    step()
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        images += len(step())
    return images / elapsed


def augmentations(images: np.ndarray) -> Iterator[list[str]]:
    from training import augment
    from training.augment import Augmentation

    rng = np.random.default_rng(0)
    mirrored = augment.random_flips(len(images), rng)
    for name, augmentation in (
        ("shift by 2 pixels, reflected", Augmentation(crop=2)),
        ("rotate by 10 degrees and shift by 0.1", Augmentation(rotation=10, shift=0.1)),
    ):
        rate = images_per_second(lambda how=augmentation: augment.augment(images, how, rng))
        yield [name, f"{rate:,.0f}"]
    yield ["cutout", f"{images_per_second(lambda: augment.cutout(images, 8, rng)):,.0f}"]
    yield ["mirror", f"{images_per_second(lambda: augment.flip(images, mirrored)):,.0f}"]


def pipelines(images: np.ndarray) -> Iterator[list[str]]:
    from benchmarks.training import speed
    from training import augment
    from training.cifar10 import recipes, train

    for name in recipes.names():
        recipe = recipes.load(name)
        recipe = replace(recipe, dtype=train.dtype_of(recipe))  # the same at all sizes
        for size in sorted(set(recipe.resolution.values())):
            given = images if recipe.augmentation.boxes else augment.resize(images, size)
            batches = endless_batches(recipe, given, size)
            pipeline = images_per_second(lambda batches=batches: next(batches)[0])
            step = speed.images_per_second(recipe, size)
            ratio = f"{pipeline / step:.0f}"
            yield [name, str(size), f"{pipeline:,.0f}", f"{step:,.0f}", ratio]


def endless_batches(recipe: "Recipe", images: np.ndarray, image_size: int) -> Iterator:
    from training.cifar10.train import batches_of_epoch

    labels = np.arange(len(images)) % 10
    augmentation, batch_size = recipe.augmentation, recipe.batch_size
    return chain.from_iterable(
        batches_of_epoch(images, labels, augmentation, batch_size, epoch, 0, image_size)
        for epoch in count()
    )


def main() -> None:
    command_line(__doc__).parse_args()
    import_keras()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5 * BATCH, 32, 32, 3), dtype=np.uint8)
    print_table(["augmentation of a batch of 1,024", "images/s"], augmentations(images[:BATCH]))
    print()
    print_table(
        ["recipe", "pixels", "pipeline alone, images/s", "training step alone, images/s", "ratio"],
        pipelines(images),
    )


if __name__ == "__main__":
    main()

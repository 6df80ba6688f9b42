"""Is the input pipeline ever the bottleneck? `python -m benchmarks.training.input_pipeline`.

Prints images per second of each augmentation and of each recipe's whole pipeline, beside the
training step that it feeds. Random images: the content does not change the cost.
"""

import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from training import augment
from training.augment import Augmentation
from training.cifar10 import recipes, train

BATCH = 1024
SECONDS = 1.0  # of measuring, for each line


def images_per_second(step: Callable[[], int]) -> float:
    """Rate of a function that returns how many images it handled; the first call is not timed."""
    step()
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        images += step()
    return images / elapsed


def endless_batches(recipe: recipes.Recipe, images: np.ndarray) -> Iterator:
    labels = np.arange(len(images)) % 10
    for epoch in count():
        yield from train.batches_of_epoch(
            images, labels, recipe.augmentation, recipe.batch_size, epoch, seed=0
        )


def main() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5 * BATCH, 32, 32, 3), dtype=np.uint8)
    batch = images[:BATCH]
    print("| augmentation of a batch of 1,024 | images/s |\n|---|---:|")
    for name, how in (
        ("shift by 2 pixels, reflected", Augmentation(crop=2)),
        ("rotate by 10 degrees and shift by 0.1", Augmentation(rotation=10, shift=0.1)),
        ("cutout of 8 pixels", Augmentation(cutout=8)),
    ):
        rate = images_per_second(lambda how=how: len(augment.augment(batch, how, rng)))
        print(f"| {name} | {rate:,.0f} |", flush=True)
    mirrored = augment.random_flips(BATCH, rng)
    print(f"| mirror | {images_per_second(lambda: len(augment.flip(batch, mirrored))):,.0f} |")

    print("\n| recipe | side | pipeline alone, images/s | training step alone, images/s | ratio |")
    print("|---|---:|---:|---:|---:|")
    for name in recipes.names():
        recipe = recipes.load(name)
        network = train.build(recipe, images, 0, 40, 1)
        for side in recipe.resolution.values():
            batches = endless_batches(recipe, augment.resize(images, side))
            pipeline = images_per_second(lambda batches=batches: len(next(batches)[0]))
            network.make_train_function(force=True)
            fixed = next(batches)

            def step(network=network, fixed=fixed) -> int:
                network.train_on_batch(*fixed)
                return len(fixed[0])

            training = images_per_second(step)
            print(
                f"| {name} | {side} | {pipeline:,.0f} | {training:,.0f} "
                f"| {pipeline / training:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

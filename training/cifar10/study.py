"""The study of cifar10_CNN.ipynb: one network or one trick at a time, on a fixed budget.

    python -m training.study                # every variant that is not finished yet
    python -m training.study l2 --seed 1

Trains on 45,000 images, measures on the 5,000 of validation.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import keras

from training.augment import Augmentation
from training.cifar10.data import DataError
from training.cifar10.networks import initialise, vgg
from training.cifar10.recipes import Recipe, airbench94, classic
from training.cifar10.train import RunError, run_recipe

DROPOUT = (0.2, 0.3, 0.4, 0.5)
L2 = 1e-4


def plain(network: Callable[[], keras.Model], augmentation: Augmentation | None = None) -> Recipe:
    """Adam at a constant rate for 12 epochs, whatever the network."""
    return Recipe(
        network=network,
        optimizer=lambda steps_per_epoch, epochs: keras.optimizers.Adam(1e-3),
        epochs=12,
        batch_size=128,
        augmentation=augmentation or Augmentation(),
        dtype="mixed_bfloat16",
    )


all_cures = partial(vgg, 3, batch_norm=True, l2=L2, dropout=DROPOUT)
CURES = {
    "blocks-1": plain(partial(vgg, 1)),
    "blocks-2": plain(partial(vgg, 2)),
    "blocks-3": plain(partial(vgg, 3)),  # what each cure is measured against
    "batch-norm": plain(partial(vgg, 3, batch_norm=True)),
    "l2": plain(partial(vgg, 3, l2=L2)),
    "dropout": plain(partial(vgg, 3, dropout=DROPOUT)),
    "augmentation": plain(partial(vgg, 3), classic.recipe.augmentation),
    "all-cures": plain(all_cures, classic.recipe.augmentation),
    # Pixels scaled to 0..1 instead of normalised by mean and standard deviation.
    "all-cures-scaled": plain(
        partial(all_cures, mean=(0, 0, 0), std=(255, 255, 255)), classic.recipe.augmentation
    ),
}

BUDGET = {"epochs": 6, "resolution": {0: 24, 4: 32}}
fast = replace(airbench94.recipe, **BUDGET)
TRICKS = {
    "fast": fast,
    "fast-without-whitening": replace(fast, initialise=partial(initialise, whitening=False)),
    "fast-without-dirac": replace(fast, initialise=partial(initialise, dirac=False)),
    "fast-without-bias-scale": replace(fast, optimizer=partial(airbench94.optimizer, bias_scale=1)),
    "fast-without-lookahead": replace(fast, lookahead=0),
    "fast-without-label-smoothing": replace(fast, label_smoothing=0),
    "fast-with-random-flip": replace(fast, augmentation=replace(fast.augmentation, flip="random")),
}

VARIANTS = CURES | TRICKS


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the variants of the study.")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"{', '.join(VARIANTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    args = parser.parse_args()
    if unknown := set(args.variants) - set(VARIANTS):
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    try:
        for name in args.variants or VARIANTS:
            run_recipe(name, VARIANTS[name], seed=args.seed, data=args.data)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command continues after the last finished epoch.")


if __name__ == "__main__":
    main()

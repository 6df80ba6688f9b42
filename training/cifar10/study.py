"""The study of the notebooks: one network or one trick at a time, on a fixed budget.

The command is training/study.py.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import keras

from training.augment import Augmentation
from training.cifar10.networks import initialise, residual_vgg, vgg
from training.cifar10.recipes import Recipe, airbench94, classic, fast94, street
from training.optimizers import PiecewiseLinear

DROPOUT = (0.2, 0.3, 0.4, 0.5)
L2 = 1e-4


def plain(network: Callable[[], keras.Model]) -> Recipe:
    """Adam at a constant learning rate for 12 epochs, whatever the network."""
    return Recipe(
        network=network,
        optimizer=lambda steps_per_epoch, epochs: keras.optimizers.Adam(1e-3),
        epochs=12,
        batch_size=128,
        augmentation=Augmentation(),
        dtype="auto",
    )


def regularised(
    network: Callable[[], keras.Model], augmentation: Augmentation | None = None
) -> Recipe:
    """Adam for 40 epochs, in which the learning rate falls to zero: regularisation takes time."""
    return replace(
        plain(network),
        optimizer=lambda steps_per_epoch, epochs: keras.optimizers.Adam(
            PiecewiseLinear(1e-3, [(0, 1), (round(steps_per_epoch * epochs), 0)])
        ),
        epochs=40,
        augmentation=augmentation or Augmentation(),
    )


BASELINES = {
    "blocks-1": plain(partial(vgg, 1)),
    "blocks-2": plain(partial(vgg, 2)),
    "blocks-3": plain(partial(vgg, 3)),
}
REGULARISATION = {
    "unregularised": regularised(partial(vgg, 3)),  # what each method is measured against
    "batch-norm": regularised(partial(vgg, 3, batch_norm=True)),
    "l2": regularised(partial(vgg, 3, l2=L2)),
    "dropout": regularised(partial(vgg, 3, dropout=DROPOUT)),
    "augmentation": regularised(partial(vgg, 3), classic.recipe.augmentation),
    "all-cures": regularised(
        partial(vgg, 3, batch_norm=True, l2=L2, dropout=DROPOUT), classic.recipe.augmentation
    ),
}

fast = replace(airbench94.recipe, epochs=6, resolution={0: 24, 4: 32})
TRICKS = {
    "fast": fast,
    "fast-without-whitening": replace(fast, initialise=partial(initialise, whitening=False)),
    "fast-without-dirac": replace(fast, initialise=partial(initialise, dirac=False)),
    "fast-without-bias-scale": replace(fast, optimizer=partial(airbench94.optimizer, bias_scale=1)),
    "fast-without-lookahead": replace(fast, lookahead=0),
    "fast-without-label-smoothing": replace(fast, label_smoothing=0),
    "fast-with-random-flip": replace(fast, augmentation=replace(fast.augmentation, flip="random")),
}

# From the benchmark to real photos: each adds one thing to the one above it.
crops = replace(
    street.recipe,
    network=partial(residual_vgg, street.WIDTHS),
    optimizer=partial(street.optimizer, rates=((0, 0.2), (2.1, 1), (70, 0))),
    epochs=4,
    averaged=0,
    resolution={0: 24, 3: 32},
    augmentation=fast94.recipe.augmentation,
    outliers=0,
)
boxes = replace(crops, augmentation=replace(street.recipe.augmentation, light=0, sharpness=0))
light = replace(boxes, augmentation=street.recipe.augmentation)
PHOTOS = {
    "street-crops": crops,
    "street-boxes": boxes,
    "street-light": light,
    "street-outliers": replace(
        light, network=street.recipe.network, outliers=street.recipe.outliers
    ),
}

VARIANTS = BASELINES | REGULARISATION | TRICKS | PHOTOS

"""Recipes: one module each, holding one declaration named `recipe` under its evidence."""

from __future__ import annotations  # the names of recipes are known without importing Keras

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rest_api.bundle import View

if TYPE_CHECKING:
    import keras
    import numpy as np

    from training.augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained, besides the data and the seed."""

    network: Callable[[], keras.Model]
    optimizer: Callable[[int, float], keras.optimizers.Optimizer]  # (steps an epoch, epochs)
    epochs: float
    batch_size: int
    augmentation: Augmentation
    initialise: Callable[[keras.Model, np.ndarray, int], None] | None = None
    sharp_epochs: int = 0  # at the end, without rotation and shift, which blur
    label_smoothing: float = 0.0
    lookahead: int = 0  # steps between two averagings of the weights; 0 for none
    averaged: float = 0.0  # the last fraction of training: the network gets their mean weights
    resolution: Mapping[int, int] = field(default_factory=lambda: {0: 32})  # {from epoch: pixels}
    # {from epoch: fraction of the images that it shows, those of the largest losses}
    hardest: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})
    # {layer: epoch from which it, and all before it, are not trained any longer}
    frozen: Mapping[str, int] = field(default_factory=dict)
    views: tuple[View, ...] = (View("stretch"), View("center_crop", mirror=True))  # as served
    early_exit: float = 1.0  # probability in the first view above which the others are left out
    outliers: float = 0.0  # images of none of the ten classes (outliers.py) for each of the ten
    augmented_share: float = 1.0  # of the images measured, the least sure, with all views
    # A dtype policy of Keras's, or "auto": the one that this machine trains fastest in. Mixed ones
    # have float32 variables.
    dtype: str = "float32"


def names() -> list[str]:
    """The recipes there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Recipe:
    """The recipe of that name; raises ValueError naming those there are."""
    if name not in names():
        raise ValueError(f"There is no recipe {name!r}. There are: {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}").recipe

"""Averages of a network's weights over the steps of its training: lookahead, and their mean.

Lookahead is Zhang et al. 2019 (arXiv:1907.08610), with airbench's cubic schedule; the mean of the
last steps at a constant learning rate, Izmailov et al. 2018 (arXiv:1803.05407).
"""

from collections.abc import Iterator, Mapping
from itertools import islice

import keras
import numpy as np
from keras.layers import BatchNormalization

from training.cifar10.recipes import Recipe

EVERY = 5  # steps, of which one is taken into the mean
STATISTICS_BATCHES = 20  # of which BatchNorm's statistics are taken for averaged weights
Weights = list[np.ndarray]


def begin_averages(recipe: Recipe, network: keras.Model) -> dict[str, Weights]:
    """The averages that the recipe keeps, of the initial weights."""
    kept = {"lookahead": recipe.lookahead, "mean": recipe.averaged}
    return {name: network.get_weights() for name, wanted in kept.items() if wanted}


def average_after(
    step: int,
    total_steps: int,
    recipe: Recipe,
    network: keras.Model,
    averages: Mapping[str, Weights],
) -> None:
    """Bring the averages up to date after a step; lookahead also sets the network's weights."""
    if recipe.lookahead and step % recipe.lookahead == 0:
        look_ahead(network, averages["lookahead"], step / total_steps)
    taken = max(1, round(recipe.averaged * total_steps / EVERY))  # sets of weights
    to_come, rest = divmod(total_steps - step, EVERY)
    if recipe.averaged and to_come < taken and not rest:
        update_average(averages["mean"], network, 1 / (taken - to_come))


def set_averages(
    network: keras.Model,
    recipe: Recipe,
    averages: Mapping[str, Weights],
    batches: Iterator[tuple[np.ndarray, ...]],
) -> None:
    """Give the network its averaged weights at the end, where the recipe keeps an average."""
    for average in averages.values():
        network.set_weights(average)
    if recipe.averaged:
        set_statistics(network, islice(batches, STATISTICS_BATCHES))


def look_ahead(network: keras.Model, average: Weights, done: float) -> None:
    """Take the weights into their running `average`, and set them to it.

    BatchNorm's moving statistics are among them. The average is longer towards the end; `done` is
    the fraction of training done.
    """
    update_average(average, network, 1 - 0.95**5 * done**3)
    network.set_weights(average)


def update_average(average: Weights, network: keras.Model, share: float) -> None:
    """Take the weights into their running `average`, of which they become the fraction `share`."""
    for i, weights in enumerate(network.get_weights()):
        average[i] = (1 - share) * average[i] + share * weights


def set_statistics(network: keras.Model, batches: Iterator[tuple[np.ndarray, ...]]) -> None:
    """Set BatchNorm's moving statistics to their mean over batches, of which the images are first.

    Those of averaged weights are not the average of statistics (Izmailov et al. 2018).
    """
    norms = [each for each in network.layers if isinstance(each, BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for number, (images, *_) in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 - 1 / number  # the running mean of all so far
        network(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum

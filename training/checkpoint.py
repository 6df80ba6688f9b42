"""Checkpoints: the whole state of a training in one .npz file.

Every array stands under its own name:

    state             JSON of a TrainState
    weights/PATH      the network's variables, by their paths in Keras
    optimizer/PATH    the optimizer's
    GROUP/PATH        other values of the weights: `lookahead`, `mean` or `best`
"""

import json
import os
import platform
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training.files import replacing

CHECKPOINT = "checkpoint.npz"
PACKAGES = "keras", "tensorflow", "numpy", "ai-edge-litert"
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


class RunError(Exception):
    """A run cannot be made, continued or read; the message says why and what to do."""


@dataclass
class TrainState:
    """Where a run stands: with the arrays, all that a checkpoint holds."""

    settings: dict[str, Any]  # what must be the same when the run is continued
    epoch: int = 0  # finished epochs
    step: int = 0  # finished optimizer steps
    seconds: float = 0.0  # wall-clock time of the finished epochs, over all sittings
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # each image's when it was last shown


def save_checkpoint(
    path: Path,
    network: keras.Model,
    state: TrainState,
    groups: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> None:
    """Write the variables of a network and its optimizer, and `state`, into one file.

    `groups` are named lists of arrays, each in the order of `network.weights`. Raises RunError
    where a value is not finite; a checkpoint that is there already stays.
    """
    arrays = {name: variable.numpy() for name, variable in variables_of(network).items()}
    for group, values in (groups or {}).items():
        arrays |= zip(in_group(group, network), values, strict=True)
    try:
        refuse_not_finite(arrays)
    except ValueError as error:
        raise RunError(
            f"Training diverged: {error}. Try --dtype float32, or lower the recipe's learning rate."
        ) from error
    with replacing(path) as part:
        np.savez(part, state=json.dumps(asdict(state)), **arrays)


def restore_checkpoint(
    path: Path,
    network: keras.Model,
    settings: dict[str, Any] | None = None,
    groups: Iterable[str] = (),
) -> tuple[TrainState, dict[str, list[np.ndarray]]]:
    """Set the variables of a network, and of its optimizer, to those of a checkpoint.

    Returns its state and the arrays of each of `groups`. Raises RunError, and changes nothing, if
    the file cannot be read, does not fit the network, holds values that are not finite, or
    belongs to a run of other `settings` than these.
    """
    variables = variables_of(network)
    names = {group: in_group(group, network) for group in groups}
    with reading(path) as stored:
        state = TrainState(**json.loads(str(stored["state"])))
        arrays = {name: stored[name] for name in chain(variables, *names.values())}
        for name, variable in variables.items():
            if arrays[name].shape != variable.shape:
                raise ValueError(f"{name} is {arrays[name].shape}, not {tuple(variable.shape)}")
        refuse_not_finite(arrays)
    if settings not in (None, state.settings):
        raise RunError(
            f"{path} belongs to a run with {state.settings}, not {settings}. "
            "Continue with the same settings, or give another --output."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return state, {group: [arrays[name] for name in each] for group, each in names.items()}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a checkpoint's run. Raises RunError."""
    with reading(path) as stored:
        settings: dict[str, Any] = json.loads(str(stored["state"]))["settings"]
    return settings


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The arrays of a checkpoint by name. Raises RunError where the block cannot use them."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            yield stored
    except UNREADABLE as error:
        raise RunError(
            f"{path} is not a checkpoint of this network: {error}. Remove it to start anew."
        ) from error


def variables_of(network: keras.Model) -> dict[str, keras.Variable]:
    """The variables of a network and of its optimizer, by their names in a checkpoint."""
    weights = zip(names_of(network.variables), network.variables, strict=True)
    # The optimizer's are called ADAM_2/DENSE_7_KERNEL_MOMENTUM: numbers lie within names.
    state = network.optimizer.variables
    optimizer = zip(names_of(state, ends="[/_]"), state, strict=True)
    return {f"weights/{n}": v for n, v in weights} | {f"optimizer/{n}": v for n, v in optimizer}


def names_of(variables: Sequence[keras.Variable], ends: str = "/") -> list[str]:
    """The paths of variables, without the numbers that Keras counts up in every process.

    The same network then has the same names, however many were built before it. Of those that
    become the same, the second is NAME#2.
    """
    counts, names = Counter[str](), []
    for variable in variables:
        name = re.sub(rf"_\d+(?={ends})", "", variable.path)
        counts[name] += 1
        names.append(f"{name}#{counts[name]}" if counts[name] > 1 else name)
    return names


def in_group(group: str, network: keras.Model) -> list[str]:
    """The names of a group's arrays, in the order of the network's weights."""
    return [f"{group}/{name}" for name in names_of(network.weights)]


def refuse_not_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError naming the first array that holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")


def versions() -> dict[str, str]:
    """What made a figure: the versions of what matters, and the machine."""
    modules = {name: import_module(name.replace("-", "_")) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **{name: module.__version__ for name, module in modules.items()},
        "backend": keras.backend.backend(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
    }

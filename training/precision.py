"""Which type a machine trains fastest in: what `dtype="auto"` of a recipe stands for.

bfloat16 takes two thirds of the time of float32 where the processor has arithmetic for it, several
times as long where oneDNN or TensorFlow emulates it, and is an error where oneDNN refuses it. Only
a trial tells: training steps of the network's largest convolution.
"""

import time
from collections.abc import Mapping
from math import inf

import keras
import numpy as np

from training.cifar10.data import SIDE
from training.cifar10.networks import BatchNorm, operations

MARGIN = 1.1  # by which a type must be faster than those before it: float32 is the safest
SECONDS = 0.05  # a step as long as this is long enough to be compared
HOPELESS = 4  # times as long as the fastest type takes: not worth a longer step
LIMIT = 10.0  # seconds after which no longer steps are tried
REPEATS = 2  # of which the shortest counts: other work on the machine only lengthens a step
MOST = 4096  # images in a step


def candidates() -> list[str]:
    """The dtype policies that are tried, the safest first."""
    policies = ["float32", "mixed_bfloat16"]
    return [*policies, "mixed_float16"] if on_accelerator() else policies


def on_accelerator() -> bool:
    """Whether Keras computes on a GPU or TPU."""
    return not keras.distribution.list_devices()[0].startswith("cpu")


def fastest_dtype(network: keras.Model) -> str:
    """The candidate that this machine trains the network fastest in; prints why."""
    rates = measure(network)
    dtype = fastest(rates)
    speeds = [f"{rate:,.0f} in {each}" if rate else f"{each} fails" for each, rate in rates.items()]
    print(f"Computes in {dtype}; images/s of the largest convolution: {', '.join(speeds)}.")
    return dtype


def fastest(rates: Mapping[str, float]) -> str:
    """The candidate of the highest rate; a later one must exceed those before it by MARGIN."""
    chosen, *others = rates
    for dtype in others:
        if rates[dtype] > MARGIN * rates[chosen]:
            chosen = dtype
    return chosen


def measure(network: keras.Model) -> dict[str, float]:
    """Images/s (of one core) of the largest convolution in each candidate; 0 where it fails.

    Forward and backward. The steps grow from one image until the fastest type takes SECONDS. One
    that is emulated has been given up by then, so it never takes long.
    """
    counts = operations(network, SIDE)
    largest = max(
        (layer for layer in counts if isinstance(layer, keras.layers.Conv2D)),
        key=counts.__getitem__,
    )
    rates = dict.fromkeys(candidates(), 0.0)
    trials = {dtype: alone(largest, dtype) for dtype in rates}
    images, started = 1, time.perf_counter()
    while trials:
        seconds = {dtype: seconds_of_step(trial, images) for dtype, trial in trials.items()}
        rates |= {dtype: images / each for dtype, each in seconds.items()}
        best = min(seconds.values())
        if best >= SECONDS or images >= MOST or time.perf_counter() > started + LIMIT:
            break
        trials = {
            dtype: trial
            for dtype, trial in trials.items()
            if seconds[dtype] < max(SECONDS, HOPELESS * best)
        }
        images *= 4
    return rates


def alone(convolution: keras.layers.Conv2D, dtype: str) -> keras.Model:
    """A network of one layer, and of a BatchNorm before it that needs the gradient of its input."""
    policy = keras.DTypePolicy(dtype)
    inputs = keras.Input(convolution.input.shape[1:])
    settings = convolution.get_config() | {"dtype": policy, "name": None}
    x = type(convolution).from_config(settings)(BatchNorm(dtype=policy)(inputs))
    outputs = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
    network = keras.Model(inputs, outputs)
    # Eager: a graph for each number of images would take longer than the steps.
    network.compile("sgd", "mse", run_eagerly=True, jit_compile=False)
    return network


def seconds_of_step(network: keras.Model, images: int) -> float:
    """The shortest of REPEATS training steps on random images, after one more; inf if it fails.

    On a CPU they are the processor's seconds, of all cores together, which other programs do not
    lengthen.
    """
    clock = time.perf_counter if on_accelerator() else time.process_time
    batch = np.random.default_rng(0).normal(size=(images, *network.input_shape[1:]))
    targets = np.zeros((images, network.output_shape[-1]), np.float32)
    times = []
    try:
        for _ in range(1 + REPEATS):
            start = clock()
            network.train_on_batch(batch.astype(np.float32), targets)
            times.append(clock() - start)
    except Exception:  # each backend and each type has errors of its own
        return inf
    return max(min(times[1:]), 1e-9)  # a coarse clock may not have moved

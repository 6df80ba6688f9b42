import os
import platform
import subprocess
import sys
from math import inf

import pytest

from tests.support import ROOT
from training import precision
from training.cifar10.networks import vgg


def test_later_type_is_chosen_only_where_it_is_clearly_faster():
    assert precision.fastest({"float32": 100, "mixed_bfloat16": 105}) == "float32"
    assert precision.fastest({"float32": 100, "mixed_bfloat16": 150}) == "mixed_bfloat16"
    rates = {"float32": 100, "mixed_bfloat16": 150, "mixed_float16": 160}
    assert precision.fastest(rates) == "mixed_bfloat16"
    assert precision.fastest({"float32": 100, "mixed_bfloat16": 0}) == "float32"


@pytest.mark.parametrize(("each", "longest"), [(1e-3, 64), (1e-2, 16), (inf, 1)])
def test_steps_grow_until_the_fastest_type_takes_long_enough(monkeypatch, each, longest):
    """float32 takes 1 ms an image, the other type as long, ten times as long, or it fails."""
    images_shown = {}

    def seconds_of_step(network, images):
        dtype = network.layers[-2].dtype_policy.name
        images_shown[dtype] = images
        return images * (1e-3 if dtype == "float32" else each)

    monkeypatch.setattr(precision, "seconds_of_step", seconds_of_step)
    monkeypatch.setattr(precision, "LIMIT", inf)
    rates = precision.measure(vgg(1))
    assert rates == {"float32": pytest.approx(1000), "mixed_bfloat16": pytest.approx(1 / each)}
    assert images_shown == {"float32": 64, "mixed_bfloat16": longest}


def test_layer_that_cannot_be_computed_takes_forever():
    network = precision.alone(next(iter(precision.operations(vgg(1), 32))), "float32")
    assert 0 < precision.seconds_of_step(network, 1) < inf

    def fail(*_):
        raise RuntimeError("could not create a primitive descriptor")

    network.train_on_batch = fail
    assert precision.seconds_of_step(network, 1) == inf


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs oneDNN's settings for x86")
@pytest.mark.parametrize(
    "processor",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        {"TF_ENABLE_ONEDNN_OPTS": "0"},
    ],
)
def test_processor_without_bfloat16_computes_in_float32(processor):
    script = (
        "import training; training.import_keras(); from training import precision;"
        "from training.cifar10 import recipes;"
        "print(precision.fastest_dtype(recipes.load('fast94').network()))"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | processor, capture_output=True, text=True, check=True
    )
    line, dtype = run.stdout.splitlines()
    assert dtype == "float32"
    assert line.startswith("Computes in float32; images/s of the largest convolution: ")

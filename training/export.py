"""Turn a finished run into a model bundle: `python -m training.export runs/fast94-seed0-final DEST`.

Writes model.keras, model.tflite (float32), model.int8.tflite (8-bit weights) and model.json.
A run of --final has seen all 50,000 training images, so its temperature comes from its twin: the
run of the same recipe and seed that kept 5,000 back.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from rest_api.bundle import (
    FILENAMES,
    MANIFEST,
    SCHEMA,
    BundleError,
    Resize,
    check_manifest,
    load_bundle,
)
from rest_api.engine import load_engine
from training import metrics
from training.data import LABELS, DataError, load_cifar10, split_validation
from training.files import replacing_folder
from training.networks import BatchNorm
from training.train import RunError, load_network, predict, versions

MAX_DIFFERENCE = 1e-4  # of a probability, float32 LiteRT against Keras
MAX_LOSS = 0.003  # of accuracy, 8-bit against Keras


class ExportError(Exception):
    """The exported formats disagree; nothing was written."""


def deployable(network: keras.Model, temperature: float) -> keras.Model:
    """The network as it is served: float32, plain Keras layers, probabilities as output."""

    def plain(layer: keras.Layer | keras.Operation) -> keras.Layer | keras.Operation:
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # the others, bare operations, have no dtype
            config["dtype"] = "float32"
        cls = keras.layers.BatchNormalization if isinstance(layer, BatchNorm) else type(layer)
        return cls.from_config(config)

    uncompiled = keras.Model(network.input, network.output, name=network.name)
    copy = keras.models.clone_model(uncompiled, clone_function=plain)
    copy.set_weights(network.get_weights())
    images = keras.Input((32, 32, 3), name="image")
    scaled = keras.layers.Rescaling(1 / temperature, name="temperature")(copy(images))
    return keras.Model(images, keras.layers.Softmax(name="probabilities")(scaled))


def write_formats(network: keras.Model, folder: Path) -> None:
    """Write the network in each of the bundle's formats."""
    import tensorflow as tf

    builtins_only = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    network.save(folder / FILENAMES["keras"])
    for engine, optimizations in (
        ("litert-float32", []),
        ("litert", [tf.lite.Optimize.DEFAULT]),
    ):
        network.export(
            folder / FILENAMES[engine],
            format="litert",
            input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), name="image")],
            verbose=False,
            target_spec=builtins_only,
            optimizations=optimizations,
        )


def compare_formats(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The accuracy of each format, through the code that serves it. Raises ExportError."""
    bundle = load_bundle(folder)
    answers = {}
    for engine in FILENAMES:
        run = load_engine(bundle, engine)
        answers[engine] = np.concatenate(
            [run(images[start : start + 500]) for start in range(0, len(images), 500)]
        )
    difference = float(abs(answers["litert-float32"] - answers["keras"]).max())
    if not difference <= MAX_DIFFERENCE:
        raise ExportError(
            f"Float32 LiteRT differs from Keras by {difference:.2g} in a probability, "
            f"more than {MAX_DIFFERENCE:g}."
        )
    accuracy = {engine: metrics.accuracy(answers[engine], labels) for engine in FILENAMES}
    if not accuracy["litert"] >= accuracy["keras"] - MAX_LOSS:
        raise ExportError(
            f"8-bit LiteRT is right on {accuracy['litert']:.2%}, Keras on {accuracy['keras']:.2%}: "
            f"a loss of more than {MAX_LOSS:.1%}."
        )
    return accuracy


def export(
    network: keras.Model,
    temperature: float,
    destination: Path,
    description: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Write a checked bundle to `destination`, replacing one that is there.

    `description` goes into model.json. The formats are compared on `images` (N, H, W, 3) uint8
    and `labels`; if they disagree, ExportError is raised and nothing is written.
    """
    with replacing_folder(destination) as folder:
        write_formats(deployable(network, temperature), folder)
        write_manifest(folder, description)
        accuracy = compare_formats(folder, images, labels)
        measured = {**description["accuracy"], "images": len(labels), "by_engine": accuracy}
        write_manifest(folder, {**description, "accuracy": measured})


def write_manifest(folder: Path, description: dict[str, Any]) -> None:
    """Hash the network files that lie in `folder` and write model.json.

    `description` holds everything but `schema` and `files`. Raises what check_manifest raises.
    """
    files = {}
    for engine, name in FILENAMES.items():
        if (folder / name).exists():
            content = (folder / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            files[engine] = {"name": name, "bytes": len(content), "sha256": digest}
    manifest = {"schema": SCHEMA, **description, "files": files}
    check_manifest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run, such as runs/fast94-seed0-final")
    parser.add_argument("destination", type=Path, help="the bundle's folder, made or replaced")
    parser.add_argument("--name", help="what the API calls the model (the folder's name)")
    parser.add_argument(
        "--resize", choices=get_args(Resize), default="squash", help="policy (%(default)s)"
    )
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    args = parser.parse_args()
    try:
        export_run(args.run, args.destination, args.name, args.resize, args.data)
    except (RunError, DataError, BundleError, ExportError) as error:
        sys.exit(f"error: {error}")


def export_run(
    run: Path, destination: Path, name: str | None, resize: Resize, data: str | None
) -> None:
    """Fit the temperature, export, check on the test images and write the bundle."""
    if destination.exists() and not (destination / MANIFEST).exists():
        raise ExportError(f"{destination} exists and is no bundle; give a folder of its own.")
    training, test = load_cifar10(data)
    _, validation = split_validation(*training)
    network, result = load_network(run)
    twin = run.with_name(run.name.removesuffix("-final"))
    unseen, _ = (network, result) if twin == run else load_network(twin)
    logits = predict(unseen, validation[0])
    temperature = metrics.fit_temperature(logits, validation[1])
    calibrated = metrics.softmax(logits / temperature)
    description = {
        "name": name or destination.name,
        "version": f"{result['date']}-{run.name}",
        "labels": list(LABELS),
        "input_size": 32,
        "resize": resize,
        "accuracy": {"measured_on": "the 10,000 CIFAR-10 test images"},
        "calibration": {
            "temperature": round(temperature, 4),
            "fitted_on": f"the 5,000 validation images, by {twin.name}, which did not train on them",
            "expected_calibration_error": round(
                metrics.expected_calibration_error(calibrated, validation[1]), 4
            ),
        },
        "training": result,
        "versions": versions(),
    }
    export(network, temperature, destination, description, *test)
    print(json.dumps(load_bundle(destination).manifest["accuracy"], indent=2))
    print(f"Wrote {destination}. Serve it: python rest_api/app.py --model {destination}")


if __name__ == "__main__":
    main()

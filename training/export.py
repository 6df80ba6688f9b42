"""Turn a finished run into a model bundle: `python -m training.export RUN DEST`.

Writes model.keras, model.tflite (float32), model.int8.tflite (8-bit weights) and model.json.
A run of --final has seen all 50,000 training images, so its temperature comes from its twin: the
run of the same recipe and seed that kept 5,000 back.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np

from rest_api.bundle import (
    FILENAMES,
    MANIFEST,
    SCHEMA,
    BundleError,
    Engine,
    Resize,
    check_manifest,
    load_bundle,
)
from rest_api.engine import Outputs, load_engine
from training import metrics
from training.cifar10.data import LABELS, DataError, load_cifar10, split_validation
from training.cifar10.networks import BatchNorm
from training.cifar10.train import RunError, load_network, predict
from training.evaluate import in_batches
from training.files import replacing_folder

MAX_DIFFERENCE = 1e-4  # float32 LiteRT against Keras, of a probability
# The same of a score, against the largest. A squared distance between features that are nearly
# equal enlarges what is rounded: to 2e-6 with ImageNet's weights, but to 1.3e-4 with random ones.
MAX_SCORE_DIFFERENCE = 5e-4
MAX_LOSS = 0.003  # of accuracy as a fraction, 8-bit LiteRT against Keras
FEW = 1000  # images: with fewer, MAX_LOSS is under three of them, and chance is allowed for
SAVED_MODEL = "saved_model"
COVERAGE = 0.95  # of the validation images: the share of answers that count as sure


class ExportError(Exception):
    """The exported formats disagree; nothing was written."""


def refuse_other_folder(destination: Path) -> None:
    """Raise ExportError where a bundle would replace something that is none."""
    if destination.exists() and not (destination / MANIFEST).exists():
        raise ExportError(f"{destination} exists and is no bundle. Give a folder of its own.")


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
    answers = {engine: in_batches(load_engine(bundle, engine), images) for engine in FILENAMES}
    check_same(answers["litert-float32"], answers["keras"])
    right = {engine: each.probabilities.argmax(1) == labels for engine, each in answers.items()}
    accuracy = {engine: float(each.mean()) for engine, each in right.items()}
    loss, allowed = loss_and_allowance(right["keras"], right["litert"])
    if not loss <= allowed:
        raise ExportError(
            f"8-bit LiteRT is right on {accuracy['litert']:.2%}, Keras on {accuracy['keras']:.2%}: "
            f"a loss of more than {allowed:.1%}."
        )
    return accuracy


def check_same(litert: Outputs, reference: Outputs) -> None:
    """Raise ExportError where LiteRT and Keras, both float32, differ by more than they round."""
    probability = abs(litert.probabilities - reference.probabilities).max()
    largest = max(1.0, float(abs(reference.scores).max()))
    score = abs(litert.scores - reference.scores).max() / largest
    for what, difference, allowed in (
        ("a probability", probability, MAX_DIFFERENCE),
        ("a score", score, MAX_SCORE_DIFFERENCE),
    ):
        if not difference <= allowed:
            raise ExportError(
                f"Float32 LiteRT differs from Keras by {difference:.2g} in {what}, "
                f"more than {allowed:g}."
            )


def loss_and_allowance(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The accuracy lost between two classifiers of the same images, and how much may be.

    `before` and `after`, (N,) booleans, say who was right. With few images, losing some proves no
    harm: two standard errors more are allowed, to which only those images add on which the two
    differ (McNemar 1947).
    """
    images, lost, gained = len(before), (before & ~after).sum(), (after & ~before).sum()
    chance = 2 * np.sqrt(lost + gained) / images if images < FEW else 0.0
    return float(lost - gained) / images, MAX_LOSS + float(chance)


def export(
    network: keras.Model,
    destination: Path,
    description: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    engines: Sequence[Engine] = tuple(FILENAMES),
    saved_model: bool = False,
) -> None:
    """Write a checked bundle to `destination`, replacing one that is there.

    `network` is as it is served: from images, values 0..255, to probabilities (and scores).
    `description` goes into model.json. All formats are compared on `images` (N, H, W, 3) uint8
    and `labels`, then those of `engines` are kept; with `saved_model`, a TensorFlow SavedModel
    lies beside them. If they disagree, ExportError is raised and nothing is written.
    """
    with replacing_folder(destination) as folder:
        write_formats(network, folder)
        if saved_model:
            network.export(folder / SAVED_MODEL, verbose=False)
        write_manifest(folder, description)
        accuracy = compare_formats(folder, images, labels)
        for engine in set(FILENAMES) - set(engines):
            (folder / FILENAMES[engine]).unlink()
        kept = {engine: accuracy[engine] for engine in FILENAMES if engine in engines}
        measured = {**description["accuracy"], "images": len(labels), **kept}
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


def calibrate(
    logits: np.ndarray, labels: np.ndarray, fitted_on: str
) -> tuple[float, dict[str, Any]]:
    """The temperature, and what model.json says of it and of the threshold for a sure answer.

    `logits` (N, classes) are those of images that the network has not seen.
    """
    temperature = metrics.fit_temperature(logits, labels)
    probabilities = metrics.softmax(logits / temperature)
    threshold = metrics.threshold_of(probabilities, COVERAGE)
    _, accuracy = metrics.selective(probabilities, labels, threshold)
    error = metrics.expected_calibration_error(probabilities, labels)
    return temperature, {
        "calibration": {
            "temperature": round(temperature, 4),
            "fitted_on": fitted_on,
            "expected_calibration_error": round(error, 4),
        },
        "uncertainty": {
            "threshold": round(threshold, 4),
            "fitted_on": fitted_on,
            "coverage": COVERAGE,
            "accuracy": round(accuracy, 4),
        },
    }


def export_run(
    run: Path,
    destination: Path,
    *,
    name: str | None = None,
    resize: Resize = "pad",
    engines: Sequence[Engine] = tuple(FILENAMES),
    data: str | Path | None = None,
) -> None:
    """Fit the temperature of a run, export it, check it on the test images.

    Raises RunError, DataError and ExportError; then nothing is written.
    """
    refuse_other_folder(destination)
    network, result = load_network(run)
    twin = run.with_name(run.name.removesuffix("-final"))  # has not seen the validation images
    unseen = network if twin == run else load_network(twin)[0]
    training, test = load_cifar10(data)
    _, (images, labels) = split_validation(*training)
    fitted_on = f"5,000 validation images, which {twin.name} was not trained on"
    temperature, fitted = calibrate(predict(unseen, images), labels, fitted_on)
    description = {
        "name": name or destination.name,
        "version": f"{result['date']}-{run.name}",
        "labels": list(LABELS),
        "input_size": 32,
        "resize": resize,
        "accuracy": {"measured_on": "the CIFAR-10 test set"},
        **fitted,
        "training": {key: value for key, value in result.items() if key != "versions"},
        "versions": result["versions"],
    }
    served = deployable(network, temperature)
    export(served, destination, description, *test, engines=engines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn a finished run into a model bundle.")
    parser.add_argument("run", type=Path, help="a finished run, such as runs/fast94-seed0-final")
    parser.add_argument("destination", type=Path, help="the bundle's folder, made or replaced")
    parser.add_argument("--name", help="what the API calls the model (the folder's name)")
    parser.add_argument(
        "--resize",
        choices=get_args(Resize),
        default="pad",
        help="how a photo becomes a square (%(default)s)",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=list(FILENAMES),
        default=list(FILENAMES),
        help="whose files to keep (all)",
    )
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    try:
        export_run(
            args.run,
            args.destination,
            name=args.name,
            resize=args.resize,
            engines=args.engines,
            data=args.data,
        )
        bundle = load_bundle(args.destination)
    except (RunError, DataError, BundleError, ExportError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(bundle.manifest, indent=2))
    print(f"Serve it: python rest_api/app.py --model {bundle.path}")


if __name__ == "__main__":
    main()

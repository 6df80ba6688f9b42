"""Write a network as a checked model bundle; as a command, a finished run on CIFAR-10.

    python -m training.export RUN DEST

A bundle holds model.keras, model.tflite (float32), model.int8.tflite (8-bit weights) and
model.json. Where there are images to calibrate it with, the 8-bit network computes in integers.
"""

import argparse
import contextlib
import hashlib
import io
import json
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from timeit import repeat
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np

from rest_api.bundle import (
    FILENAMES,
    MANIFEST,
    SCHEMA,
    Bundle,
    BundleError,
    Engine,
    Resize,
    View,
    check_manifest,
    load_bundle,
)
from rest_api.engine import Outputs, Predict, load_engine, mean_over_views, silent_stderr
from training import import_keras, metrics
from training.evaluate import in_batches
from training.files import check_writable, replacing_folder, write_json

if TYPE_CHECKING:
    import keras

MAX_DIFFERENCE = 1e-4  # float32 LiteRT against Keras, of a probability
# The same of a score, against the largest. A squared distance between features that are nearly
# equal enlarges what is rounded: to 2e-6 with ImageNet's weights, but to 1.3e-4 with random ones.
MAX_SCORE_DIFFERENCE = 5e-4
MAX_LOSS = 0.003  # of accuracy as a fraction, 8-bit LiteRT against Keras
FEW = 1000  # images: with fewer, MAX_LOSS is under three of them, and chance is allowed for
SAVED_MODEL = "saved_model"
# What a network of integers still computes in floats: everything but convolutions.
IN_FLOAT32 = [
    "ABS",
    "DIV",
    "EXP",
    "FULLY_CONNECTED",
    "LOG",
    "MAXIMUM",
    "MEAN",
    "MUL",
    "REDUCE_MAX",
    "RESHAPE",
    "RSQRT",
    "SIGN",
    "SOFTMAX",
    "SQRT",
    "SQUARE",
    "SQUARED_DIFFERENCE",
    "STRIDED_SLICE",
    "SUB",
    "SUM",
]
TIMED = 30  # predictions
SLOWER = 1.2  # times as long as float32 takes: 8 bits are a quarter of the size
BATCH = 50  # images that are compared at a time
COVERAGE = 0.95  # of the calibration images: the fraction that is answered
# Of those that are not, the fraction that the OOD score rejects. Equal fractions answer more photos
# of other things, and no larger part of the known ones that are answered is right.
OOD_SHARE = 0.8


class ExportError(Exception):
    """A bundle cannot be exported; the message says why. Nothing was written."""


def refuse_other_folder(destination: Path) -> None:
    """Raise ExportError where a bundle would replace something else, or cannot be written."""
    try:
        if destination.exists() and not (destination / MANIFEST).exists():
            raise ExportError(f"{destination} exists and is no bundle. Give a folder of its own.")
        check_writable(destination.parent)
    except OSError as error:
        raise ExportError(
            f"{destination} cannot be written: {error.strerror}. Give a folder that can be."
        ) from error


def write_formats(
    network: "keras.Model",
    folder: Path,
    image_size: int,
    calibration: np.ndarray | None = None,
) -> None:
    """Write the network in each of the bundle's formats.

    LiteRT's take `image_size` pixels each way until they are told another size. With images to
    calibrate it, (N, H, W, 3) uint8, the 8-bit network computes in integers.
    """
    import tensorflow as tf

    builtins_only = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    network.save(folder / FILENAMES["keras"])
    optimizations: dict[Engine, list[Any]] = {"litert-float32": []}
    if calibration is None:
        optimizations["litert"] = [tf.lite.Optimize.DEFAULT]  # 8-bit weights
    else:
        (folder / FILENAMES["litert"]).write_bytes(in_integers(network, calibration))
    for engine in optimizations:
        network.export(
            folder / FILENAMES[engine],
            format="litert",
            input_signature=[tf.TensorSpec((None, image_size, image_size, 3), name="image")],
            verbose=False,
            target_spec=builtins_only,
            optimizations=optimizations[engine],
        )


def in_integers(network: "keras.Model", calibration: np.ndarray) -> bytes:
    """The network with 8-bit weights and activations in its convolutions (Jacob et al. 2018,
    arXiv:1712.05877), as a LiteRT file.

    All that follows the last convolution stays in float32: it costs little, and an OOD score of 256
    steps would be of no use. Ranges are those of the images (N, H, W, 3) uint8.
    """
    import tensorflow as tf

    def images() -> Iterator[list[np.ndarray]]:
        yield from ([image[None].astype(np.float32)] for image in calibration)

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = images
    # The debugger is the converter's only public way to leave some operations as they are.
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=IN_FLOAT32)
    with (
        silent_stderr(),
        contextlib.redirect_stdout(io.StringIO()),  # names of temporary files
        warnings.catch_warnings(action="ignore"),  # of TensorFlow's own deprecated parts
    ):
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=images, debug_options=options
        )
        return debugger.get_nondebug_quantized_model()


def compare_formats(
    predict: Mapping[Engine, Predict],
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    early_exit: float,
) -> tuple[dict[Engine, float], Engine]:
    """The accuracy of each format, through the code that serves it, and which one should serve:
    8 bits, unless they lose accuracy or are clearly slower than float32. Raises ExportError."""
    outputs = {
        engine: [in_batches(predict[engine], view, BATCH) for view in views] for engine in FILENAMES
    }
    for litert, reference in zip(outputs["litert-float32"], outputs["keras"], strict=True):
        check_same(litert, reference)
    correct = {
        engine: mean_over_views(each, early_exit).probabilities.argmax(1) == labels
        for engine, each in outputs.items()
    }
    accuracy = {engine: float(each.mean()) for engine, each in correct.items()}
    loss, allowed = loss_and_allowance(correct["keras"], correct["litert"])
    shown = [view[:1] for view in views]
    times = [milliseconds(predict[engine], shown) for engine in ("litert", "litert-float32")]
    good = loss <= allowed and times[0] <= SLOWER * times[1]
    return accuracy, "litert" if good else "litert-float32"


def milliseconds(predict: Predict, views: Sequence[np.ndarray]) -> float:
    """The time of a prediction for the views of one photo: the least of many, beside other work."""
    return 1000 * min(repeat(lambda: [predict(view) for view in views], number=1, repeat=TIMED))


def score_shift(predict: Predict, reference: Predict, images: np.ndarray) -> float:
    """How much higher the OOD scores of a format are than Keras's, in the median of images.

    What integers round off a photo's features moves it away from all classes.
    """
    scores, expected = (in_batches(each, images, BATCH).scores for each in (predict, reference))
    return float(np.median(scores - expected))


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

    `before` and `after`, (N,) booleans, say which predictions were correct. With few images, losing
    some proves no harm: two standard errors more are allowed, to which only those images add on
    which the two differ (McNemar 1947).
    """
    images, lost, gained = len(before), (before & ~after).sum(), (after & ~before).sum()
    chance = 2 * np.sqrt(lost + gained) / images if images < FEW else 0.0
    return float(lost - gained) / images, MAX_LOSS + float(chance)


def export(
    network: "keras.Model",
    destination: Path,
    description: dict[str, Any],
    views: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    engines: Sequence[Engine] = tuple(FILENAMES),
    calibration: np.ndarray | None = None,
    saved_model: bool = False,
) -> None:
    """Write a checked bundle to `destination`, replacing one that is there.

    `network` is as it is served: from images, values 0..255, to probabilities (and scores).
    `description` goes into model.json. All formats are compared on `views`, which are those of the
    description, each (N, side, side, 3) uint8, and `labels` (N,); then those of `engines` are kept,
    and the one that should serve. `calibration` (M, H, W, 3) uint8, of images of the classes, has
    the 8-bit network compute in integers. With `saved_model`, a TensorFlow SavedModel lies beside
    them. If the formats disagree, ExportError is raised and nothing is written.
    """
    with replacing_folder(destination) as folder:
        write_formats(network, folder, description["input_size"], calibration)
        if saved_model:
            network.export(folder / SAVED_MODEL, verbose=False)
        write_manifest(folder, description)
        bundle = load_bundle(folder)
        predict = {engine: load_engine(bundle, engine) for engine in FILENAMES}
        accuracy, engine = compare_formats(predict, views, labels, bundle.early_exit)
        if "ood" in description and calibration is not None:
            shift = score_shift(predict[engine], predict["keras"], calibration)
            threshold = round(description["ood"]["threshold"] + shift, 4)
            ood = {**description["ood"], "threshold": threshold}
            description = {**description, "ood": ood}
        for each in set(FILENAMES) - {engine, *engines}:
            (folder / FILENAMES[each]).unlink()
        kept = {each: accuracy[each] for each in FILENAMES if each in {engine, *engines}}
        measured = {**description["accuracy"], "images": len(labels), **kept}
        description = {**description, "engine": engine, "accuracy": measured}
        # Two bundles of one day differ in their versions, too, if in anything.
        content = (folder / FILENAMES[engine]).read_bytes() + msgspec.json.encode(description)
        version = f"{description['version']}-{hashlib.sha256(content).hexdigest()[:8]}"
        write_manifest(folder, {**description, "version": version})


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
    write_json(folder / MANIFEST, manifest)


def change_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with other values in its model.json."""
    write_json(bundle.path / MANIFEST, bundle.manifest | changes)
    return load_bundle(bundle.path)


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    fitted_on: str,
    scores: np.ndarray | None = None,
    score: str = "",
    coverage: float = COVERAGE,
    early_exit: float = 1.0,
) -> tuple[float, dict[str, Any]]:
    """The temperature, and what model.json says of it and of the thresholds.

    `logits` (N, views, classes) and the OOD scores (N, views), named `score`, are those of images
    that the network was not trained on. The fraction `coverage` of these is answered, some of them
    from their first view (`early_exit`, as in model.json). With too few images to find the least
    probable ones, there is a threshold of the OOD score alone.
    """
    temperature = metrics.fit_temperature(logits, labels)
    probabilities = metrics.softmax(logits / temperature)  # (N, views, classes)
    of_images = probabilities.max(-1) if scores is None else scores
    of_views = [Outputs(probabilities[:, i], of_images[:, i]) for i in range(logits.shape[1])]
    outputs = mean_over_views(of_views, early_exit)
    measures, shares = {"uncertainty": outputs.probabilities.max(1)}, [1.0]
    if scores is not None:
        shares = [1 - OOD_SHARE, OOD_SHARE]
        if (len(labels) + 1) * (1 - coverage) * shares[0] < 1:
            measures, shares = {}, [1.0]
        measures["ood"] = outputs.scores
    found = metrics.joint_thresholds(list(measures.values()), shares, coverage)
    thresholds = dict(zip(measures, found, strict=True))
    answered = np.all([measures[each] >= thresholds[each] for each in measures], axis=0)
    error = metrics.expected_calibration_error(outputs.probabilities, labels)
    accuracy = metrics.accuracy(outputs.probabilities[answered], labels[answered])
    description: dict[str, Any] = {
        "calibration": {
            "temperature": round(temperature, 4),
            "fitted_on": fitted_on,
            "expected_calibration_error": round(error, 4),
        },
    }
    for each, threshold in thresholds.items():
        description[each] = {
            "threshold": round(threshold, 4),
            "fitted_on": fitted_on,
            "coverage": coverage,  # of both thresholds together
            "accuracy": round(accuracy, 4),
        }
    if scores is not None:
        description["ood"] = {"score": score} | description["ood"]
    return temperature, description


def parse_view(text: str) -> View:
    """A view from the command line, such as stretch or center_crop:40:mirrored."""
    resize, *more = text.split(":")
    mirror = more[-1:] == ["mirrored"]
    size = more[: len(more) - mirror]
    try:
        return msgspec.convert(
            {"resize": resize, "mirror": mirror} | ({"size": int(*size)} if size else {}), View
        )
    except (ValueError, TypeError) as error:
        known = ", ".join(get_args(Resize))
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of {known}, then perhaps :SIZE, then perhaps :mirrored"
        ) from error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn a finished run into a model bundle.")
    add, engines = parser.add_argument, list(FILENAMES)
    add("run", type=Path, help="a finished run, such as runs/fast94-seed0-final")
    add("destination", type=Path, help="the bundle's folder, made or replaced")
    add("--name", help="what the API calls the model (the folder's name)")
    add(
        "--views",
        nargs="+",
        type=parse_view,
        metavar="VIEW",
        help="of a photo, whose logits are averaged: stretch, center_crop or letterbox, then "
        "perhaps :SIZE in pixels, then perhaps :mirrored (the recipe's)",
    )
    add("--engines", nargs="+", choices=engines, default=engines, help="whose files to keep (all)")
    add("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    add(
        "--calibration-photos",
        type=Path,
        metavar="DIR",
        help="a folder a class with photos, on which temperature and thresholds are fitted "
        "(images held out of training)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    import_keras()
    from training.checkpoint import RunError
    from training.cifar10.data import DataError
    from training.cifar10.export import export_run
    from training.photos.inspect import PhotosError

    try:
        export_run(**vars(args))
        bundle = load_bundle(args.destination)
    except (RunError, DataError, PhotosError, BundleError, ExportError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(bundle.manifest, indent=2))
    print(f"Serve it: python rest_api/app.py --model {shlex.quote(str(bundle.path))}")


if __name__ == "__main__":
    import training.export  # not this __main__, whose ExportError would be another class

    training.export.main()

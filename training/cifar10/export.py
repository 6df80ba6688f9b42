"""Turn a finished run into a model bundle; the command is training/export.py.

Temperature and thresholds are fitted on photos, or else on images that were held out of training:
the run's own. A run of --final has none, unless it was told to hold some out, so the validation run
stands in for it: the run of the same recipe and seed that kept 5,000 images back.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
from PIL import Image

from rest_api.bundle import FILENAMES, Engine, View
from training.cam import activation_maps, shares_of_maximum
from training.checkpoint import RunError
from training.cifar10 import recipes
from training.cifar10.data import HELD_OUT, LABELS, SIDE, Split, load_cifar10, split_validation
from training.cifar10.networks import BatchNorm
from training.cifar10.train import RESULT, difference, load_network, predict, read_result
from training.evaluate import labelled_views, views_of
from training.export import COVERAGE, calibrate, export, refuse_other_folder
from training.ood import log_odds

# Of the photos that thresholds are fitted on, what is answered. With 95 %, of the photos of other
# things 30 % were answered, in place of 22 % (an earlier `street`, 2026-11-25).
PHOTO_COVERAGE = 0.93


def deployable(network: keras.Model, temperature: float) -> keras.Model:
    """The network as it is served: float32, plain Keras layers, probabilities of the ten classes.

    Where the network has outputs beyond the ten, their log odds, the OOD score, follow; where it
    ends in global pooling, the class activation maps and the features.
    """

    def plain(layer: keras.Layer | keras.Operation) -> keras.Layer | keras.Operation:
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # the others, bare operations, have no dtype
            config["dtype"] = "float32"
        cls = keras.layers.BatchNormalization if isinstance(layer, BatchNorm) else type(layer)
        return cls.from_config(config)

    uncompiled = keras.Model(network.input, network.output, name=network.name)
    copy = keras.models.clone_model(uncompiled, clone_function=plain)
    copy.set_weights(network.get_weights())
    images = keras.Input(network.input_shape[1:], name="image")
    classes = len(LABELS)
    if embedding_size(network):
        pool, kernel = copy.get_layer("features"), copy.get_layer("head").kernel.numpy()
        inner = keras.Model(copy.input, [copy.output, shares_of_maximum(pool.input), pool.output])
        logits, shares, pooled = inner(images)
        maps = activation_maps(shares, pooled, kernel[:, :classes])
        more = [maps, pooled[:, None]]  # features have one rank more than probabilities
    else:
        logits, more = copy(images), []
    known = logits[:, :classes] if knows_others(network) else logits
    scaled = keras.layers.Rescaling(1 / temperature, name="temperature")(known)
    probabilities = keras.layers.Softmax(name="probabilities")(scaled)
    scores = [log_odds(logits, classes)] if knows_others(network) else []
    return keras.Model(images, [probabilities, *scores, *more])


def knows_others(network: keras.Model) -> bool:
    """Whether the network has outputs for images of none of the ten classes."""
    return bool(network.output_shape[-1] > len(LABELS))


def embedding_size(network: keras.Model) -> int:
    """The length of what global pooling leaves for a linear head, of which class activation maps
    can be made; 0 where the network has no such layers."""
    sizes = [each.output.shape[-1] for each in network.layers if each.name == "features"]
    return sizes[0] if sizes else 0


def calibration_of(
    run: Path,
    network: keras.Model,
    result: Mapping[str, Any],
    data: Split,
    views: Sequence[View],
    photos: Path | None,
    early_exit: float,
) -> tuple[float, dict[str, Any]]:
    """The temperature, and what model.json says of it and of the thresholds.

    `result` is the run's, `data` are the training images, of which those held out and those of
    validation are parts. Raises RunError and PhotosError.
    """
    held_out = result.get("held_out", 0)
    if photos:
        shown, labels = labelled_views(photos, LABELS, SIDE, views)
        fitted_on = f"{len(labels):,} photos, which {run.name} was not trained on"
    elif held_out:
        _, (images, labels) = split_validation(*data, HELD_OUT)
        shown = views_of(map(Image.fromarray, images), SIDE, views)
        fitted_on = f"{held_out:,} training images, which {run.name} was not trained on"
    else:
        validation_run = run
        if result["measured_on"] != "validation":
            validation_run = run.with_name(run.name.removesuffix("-final"))
            if validation_run == run or not (validation_run / RESULT).exists():
                first = f", or without --final into {validation_run}" * (validation_run != run)
                raise RunError(
                    f"{run} was trained on all images, and left none to calibrate on. "
                    f"Train with --hold-out{first}, or give --calibration-photos."
                )
            check_validation_run(validation_run, result)
            network = load_network(validation_run)[0]
        _, (images, labels) = split_validation(*data)
        shown = views_of(map(Image.fromarray, images), SIDE, views)
        fitted_on = (
            f"{len(labels):,} validation images, which {validation_run.name} was not trained on"
        )
    logits = [predict(network, view) for view in shown]
    known = np.stack([each[:, : len(LABELS)] for each in logits], 1)
    if not knows_others(network):
        return calibrate(known, labels, fitted_on, early_exit=early_exit)
    scores = np.stack([np.asarray(log_odds(each, len(LABELS))) for each in logits], 1)
    coverage = PHOTO_COVERAGE if photos else COVERAGE
    name = "log odds against other things"
    return calibrate(known, labels, fitted_on, scores, name, coverage, early_exit)


def check_validation_run(run: Path, final: Mapping[str, Any]) -> None:
    """Raise RunError where a run is not the validation run of the --final run of that result."""
    wanted = {key: final.get(key) for key in ("recipe", "seed", "epochs")}
    wanted["measured_on"] = "validation"
    result = read_result(run)
    held = {key: result.get(key) for key in wanted}
    if held != wanted:
        raise RunError(
            f"{run} has {difference(held, wanted)}: it is not the validation run of this --final "
            f"run. Remove it and train {wanted['recipe']} with --seed {wanted['seed']} "
            f"--epochs {wanted['epochs']} --output {run}, or give --calibration-photos."
        )


def export_run(
    run: Path,
    destination: Path,
    *,
    name: str | None = None,
    views: Sequence[View] | None = None,
    engines: Sequence[Engine] = tuple(FILENAMES),
    data: str | Path | None = None,
    calibration_photos: Path | None = None,
) -> None:
    """Fit temperature and thresholds of a run, export it, check it on the test images.

    Raises RunError, DataError, PhotosError and ExportError; then nothing is written.
    """
    run, destination = run.absolute(), destination.absolute()  # "." has no name
    refuse_other_folder(destination)
    network, result = load_network(run)
    training, (images, labels) = load_cifar10(data)
    recipe = recipes.load(result["recipe"])
    early_exit = 1.0 if views else recipe.early_exit  # which was chosen for the recipe's views
    views = views or recipe.views
    temperature, fitted = calibration_of(
        run, network, result, training, views, calibration_photos, early_exit
    )
    description = {
        "name": name or destination.name,
        "version": f"{datetime.date.today().isoformat()}-{run.name}",
        "labels": list(LABELS),
        "input_size": SIDE,
        "views": msgspec.to_builtins(views),
        "early_exit": early_exit,
        "accuracy": {"measured_on": "the CIFAR-10 test set"},
        **fitted,
        "explains": bool(embedding_size(network)),
        "embedding_size": embedding_size(network),
        "training": {key: value for key, value in result.items() if key != "versions"},
        "versions": result["versions"],
    }
    served = deployable(network, temperature)
    shown = views_of(map(Image.fromarray, images), SIDE, views)
    export(served, destination, description, shown, labels, engines=engines)

"""Turn a finished run into a model bundle; the command is training/export.py.

A run of --final was trained on all 50,000 training images, so its temperature is fitted on the
validation run's outputs: the run of the same recipe and seed that kept 5,000 images back.
"""

from collections.abc import Sequence
from pathlib import Path

import keras

from rest_api.bundle import FILENAMES, Engine, Resize
from training.cifar10.data import LABELS, load_cifar10, split_validation
from training.cifar10.networks import BatchNorm
from training.cifar10.train import load_network, predict
from training.export import calibrate, export, refuse_other_folder


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
    validation_run = run.with_name(run.name.removesuffix("-final"))
    unseen = network if validation_run == run else load_network(validation_run)[0]
    training, test = load_cifar10(data)
    _, (images, labels) = split_validation(*training)
    fitted_on = f"5,000 validation images, which {validation_run.name} was not trained on"
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

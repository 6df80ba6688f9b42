import keras
import numpy as np
import pytest

from training.checkpoint import RunError, TrainState, restore_checkpoint, save_checkpoint

STATE = TrainState({"seed": 1}, epoch=2, step=7, seconds=0.5, history=[{"loss": 1.0}])


def small_network(seed: int = 0, width: int = 3) -> keras.Model:
    """Trained by a step, so that the optimizer's variables are not all zero."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(width)(inputs))
    outputs = keras.layers.Dense(2, name="logits")(keras.layers.Dropout(0.5)(hidden))
    network = keras.Model(inputs, outputs)
    network.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    network.train_on_batch(np.ones((2, 4), np.float32), np.ones((2, 2), np.float32))
    return network


def values_of(network: keras.Model) -> list[np.ndarray]:
    return [v.numpy() for v in [*network.variables, *network.optimizer.variables]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.npz"


def test_arrays_stand_under_the_names_of_their_variables(path):
    network = small_network()
    save_checkpoint(path, network, STATE, {"best": network.get_weights()})
    with np.load(path) as stored:
        assert {
            "state",
            "weights/dense/kernel",
            "weights/batch_normalization/moving_mean",
            "weights/logits/bias",
            "optimizer/adam/iteration",
            "optimizer/adam/logits_kernel_momentum",
            "best/dense/kernel",
        } <= set(stored.files)
        assert not any(name.startswith("lookahead/") for name in stored.files)
        np.testing.assert_array_equal(
            stored["weights/logits/kernel"], network.get_layer("logits").kernel.numpy()
        )


def test_everything_comes_back_however_many_networks_keras_has_counted(path):
    saved, other = small_network(0), small_network(1)
    best = [weight + 1 for weight in saved.get_weights()]
    save_checkpoint(path, saved, STATE, {"best": best})
    state, groups = restore_checkpoint(path, other, {"seed": 1}, ["best"])
    assert state == STATE
    for expected, found in zip(values_of(saved), values_of(other), strict=True):
        np.testing.assert_array_equal(expected, found)
    for expected, found in zip(best, groups["best"], strict=True):
        np.testing.assert_array_equal(expected, found)


def test_layers_that_keras_names_alike_are_kept_apart(path):
    network = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2) for _ in range(3))])
    network.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    network.optimizer.build(network.trainable_variables)
    expected = network.get_weights()
    save_checkpoint(path, network, STATE)
    network.set_weights([np.zeros_like(weight) for weight in expected])
    restore_checkpoint(path, network)
    for before, after in zip(expected, network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def not_a_checkpoint(path, kind):
    network = small_network(width=4 if kind == "another network" else 3)
    save_checkpoint(path, network, STATE)
    with np.load(path) as stored:
        arrays = dict(stored)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "half a file":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "other arrays":
        np.savez(path, a=np.zeros(3))
    elif kind == "other state":
        np.savez(path, **arrays | {"state": "[1, 2]"})
    elif kind == "NaN weights":
        np.savez(path, **arrays | {"weights/logits/bias": np.array([0, np.nan], np.float32)})


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "half a file",
        "one array",
        "other arrays",
        "other state",
        "another network",
        "NaN weights",
    ],
)
def test_file_that_is_no_checkpoint_of_the_network_is_refused_and_changes_nothing(path, kind):
    not_a_checkpoint(path, kind)
    network = small_network(1)
    before = values_of(network)
    with pytest.raises(RunError, match=r"checkpoint\.npz is not a checkpoint of this network: ."):
        restore_checkpoint(path, network)
    for expected, found in zip(before, values_of(network), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_missing_group_is_named(path):
    network = small_network()
    save_checkpoint(path, network, STATE)
    with pytest.raises(RunError, match="lookahead/dense/kernel"):
        restore_checkpoint(path, network, groups=["lookahead"])


def test_other_settings_are_refused(path):
    save_checkpoint(path, small_network(), STATE)
    with pytest.raises(RunError, match=r"'seed': 1.*not.*'seed': 2"):
        restore_checkpoint(path, small_network(), {"seed": 2})


def test_training_that_diverged_leaves_the_last_good_checkpoint(path):
    network = small_network()
    save_checkpoint(path, network, STATE)
    before = path.read_bytes()
    network.get_layer("logits").bias.assign([np.inf, 0])
    with pytest.raises(RunError, match="Training diverged: weights/logits/bias"):
        save_checkpoint(path, network, STATE)
    assert path.read_bytes() == before

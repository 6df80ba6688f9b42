"""Training on 200 random images: what holds whatever the data."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras.layers import BatchNormalization

from tests.support import ROOT, until
from training import metrics
from training import train as cli
from training.augment import Augmentation
from training.checkpoint import TrainState, restore_checkpoint, save_checkpoint
from training.cifar10 import averages, recipes, train
from training.cifar10.networks import residual_vgg, vgg


def command(recipe: str, data: Path, run: Path, *options: str) -> list[str]:
    paths = ["--data", str(data), "--outliers", str(data), "--output", str(run)]
    arguments = [recipe, *paths, "--epochs", "3", *options]
    return [sys.executable, "-m", "training.train", *arguments]


def read_history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if not key.startswith("seconds")} for row in rows]


def kill_after_an_epoch(arguments: list[str], run: Path) -> None:
    """Start training and SIGKILL it once the first epoch stands in history.csv."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not (run / "history.csv").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "no epoch finished in five minutes"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes.names())
def test_run_killed_by_sigkill_ends_at_the_figures_of_an_uninterrupted_one(
    recipe, small_cifar, small_cifar100, tmp_path
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # The type is given: a recipe takes what is fastest when the run begins.
    commands = {
        run: command(recipe, small_cifar, run, "--dtype", "float32") for run in (killed, whole)
    }
    kill_after_an_epoch(commands[killed], killed)
    assert not (killed / "result.json").exists()
    for arguments in commands.values():
        subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    assert read_history(killed) == read_history(whole)
    assert len(read_history(whole)) == 3
    results = [json.loads((run / "result.json").read_text()) for run in (killed, whole)]
    for key in ("accuracy", "accuracy_tta"):
        assert results[0][key] == results[1][key]
    with np.load(killed / "checkpoint.npz") as a, np.load(whole / "checkpoint.npz") as b:
        for name in set(a.files) - {"state"}:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_finished_run_is_not_trained_again(small_cifar, tmp_path):
    arguments = command("classic", small_cifar, tmp_path / "run", "--epochs", "1", "--final")
    first = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    stamp = (tmp_path / "run" / "checkpoint.npz").stat().st_mtime_ns
    second = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    assert (tmp_path / "run" / "checkpoint.npz").stat().st_mtime_ns == stamp
    assert "is finished" in second.stdout
    result, repeated = (json.loads(run.stdout[run.stdout.index("{") :]) for run in (first, second))
    assert result == repeated
    assert result["images"] == 200  # --final trains on all of them
    assert result["measured_on"] == "test"
    assert (tmp_path / "run" / "curves.png").exists()
    other = subprocess.run(
        [*arguments, "--epochs", "2"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert other.returncode == 1
    assert "finished run with epochs 1.0, not epochs 2.0" in other.stderr
    for noise in ("absl", "oneDNN", "cuda", "CUDA", "0000"):
        assert noise not in first.stderr


@pytest.mark.slow
def test_ctrl_c_ends_cleanly(small_cifar, tmp_path):
    arguments = command("classic", small_cifar, tmp_path / "run", "--epochs", "500")
    # In the background of a script, which passes "ignore SIGINT" on, the test works too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    try:
        until((tmp_path / "run" / "history.csv").exists, "the first epoch", 300)
        errors = interrupt(process)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "The same command continues" in errors
    assert errors.count("Traceback") == errors.count("Exception ignored in")


def interrupt(process: subprocess.Popen) -> str:
    """Press Ctrl+C; what the process wrote to standard error.

    Twice where it does not end: Python ignores an exception while it collects garbage.
    """
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=60)[1]
    raise AssertionError("it does not end")


@pytest.mark.slow
def test_missing_data_ends_with_one_clear_line(tmp_path):
    arguments = command("classic", tmp_path / "nowhere", tmp_path / "run")
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in process.stderr


@pytest.fixture
def quick():
    """The classic recipe without what makes it slow."""
    recipe = recipes.load("classic")
    return recipes.Recipe(
        network=recipe.network,
        optimizer=recipe.optimizer,
        epochs=1,
        batch_size=32,
        augmentation=Augmentation(flip="random"),
    )


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8), np.arange(64) % 10


def test_history_that_lacks_the_last_epoch_of_the_checkpoint_is_completed(quick, data, tmp_path):
    recipe = replace(quick, network=partial(vgg, 1))
    train.train(recipe, data, None, tmp_path, epochs=2)
    whole = (tmp_path / "history.csv").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "history.csv").write_text("".join(lines[:2]))  # killed between the two files
    train.train(recipe, data, None, tmp_path, epochs=2)
    assert (tmp_path / "history.csv").read_text() == whole


def test_progress_bar_of_a_training_is_for_terminals_alone(quick, data, tmp_path, capfd):
    train.train(quick, data, None, tmp_path, epochs=1)
    said = capfd.readouterr()
    assert said.out.startswith("epoch 1  ")
    assert "img" not in said.err


def test_other_settings_do_not_continue_a_run(quick, data, tmp_path):
    train.train(quick, data, None, tmp_path, seed=0)
    with pytest.raises(train.RunError, match="Continue with the same settings"):
        train.train(quick, data, None, tmp_path, seed=1)


@pytest.mark.parametrize("epochs", [0, -1, 0.03, float("nan"), float("inf")])
def test_epochs_without_a_whole_step_are_refused_with_the_least_that_works(
    quick, data, tmp_path, epochs
):
    with pytest.raises(train.RunError, match=r"an epoch has 2 steps, .* at least 0\.5\.$"):
        train.train(quick, data, None, tmp_path, epochs=epochs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epochs", ["0", "-1", "nan", "inf"])
def test_epochs_that_are_no_number_above_0_are_refused_before_data_are_loaded(
    monkeypatch, capsys, epochs
):
    monkeypatch.setattr("sys.argv", ["train", "classic", "--epochs", epochs])
    with pytest.raises(SystemExit, match="2"):
        cli.parse_arguments()
    assert f"argument --epochs: {epochs} is not a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["", "run"])
def test_output_that_cannot_be_written_is_refused_before_data_are_loaded(quick, tmp_path, inside):
    (tmp_path / "file").touch()
    run = tmp_path / "file" / inside
    with pytest.raises(train.RunError) as refused:
        train.run_recipe("classic", quick, data=tmp_path / "nowhere", run=run)
    reason = "Not a directory. Give another --output."
    assert str(refused.value) == f"{run} cannot be written: {reason}"


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7, 22, 351])
def test_least_epochs_that_the_refusal_names_are_a_step(quick, steps_per_epoch):
    with pytest.raises(train.RunError) as refusal:
        train.steps_of_epochs(quick, 0, steps_per_epoch)
    least = float(str(refusal.value).split()[-1].removesuffix("."))
    (steps,) = train.steps_of_epochs(quick, least, steps_per_epoch)
    assert 1 <= steps <= 2


def test_last_epoch_may_be_a_part_of_one(quick):
    assert train.steps_of_epochs(quick, 2.5, 22) == [22, 22, 11]
    assert train.steps_of_epochs(replace(quick, hardest={0: 1, 1: 0.6}), 2.5, 20) == [20, 12, 6]
    assert train.steps_of_epochs(quick, 1.1, 50) == [50, 5]  # 50 * (1.1 - 1) is more than 5


def test_one_step_of_fast94_has_a_finite_loss_and_leaves_no_dtype_policy_behind(data, tmp_path):
    _, state = train.train(recipes.load("fast94"), data, None, tmp_path, epochs=1)
    assert state.step == 1
    assert np.isfinite(state.history[0]["loss"])
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("content", ['{"recipe": "classic", "epo', "5", "{}"])
def test_damaged_result_is_named(quick, tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    for read in (train.load_network, lambda run: train.run_recipe("classic", quick, run=run)):
        with pytest.raises(train.RunError, match=r"result\.json is damaged: ."):
            read(tmp_path)


def test_run_of_an_unknown_recipe_is_named(tmp_path):
    result = {
        "recipe": "blocks-1",
        "epochs": 1,
        "date": "2026-01-01",
        "measured_on": "test",
        "versions": {},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(train.RunError, match="no recipe 'blocks-1'"):
        train.load_network(tmp_path)


@pytest.mark.slow
def test_training_learns_a_separable_task(quick, tmp_path):
    """Brightness tells the class."""
    labels = np.arange(256) % 2
    noise = np.random.default_rng(0).integers(0, 100, (256, 32, 32, 3), dtype=np.uint8)
    images = noise + (labels * 120).astype(np.uint8)[:, None, None, None]
    _, state = train.train(quick, (images, labels), None, tmp_path, epochs=6)
    assert state.history[0]["accuracy"] < state.history[-1]["accuracy"]
    assert state.history[-1]["accuracy"] > 0.95


def test_run_goes_on_in_the_type_that_it_began_with(quick, data, tmp_path, monkeypatch):
    open_recipe = replace(quick, network=partial(vgg, 1), dtype="auto")
    monkeypatch.setattr(train, "fastest_dtype", lambda network: "mixed_bfloat16")
    network, state = train.train(open_recipe, data, None, tmp_path)
    monkeypatch.setattr(train, "fastest_dtype", lambda network: "float32")
    again, continued = train.train(open_recipe, data, None, tmp_path)
    for each in (network, again):
        assert each.layers[-1].dtype_policy.name == "float32"  # the logits
        assert each.layers[-2].dtype_policy.name == "mixed_bfloat16"
    assert state.settings["dtype"] == continued.settings["dtype"] == "mixed_bfloat16"
    with pytest.raises(train.RunError, match=r"'dtype': 'mixed_bfloat16'.*'dtype': 'float32'"):
        train.train(replace(open_recipe, dtype="float32"), data, None, tmp_path)


def test_float16_is_trained_with_a_scaled_loss_and_read_without(quick, data, tmp_path):
    recipe = replace(quick, network=partial(vgg, 1), dtype="mixed_float16")
    network, state = train.train(recipe, data, None, tmp_path, epochs=2)
    assert isinstance(network.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(state.history[-1]["loss"])
    assert train.train(recipe, data, None, tmp_path, epochs=2)[1] == state
    plain = train.build(replace(recipe, dtype="float32"), data[0], 0, 2, 1)
    restore_checkpoint(tmp_path / "checkpoint.npz", plain)
    for expected, found in zip(network.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.slow
def test_groups_of_steps_in_one_graph_end_where_single_steps_do(quick, data, tmp_path, monkeypatch):
    """What an accelerator gets, forced upon the CPU: XLA, and groups of up to three steps."""
    small_steps = lambda *_: keras.optimizers.SGD(1e-4)  # noqa: E731
    recipe = replace(quick, network=partial(vgg, 1), batch_size=8, optimizer=small_steps)
    network, state = train.train(recipe, data, None, tmp_path / "single", epochs=1.5)
    monkeypatch.setattr(train, "on_accelerator", lambda: True)
    monkeypatch.setattr(train, "STEPS_IN_A_GRAPH", 3)
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda self: True)
    grouped, grouped_state = train.train(recipe, data, None, tmp_path / "grouped", epochs=1.5)
    assert grouped.steps_per_execution == 3
    assert grouped.jit_compile
    assert (grouped_state.epoch, grouped_state.step) == (state.epoch, state.step) == (2, 12)
    for one, other in zip(state.history, grouped_state.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    for expected, found in zip(network.get_weights(), grouped.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_steps_after_which_weights_are_averaged_are_not_grouped(quick, data, monkeypatch):
    monkeypatch.setattr(train, "on_accelerator", lambda: True)
    recipe = replace(quick, network=partial(vgg, 1))
    assert train.build(recipe, data[0], 0, 8, 1).steps_per_execution == train.STEPS_IN_A_GRAPH
    for averaging in ({"averaged": 0.5}, {"lookahead": 5}):
        assert train.build(replace(recipe, **averaging), data[0], 0, 8, 1).steps_per_execution == 1


@pytest.mark.slow
def test_layer_that_the_optimizer_leaves_alone_needs_no_gradient(data, tmp_path):
    """The whitening bias of fast94_2025 is trained for three epochs, here of one step."""
    recipe = replace(recipes.load("fast94_2025"), dtype="float32", resolution={0: 16})
    whole, _ = train.train(recipe, data, None, tmp_path / "whole", epochs=4)
    frozen = replace(recipe, frozen={"whiten": 3})
    network, _ = train.train(frozen, data, None, tmp_path / "frozen", epochs=4)
    assert network.get_layer("whiten").trainable_variables == []
    assert len(whole.get_layer("whiten").trainable_variables) == 1
    for expected, found in zip(whole.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_layers_up_to_a_frozen_one_are_not_trained():
    network = residual_vgg((4, 4))
    train.freeze(network, "norm1c")
    after = {f"{kind}2{part}" for kind in ("conv", "norm") for part in "abc"}
    assert {v.path.split("/")[0] for v in network.trainable_variables} == after | {"head"}


def test_hardest_images_are_those_of_the_largest_losses():
    losses = np.array([0.1, np.inf, 0.3, 0.2], np.float32)
    assert train.hardest(losses, 2).tolist() == [False, True, True, False]


def test_epochs_that_show_a_share_show_the_images_of_the_largest_losses(
    quick, data, tmp_path, monkeypatch
):
    # Steps of 16 of 64 images: four in the first epoch, then two.
    recipe = replace(quick, network=partial(vgg, 1), batch_size=16, hardest={0: 1, 1: 0.5})
    shown, batches_of_epoch = [], train.batches_of_epoch

    def recorded(*arguments: object, **options: object) -> Iterator[train.Batch]:
        for batch in batches_of_epoch(*arguments, **options):
            shown.append(batch[2])
            yield batch

    monkeypatch.setattr(train, "batches_of_epoch", recorded)
    network, state = train.train(recipe, data, None, tmp_path / "whole", epochs=3)
    assert state.step == len(shown) == 4 + 2 + 2
    assert sorted(np.concatenate(shown[:4])) == list(range(64))
    second = {*np.concatenate(shown[4:6])}
    assert len(second) == 32
    assert float(network.optimizer.learning_rate) == pytest.approx(8e-5)  # of the last steps

    def stopped(path: Path, network: keras.Model, state: TrainState, averages: dict) -> None:
        save_checkpoint(path, network, state, averages)
        if state.epoch == 1:
            left_out = {*range(64)} - second
            least = min(state.losses[image] for image in second)
            assert max(state.losses[image] for image in left_out) <= least
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, data, None, tmp_path / "stopped", epochs=3)
    continued, again = train.train(recipe, data, None, tmp_path / "stopped", epochs=3)
    assert again.losses == state.losses
    for expected, found in zip(network.get_weights(), continued.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_averaged_network_has_the_mean_weights_of_the_last_steps(
    quick, data, tmp_path, monkeypatch
):
    recipe = replace(quick, network=partial(vgg, 1), batch_size=16, averaged=0.5)  # of 12 steps
    monkeypatch.setattr(averages, "EVERY", 2)
    taken, update_average = [], averages.update_average

    def recorded(average: list[np.ndarray], network: keras.Model, share: float) -> None:
        taken.append((int(network.optimizer.iterations), network.get_weights()))
        update_average(average, network, share)

    monkeypatch.setattr(averages, "update_average", recorded)
    network, _ = train.train(recipe, data, None, tmp_path, epochs=3)
    assert [step for step, _ in taken] == [8, 10, 12]
    means = [np.mean(each, 0) for each in zip(*(weights for _, weights in taken), strict=True)]
    for expected, found in zip(means, network.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_statistics_of_batch_norm_are_those_of_the_batches(data):
    network = vgg(1, batch_norm=True)
    first = next(each for each in network.layers if isinstance(each, BatchNormalization))
    batches = [(data[0][start : start + 16], data[1]) for start in (0, 16, 32)]
    averages.set_statistics(network, iter(batches))
    before = keras.Model(network.inputs, first.input)  # (48, 32, 32, 32)
    activations = before(np.concatenate([images for images, _ in batches])).numpy()
    np.testing.assert_allclose(first.moving_mean, activations.mean((0, 1, 2)), rtol=1e-4)
    assert first.momentum == 0.99


@pytest.mark.parametrize("share", [0.25, 1])
def test_only_the_least_sure_images_are_shown_in_all_views(share):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    kernel = rng.normal(0, 0.01, (3 * 32 * 32, 10))
    shown = []

    def logits(batch: np.ndarray) -> np.ndarray:
        shown.append(len(batch))
        return batch.reshape(len(batch), -1) @ kernel

    network = SimpleNamespace(predict_on_batch=logits)
    one_view, augmented = train.predict_views(network, images, share)
    np.testing.assert_allclose(one_view, logits(images))
    full = sum(weight * logits(view) for weight, view in metrics.views(images))
    unsure = np.argsort(metrics.softmax(one_view).max(1))[: round(40 * share)]
    expected = one_view.copy()
    expected[unsure] = full[unsure]
    np.testing.assert_allclose(augmented, expected)
    assert sum(shown[: len(shown) - 7]) == 40 + 5 * len(unsure)


def test_final_run_holds_images_out_where_it_is_told_to(quick, small_cifar, tmp_path):
    recipe, run = replace(quick, network=partial(vgg, 1)), tmp_path / "run"
    run = partial(train.run_recipe, "one", recipe, final=True, data=small_cifar, run=run)
    result = run(hold_out=True)
    assert (result["images"], result["held_out"]) == (190, 10)
    assert run(hold_out=True) == result
    with pytest.raises(train.RunError, match="finished run with held_out True, not held_out False"):
        run(hold_out=False)
    with pytest.raises(train.RunError, match=r"seed 0, measured_on test.* not seed 1, measured_on"):
        train.run_recipe("one", recipe, seed=1, data=small_cifar, run=tmp_path / "run")
    with pytest.raises(train.RunError, match="dtype float32, not dtype mixed_bfloat16"):
        run(hold_out=True, dtype="mixed_bfloat16")


def test_steps_that_end_together_count_as_one_group():
    assert train.seconds_in_steps([10, 11, 12, 13], first=1) == 4
    assert train.seconds_in_steps([10, 10, 14, 14], first=2) == 8
    assert train.seconds_in_steps([10, 10], first=2) == 0


def test_images_are_held_out_of_final_runs_alone():
    command = [sys.executable, "-m", "training.train", "classic", "--hold-out"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--hold-out is for --final" in refused.stderr


@pytest.mark.parametrize("seeds", [["1"], ["3", "5"]])
def test_several_seeds_are_a_run_each(monkeypatch, capsys, seeds):
    monkeypatch.setattr(train, "run_recipe", lambda *_, seed, **__: {"seed": seed})
    monkeypatch.setattr("sys.argv", ["train", "classic", "--seed", *seeds])
    cli.main()
    assert capsys.readouterr().out == "".join(f'{{\n  "seed": {seed}\n}}\n' for seed in seeds)


def test_batches_of_an_epoch_depend_on_seed_and_epoch_alone(data):
    augmentation = recipes.load("fast94").augmentation

    def first_batch(epoch: int, seed: int) -> np.ndarray:
        return next(train.batches_of_epoch(*data, augmentation, 32, epoch, seed))[0]

    np.testing.assert_array_equal(first_batch(1, 1), first_batch(1, 1))
    assert not np.array_equal(first_batch(1, 1), first_batch(1, 2))
    assert not np.array_equal(first_batch(1, 1), first_batch(2, 1))


def test_last_epochs_see_sharp_images_where_the_recipe_says_so():
    augmentation = Augmentation(flip="random", rotation=10, shift=0.1)
    recipe = replace(recipes.load("classic"), augmentation=augmentation, sharp_epochs=3)
    assert train.augmentation_of_epoch(recipe, 56, 60) == augmentation
    for epoch in (57, 59):
        assert train.augmentation_of_epoch(recipe, epoch, 60) == Augmentation(flip="random")
    assert train.augmentation_of_epoch(replace(recipe, sharp_epochs=0), 59, 60) == augmentation


def test_fractional_epochs_end_within_an_epoch(quick, data, tmp_path):
    _, state = train.train(quick, data, None, tmp_path, epochs=1.5)
    assert (state.epoch, state.step) == (2, 3)


def test_final_weights_of_lookahead_are_the_averaged_ones(data, tmp_path):
    recipe = replace(recipes.load("airbench94"), dtype="float32")
    network, _ = train.train(recipe, data, None, tmp_path, epochs=2)
    with np.load(tmp_path / "checkpoint.npz") as stored:
        averages = [name for name in stored.files if name.startswith("lookahead/")]
        assert len(averages) == len(network.weights)
        for name in averages:
            weight = stored[name.replace("lookahead/", "weights/")]
            np.testing.assert_array_equal(weight, stored[name])


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_opens_with_its_evidence(name):
    recipes.load(name)
    evidence = sys.modules[f"training.cifar10.recipes.{name}"].__doc__
    for what in ("Evidence:", "%", "minutes", "n=", "python -m training.train"):
        assert what in evidence, f"{name} does not state {what!r}"


def test_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="airbench94, classic, fast94"):
        recipes.load("slow12")


def test_training_step_runs_on_the_jax_backend(tmp_path):
    pytest.importorskip("jax", reason="needs JAX: pip install jax")
    script = (
        "import numpy as np; from pathlib import Path; from training.cifar10 import recipes, train;"
        "data = (np.zeros((32, 32, 32, 3), np.uint8), np.arange(32) % 10);"
        f"train.train(recipes.load('fast94'), data, data, Path({str(tmp_path)!r}), epochs=2)"
    )
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True)
    assert len(read_history(tmp_path)) == 2

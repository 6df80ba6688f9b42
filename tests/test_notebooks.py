"""The notebooks run from nothing, and say what the records say."""

import base64
import hashlib
import inspect
import json
import re

import jupytext
import keras
import nbformat
import numpy as np
import papermill
import pytest

from tests.support import ROOT, picture
from training import optimizers
from training.cifar10 import networks, study
from training.cifar10.recipes import fast94
from training.notebooks.build import FOLDERS
from training.photos.inspect import MIN_PHOTOS

RECORDS = ROOT / "benchmarks" / "training" / "records"


@pytest.fixture(params=FOLDERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def notebook(name) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / FOLDERS[name] / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Everything printed, and the plain text of every table."""
    texts = [out.get("text") or out.get("data", {}).get("text/plain") for out in outputs(notebook)]
    return "\n".join(text for text in texts if text)


def record(run: str) -> dict:
    return json.loads((RECORDS / f"{run}.json").read_text())


@pytest.mark.slow
def test_notebook_runs_from_nothing_on_a_few_images(
    name, small_cifar, small_cifar100, tmp_path, monkeypatch
):
    (tmp_path / "images").mkdir()
    for folder in ("rest_api", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for number, label in enumerate(("first", "second", "third")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(MIN_PHOTOS):
            picture(100 * number + i).save(tmp_path / "photos" / label / f"{i}.png")
    for variable, value in {
        "CIFAR10_DIR": str(small_cifar),
        "CIFAR100_DIR": str(small_cifar100),
        "PYTHONPATH": str(ROOT),
        "RERUN": "1",
        "EPOCHS": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    executed = papermill.execute_notebook(
        ROOT / FOLDERS[name] / f"{name}.ipynb",
        tmp_path / "executed.ipynb",
        cwd=tmp_path,
        kernel_name="python3",
        progress_bar=False,
    )
    drawn = list((tmp_path / "images").iterdir())
    shown = [out for out in outputs(executed) if "image/png" in out.get("data", {})]
    assert len(drawn) == len(shown) > 0


def test_notebook_equals_the_script_it_is_paired_with(name, notebook):
    script = jupytext.read(ROOT / "training" / "notebooks" / f"{name}.py")
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in script.cells]


def test_committed_outputs_are_whole_and_free_of_noise(name, notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run the notebook from top to bottom"
    assert not [out for out in outputs(notebook) if out.output_type == "error"]
    assert not [out for out in outputs(notebook) if out.get("name") == "stderr"]
    assert "widgets" not in notebook.metadata
    content = (ROOT / FOLDERS[name] / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(content) < 1_500_000
    assert not re.search(r"/home/|/Users/|/tmp/", text_of(notebook))
    assert str(ROOT) not in text_of(notebook)
    assert "NaN" not in text_of(notebook)


def test_every_plot_also_lies_in_images(notebook):
    plots = [
        out.data["image/png"] for out in outputs(notebook) if "image/png" in out.get("data", {})
    ]
    assert plots
    kept = {hashlib.sha256(p.read_bytes()).digest() for p in (ROOT / "images").glob("*.png")}
    for plot in plots:
        assert hashlib.sha256(base64.b64decode(plot)).digest() in kept


def row(text: str, name: str) -> list[float]:
    """The numbers of a table's row, by its name."""
    line = re.search(rf"^{re.escape(name)}  +([-\d. ]+)$", text, re.MULTILINE)
    assert line, f"no row {name!r}"
    return [float(value) for value in line.group(1).split()]


def test_study_shows_the_recorded_figures():
    text = text_of(nbformat.read(ROOT / "cifar10_CNN.ipynb", as_version=4))
    for title, variant in {
        "1 block": "blocks-1",
        "2 blocks": "blocks-2",
        "3 blocks": "blocks-3",
        "unregularised": "unregularised",
        "BatchNorm": "batch-norm",
        "L2": "l2",
        "dropout": "dropout",
        "augmentation": "augmentation",
        "all four": "all-cures",
    }.items():
        runs = [json.loads(path.read_text()) for path in RECORDS.glob(f"{variant}-seed?.json")]
        mean = np.mean([run["accuracy"] for run in runs])
        assert row(text, title)[1] == pytest.approx(100 * mean, abs=0.06)
    for title, run in {
        "all tricks": "fast-seed0",
        "without whitening": "fast-without-whitening-seed0",
        "without lookahead": "fast-without-lookahead-seed0",
    }.items():
        assert row(text, title)[0] == pytest.approx(100 * record(run)["accuracy_tta"], abs=0.06)


def test_vgg_block_that_the_study_shows_is_the_first_of_the_network():
    cells = jupytext.read(ROOT / "training" / "notebooks" / "cifar10_CNN.py").cells
    (cell,) = [cell for cell in cells if "vgg_block" in cell.source]
    shown = {"keras": keras}
    exec(cell.source, shown)  # noqa: S102
    block, network = keras.Model(shown["inputs"], shown["x"]), networks.vgg(1)
    assert [config(layer) for layer in block.layers[1:]] == [
        config(layer)
        for layer in network.layers[2:5]  # after the input and its normalisation
    ]


@pytest.mark.parametrize("name", ["cifar10_CNN", "cifar10_model_training"], indirect=True)
def test_code_that_a_notebook_shows_is_the_code_that_runs(notebook, capsys):
    names = {"inspect": inspect, "networks": networks, "optimizers": optimizers, "fast94": fast94}
    cells = [cell for cell in notebook.cells if "getsource" in cell.source]
    assert cells
    for cell in cells:
        exec(cell.source, names)  # noqa: S102
        assert capsys.readouterr().out == cell.outputs[0].text


def config(layer: keras.Layer) -> dict:
    """How a layer was made, without the name that Keras gave it."""
    return {k: v for k, v in layer.get_config().items() if k not in ("name", "dtype")}


def test_notebooks_show_every_variant_of_the_study():
    for name, variants in (
        ("cifar10_CNN", study.BASELINES | study.REGULARISATION | study.TRICKS),
        ("cifar10_model_training", study.PHOTOS),
    ):
        shown = text_of(nbformat.read(ROOT / f"{name}.ipynb", as_version=4))
        assert not [variant for variant in variants if f"{variant}-seed0: " not in shown]


def test_final_training_shows_the_recorded_figures():
    text = text_of(nbformat.read(ROOT / "cifar10_model_training.ipynb", as_version=4))
    for recipe in ("classic", "fast94_2025", "fast94"):
        runs = [json.loads(p.read_text()) for p in RECORDS.glob(f"{recipe}-seed*-final.json")]
        mean = 100 * sum(run["accuracy"] for run in runs) / len(runs)
        figures = row(text, recipe)
        assert figures[0] == len(runs)
        assert figures[2] == pytest.approx(mean, abs=0.006)

"""Execute the notebooks from their scripts: `python -m training.notebooks.build [NAME …]`.

Edit and review the scripts beside this file. Progress bars and log messages of libraries are left
out of the outputs.
"""

import argparse
import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from training.files import replacing

SCRIPTS = Path(__file__).parent
FOLDERS = {
    "cifar10_CNN": ".",
    "cifar10_model_training": ".",
    "transfer_learning": "docs",
    "prediction": "docs",
}
NOISE = ("INFO:tensorflow:", "WARNING:tensorflow:", "\n")


def build(name: str) -> None:
    """Execute a script and write NAME.ipynb into its folder. Raises CellExecutionError."""
    notebook = jupytext.read(SCRIPTS / f"{name}.py")
    os.environ |= {"TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # jupytext draws random ones
        cell.metadata.pop("execution", None)  # times, which differ with every run
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_noise(output)]
    with replacing(Path(FOLDERS[name], f"{name}.ipynb")) as part:
        nbformat.write(notebook, part)


def is_noise(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stderr" or output.get("text", "").startswith(NOISE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the notebooks.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", default=FOLDERS, help=", ".join(FOLDERS)
    )
    names = parser.parse_args().names
    if unknown := set(names) - set(FOLDERS):
        parser.error(f"no notebook is called {', '.join(sorted(unknown))}")
    for name in names:
        build(name)


if __name__ == "__main__":
    main()

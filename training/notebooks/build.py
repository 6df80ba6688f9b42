"""Execute the notebooks from their scripts: `python -m training.notebooks.build [NAME …]`.

The scripts beside this file are what is edited and reviewed. Progress bars and the libraries' own
messages are left out of the outputs.
"""

import argparse
import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from training.files import replacing

SCRIPTS = Path(__file__).parent
PLACES = {
    "cifar10_CNN": ".",
    "cifar10_model_training": ".",
    "transfer_learning": "docs",
    "prediction": "docs",
}
NOISE = ("INFO:tensorflow:", "WARNING:tensorflow:", "\n")


def build(name: str) -> None:
    """Execute a script, write NAME.ipynb to its place below here. Raises CellExecutionError."""
    notebook = jupytext.read(SCRIPTS / f"{name}.py")
    os.environ |= {"TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ with every run
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_noise(output)]
    with replacing(Path(PLACES[name], f"{name}.ipynb")) as part:
        nbformat.write(notebook, part)


def is_noise(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stderr" or output.get("text", "").startswith(NOISE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", default=PLACES, help=", ".join(PLACES))
    for name in parser.parse_args().names:
        build(name)


if __name__ == "__main__":
    main()

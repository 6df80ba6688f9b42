"""The model bundle: a folder with an exported network and a `model.json` that describes it.

It is the one contract between training and serving. `model.json`:

    schema       1
    name         what the API calls the model
    version      changes whenever the files do
    labels       class names, in the order of the network's outputs
    input_size   side in pixels of the square RGB image that the network takes, values 0..255
    resize       how a photo becomes that square: squash, crop or pad (see images.py)
    files        {engine: {"name", "bytes", "sha256"}} for litert, litert-float32 and keras
    uncertainty  optional: {"score", "threshold", …}: a prediction of a lower score is uncertain.
                 The score is "probability", the best class's, or the name of what the network
                 returns beside the probabilities: an out-of-distribution score
    accuracy, calibration, training, versions    what was measured, how, and with what
"""

import hashlib
import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

MANIFEST = "model.json"
SCHEMA = 1
PROBABILITY = "probability"  # the score of a network that returns no other

Engine = Literal["litert", "litert-float32", "keras"]
Resize = Literal["squash", "crop", "pad"]
FILENAMES: dict[Engine, str] = {
    "litert": "model.int8.tflite",
    "litert-float32": "model.tflite",
    "keras": "model.keras",
}


class BundleError(Exception):
    """The bundle cannot be served; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `path` is its folder, `manifest` all of its model.json."""

    path: Path
    name: str
    version: str
    labels: tuple[str, ...]
    input_size: int
    resize: Resize
    score: str  # what the threshold is for
    threshold: float  # score below which a prediction is uncertain; 0 where none was fitted
    manifest: dict[str, Any]

    def file(self, engine: Engine) -> bytes:
        """The bytes of the network for an engine, equal to those that were exported.

        Raises BundleError if the bundle has no such file or its SHA-256 differs.
        """
        entry = self.manifest["files"].get(engine)
        if entry is None:
            offered = ", ".join(self.manifest["files"])
            raise BundleError(
                f"{self.path} has no file for the engine {engine!r}; it has {offered}."
            )
        path: Path = self.path / entry["name"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). Export again.") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(
                f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}. Export again."
            )
        return content


def load_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle's model.json. Raises BundleError."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} is not a model bundle: it holds no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} is not readable JSON: {error}.") from error
    try:
        check_manifest(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: {describe(error)}.") from error
    return Bundle(
        path=path,
        name=manifest["name"],
        version=manifest["version"],
        labels=tuple(manifest["labels"]),
        input_size=manifest["input_size"],
        resize=manifest["resize"],
        score=manifest.get("uncertainty", {}).get("score", PROBABILITY),
        threshold=manifest.get("uncertainty", {}).get("threshold", 0.0),
        manifest=manifest,
    )


def check_manifest(manifest: Any) -> None:
    """Raise KeyError, TypeError or ValueError on the first thing that serving could not use."""
    if not isinstance(manifest, dict):
        raise TypeError("must be a JSON object")
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"'schema' is {manifest['schema']!r}, this program reads {SCHEMA}")
    for key in ("name", "version"):
        if not isinstance(manifest[key], str) or not manifest[key]:
            raise TypeError(f"{key!r} must be a non-empty string")
    labels = manifest["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("'labels' must be a list of strings")
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError("'labels' must be at least two different names")
    if type(manifest["input_size"]) is not int or manifest["input_size"] < 1:
        raise TypeError("'input_size' must be a positive whole number of pixels")
    if manifest["resize"] not in get_args(Resize):
        raise ValueError(f"'resize' is {manifest['resize']!r}, not one of {get_args(Resize)}")
    uncertainty = manifest.get("uncertainty", {"threshold": 0.0})
    threshold = uncertainty["threshold"]
    if not isinstance(threshold, int | float) or not isfinite(threshold):
        raise TypeError("the 'threshold' of 'uncertainty' must be a number")
    if uncertainty.get("score", PROBABILITY) == PROBABILITY and not 0 <= threshold <= 1:
        raise ValueError("the 'threshold' of a probability must be from 0 to 1")
    if not manifest["files"]:
        raise ValueError("'files' names none")
    for engine, entry in manifest["files"].items():
        if engine not in FILENAMES:
            raise ValueError(f"'files' names the unknown engine {engine!r}")
        if Path(entry["name"]).name != entry["name"]:
            raise ValueError(f"file {entry['name']!r} must lie in the bundle's own folder")
        if not isinstance(entry["sha256"], str):
            raise TypeError(f"the 'sha256' of {entry['name']!r} must be a string")


def describe(error: Exception) -> str:
    """What check_manifest found, as a phrase; a KeyError carries only the key."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)

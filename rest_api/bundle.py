"""The model bundle: a folder with an exported network and a `model.json` that describes it.

It is the one contract between training and serving. `model.json`:

    schema       2; 1 is still read (see upgrade)
    name         what the API calls the model
    version      changes whenever the files do
    labels       class names, in the order of the network's outputs
    input_size   side in pixels of the square RGB image that the network takes, values 0..255
    views        how a photo becomes such squares: a list of {"resize": "stretch", "center_crop" or
                 "letterbox", "mirror": true or false}. The network's outputs for them are averaged
    files        {engine: {"name", "bytes", "sha256"}} for litert, litert-float32 and keras
    uncertainty  optional: {"threshold", …}: where the best class's probability is below it, the
                 prediction is uncertain
    ood          optional: {"score", "threshold", …}: where the out-of-distribution (OOD) score,
                 which the network returns beside the probabilities, is below it, the image is of
                 none of the classes. "score" says how it is made
    accuracy, calibration, training, versions    what was measured, how, and with what
"""

import hashlib
import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

MANIFEST = "model.json"
SCHEMA = 2

Engine = Literal["litert", "litert-float32", "keras"]
Resize = Literal["stretch", "center_crop", "letterbox"]
SCHEMA_1: dict[str, Resize] = {"squash": "stretch", "crop": "center_crop", "pad": "letterbox"}
FILENAMES: dict[Engine, str] = {
    "litert": "model.int8.tflite",
    "litert-float32": "model.tflite",
    "keras": "model.keras",
}


class BundleError(Exception):
    """The bundle cannot be served; the message names the file and what is wrong with it."""


class View(NamedTuple):
    """One way in which the network is shown a photo."""

    resize: Resize
    mirror: bool = False


class OodScore(NamedTuple):
    """The out-of-distribution score of a network: the larger, the more like its classes."""

    name: str
    threshold: float  # below it, an image is of none of the classes


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `path` is its folder, `manifest` its model.json in schema 2."""

    path: Path
    name: str
    version: str
    labels: tuple[str, ...]
    input_size: int
    views: tuple[View, ...]
    threshold: float  # probability below which a prediction is uncertain; 0 where none was fitted
    ood: OodScore | None  # where the network returns one
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
        manifest = upgrade(manifest)
        check_manifest(manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: {describe(error)}.") from error
    ood = manifest.get("ood")
    return Bundle(
        path=path,
        name=manifest["name"],
        version=manifest["version"],
        labels=tuple(manifest["labels"]),
        input_size=manifest["input_size"],
        views=tuple(View(each["resize"], each.get("mirror", False)) for each in manifest["views"]),
        threshold=manifest.get("uncertainty", {}).get("threshold", 0.0),
        ood=OodScore(ood["score"], ood["threshold"]) if ood else None,
        manifest=manifest,
    )


def upgrade(manifest: Any) -> Any:
    """A manifest of schema 1 in the form of schema 2; any other as it is.

    Schema 1 had one view, `resize`, and one threshold, of whichever score the network returned.
    Raises KeyError or ValueError.
    """
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        return manifest
    upgraded = {**manifest, "schema": SCHEMA}
    resize = upgraded.pop("resize", None)
    if resize not in SCHEMA_1:
        raise ValueError(f"'resize' is {resize!r}, not one of {tuple(SCHEMA_1)}")
    upgraded["views"] = [View(SCHEMA_1[resize])._asdict()]
    if upgraded.get("uncertainty", {}).get("score", "probability") != "probability":
        upgraded["ood"] = upgraded.pop("uncertainty")
    return upgraded


def check_manifest(manifest: Any) -> None:
    """Raise KeyError, TypeError or ValueError on the first thing that serving could not use."""
    if not isinstance(manifest, dict):
        raise TypeError("must be a JSON object")
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"'schema' is {manifest['schema']!r}, this program reads 1 and {SCHEMA}")
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
    check_views(manifest["views"])
    for key in ("uncertainty", "ood"):
        threshold = manifest.get(key, {"threshold": 0.0})["threshold"]
        if not isinstance(threshold, int | float) or not isfinite(threshold):
            raise TypeError(f"the 'threshold' of {key!r} must be a number")
        if key == "uncertainty" and not 0 <= threshold <= 1:
            raise ValueError("the 'threshold' of 'uncertainty', a probability, must be from 0 to 1")
    if not isinstance(manifest.get("ood", {"score": ""})["score"], str):
        raise TypeError("the 'score' of 'ood' must be a string")
    if not manifest["files"]:
        raise ValueError("'files' names none")
    for engine, entry in manifest["files"].items():
        if engine not in FILENAMES:
            raise ValueError(f"'files' names the unknown engine {engine!r}")
        if Path(entry["name"]).name != entry["name"]:
            raise ValueError(f"file {entry['name']!r} must lie in the bundle's own folder")
        if not isinstance(entry["sha256"], str):
            raise TypeError(f"the 'sha256' of {entry['name']!r} must be a string")


def check_views(views: Any) -> None:
    """The same for the value of `views`."""
    if not isinstance(views, list) or not views:
        raise TypeError("'views' must be a list of one or more")
    for view in views:
        if view["resize"] not in get_args(Resize):
            raise ValueError(f"a 'resize' is {view['resize']!r}, not one of {get_args(Resize)}")
        if not isinstance(view.get("mirror", False), bool):
            raise TypeError("'mirror' must be true or false")


def describe(error: Exception) -> str:
    """What check_manifest found, as a phrase; a KeyError carries only the key."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)

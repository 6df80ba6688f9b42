"""The model bundle: a folder with an exported network and a `model.json` that describes it.

It is the one contract between training and serving. `model.json`:

    schema       2; 1 is still read (see upgrade)
    name         what the API calls the model
    version      changes whenever the files do
    labels       class names, in the order of the network's outputs
    input_size   side in pixels of the square RGB image that the network takes, values 0..255
    views        how a photo becomes such squares: a list of {"resize": "stretch", "center_crop" or
                 "letterbox", "mirror": true or false, "size": its side where that differs}. The
                 network's logits and scores for them are averaged
    early_exit   optional: where the best class's probability in the first view is above it, that
                 view decides alone; 1, the default, turns it off
    files        {engine: {"name", "bytes", "sha256"}} for litert, litert-float32 and keras; the
                 names are those of FILENAMES
    engine       optional: which of them serves where nobody asks for another, litert by default
    uncertainty  optional: {"threshold", …}: where the best class's probability is below it, the
                 prediction is uncertain
    ood          optional: {"score", "threshold", …}: where the out-of-distribution (OOD) score,
                 which the network returns beside the probabilities, is below it, the image is of
                 none of the classes. "score" says how it is made
    explains     optional: whether the network also returns class activation maps
    embedding_size  optional: the length of the features that the network also returns, of which
                 the classes are computed; 0 where it returns none
    accuracy, calibration, training, versions    what was measured, how, and with what

Beside it may lie CARD.md, the model card (Mitchell et al. 2019), which people read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MANIFEST = "model.json"
CARD = "CARD.md"
SCHEMA = 2

Engine = Literal["litert", "litert-float32", "keras"]
Resize = Literal["stretch", "center_crop", "letterbox"]
SCHEMA_1: dict[str, Resize] = {"squash": "stretch", "crop": "center_crop", "pad": "letterbox"}
FILENAMES: dict[Engine, str] = {
    "litert": "model.int8.tflite",
    "litert-float32": "model.tflite",
    "keras": "model.keras",
}


NonEmpty = Annotated[str, Meta(min_length=1)]
Size = Annotated[int, Meta(ge=8, le=1024)]


class BundleError(Exception):
    """The bundle cannot be served; the message names the file and what is wrong with it."""


class View(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way in which the network is shown a photo; an entry of `views`."""

    resize: Resize
    mirror: bool = False
    size: Size | None = None  # pixels each way, the bundle's input_size by default


def sizes_of(views: Sequence[View], image_size: int) -> list[int]:
    """The side in pixels of each view, `image_size` where it has none of its own."""
    return [view.size or image_size for view in views]


class NetworkFile(msgspec.Struct):
    """An entry of `files`."""

    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Uncertainty(msgspec.Struct):
    threshold: Annotated[float, Meta(ge=0, le=1)]


class OodScore(msgspec.Struct, frozen=True):
    """The out-of-distribution score of a network: the larger, the more like its classes."""

    score: str  # how it is made
    threshold: float  # below it, an image is of none of the classes


class Manifest(msgspec.Struct):
    """What serving reads of model.json."""

    schema: Literal[2]
    name: NonEmpty
    version: NonEmpty
    labels: Annotated[list[NonEmpty], Meta(min_length=2)]
    input_size: Size
    views: Annotated[list[View], Meta(min_length=1, max_length=16)]
    files: Annotated[dict[Engine, NetworkFile], Meta(min_length=1)]
    early_exit: Annotated[float, Meta(ge=0, le=1)] = 1.0
    engine: Engine = "litert"
    uncertainty: Uncertainty | None = None
    ood: OodScore | None = None
    explains: bool = False
    embedding_size: Annotated[int, Meta(ge=0)] = 0


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `path` is its folder, `manifest` its model.json in schema 2."""

    path: Path
    name: str
    version: str
    labels: tuple[str, ...]
    input_size: int
    views: tuple[View, ...]
    early_exit: float  # probability in the first view above which the others are left out
    threshold: float  # probability below which a prediction is uncertain; 0 where none was fitted
    ood: OodScore | None  # where the network returns one
    explains: bool  # whether it returns class activation maps
    embedding_size: int  # the length of the features that it returns, or 0
    files: dict[Engine, NetworkFile]
    engine: Engine  # that serves where nobody asks for another
    card: str  # its model card, in Markdown; empty where it has none
    manifest: dict[str, Any]

    def file(self, engine: Engine) -> bytes:
        """The bytes of the network for an engine, equal to those that were exported.

        Raises BundleError if the bundle has no such file or its SHA-256 differs.
        """
        entry = self.files.get(engine)
        if entry is None:
            offered = ", ".join(self.files)
            raise BundleError(
                f"{self.path} has no file for the engine {engine!r}; it has {offered}."
            )
        path = self.path / entry.name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise BundleError(
                f"{path} is missing. Export again; of the shipped models, an installed package "
                "has 8-bit networks alone (the engine litert): a clone has the others."
            ) from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). Export again.") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(
                f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}. Export again."
            )
        return content


def load_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle's model.json. Raises BundleError."""
    path = Path(path)
    try:
        manifest = upgrade(msgspec.json.decode((path / MANIFEST).read_bytes()))
        read = check_manifest(manifest)
        card = path / CARD
        text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    except FileNotFoundError:
        raise BundleError(f"{path} is not a model bundle: it holds no {MANIFEST}.") from None
    except (OSError, OverflowError, RecursionError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: {error}.") from error
    return Bundle(
        path=path,
        name=read.name,
        version=read.version,
        labels=tuple(read.labels),
        input_size=read.input_size,
        views=tuple(read.views),
        early_exit=read.early_exit,
        threshold=read.uncertainty.threshold if read.uncertainty else 0.0,
        ood=read.ood,
        explains=read.explains,
        embedding_size=read.embedding_size,
        files=read.files,
        engine=read.engine,
        card=text,
        manifest=manifest,
    )


def upgrade(manifest: Any) -> Any:
    """A manifest of schema 1 in the form of schema 2; any other as it is.

    Schema 1 had one view, `resize`, and one threshold, of whichever score the network returned.
    Raises ValueError.
    """
    if not isinstance(manifest, dict) or (schema := manifest.get("schema")) == SCHEMA:
        return manifest
    if schema != 1:
        raise ValueError(f"`schema` is {schema!r}, this program reads 1 and {SCHEMA}")
    upgraded = {**manifest, "schema": SCHEMA}
    resize = upgraded.pop("resize", None)
    if resize not in list(SCHEMA_1):
        raise ValueError(f"`resize` is {resize!r}, not one of {tuple(SCHEMA_1)}")
    upgraded["views"] = [{"resize": SCHEMA_1[resize]}]
    uncertainty = upgraded.get("uncertainty")
    if isinstance(uncertainty, dict) and uncertainty.get("score", "probability") != "probability":
        upgraded["ood"] = upgraded.pop("uncertainty")
    return upgraded


def check_manifest(manifest: Any) -> Manifest:
    """A manifest of schema 2 as what it says. Raises ValueError where serving could not use it."""
    read = msgspec.convert(manifest, Manifest)
    if len(set(read.labels)) != len(read.labels):
        raise ValueError("the `labels` must differ")
    for engine, file in read.files.items():
        if file.name != FILENAMES[engine]:
            raise ValueError(
                f"the file for {engine!r} must be named {FILENAMES[engine]!r}, not {file.name!r}"
            )
    return read

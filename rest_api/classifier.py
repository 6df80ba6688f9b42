"""The models in service, loaded from bundles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rest_api.bundle import MANIFEST, Bundle, BundleError, Engine, load_bundle
from rest_api.engine import Predict, load_engine


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    bundle: Bundle
    predict: Predict


def find_bundles(paths: Sequence[Path]) -> list[Path]:
    """The bundles among `paths`, where a folder of bundles stands for all in it, by name."""
    found = []
    for path in paths:
        inside = sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
        found += [path] if (path / MANIFEST).exists() or not inside else inside
    return found


def load_models(paths: Sequence[Path], engine: Engine, threads: int) -> dict[str, Served]:
    """Load each bundle, warm; by name, the default first. Raises BundleError."""
    models: dict[str, Served] = {}
    for path in find_bundles(paths):
        bundle = load_bundle(path)
        if bundle.name in models:
            other = models[bundle.name].bundle.path
            raise BundleError(f"{path} and {other} are both named {bundle.name!r}.")
        models[bundle.name] = Served(bundle, load_engine(bundle, engine, threads))
    return models

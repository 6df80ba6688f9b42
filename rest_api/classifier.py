"""A loaded model: from the bytes of a photo to a prediction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rest_api.bundle import MANIFEST, Bundle, BundleError, Engine, load_bundle
from rest_api.engine import Predict, load_engine
from rest_api.images import decode, to_square
from rest_api.settings import Settings


class Prediction(NamedTuple):
    """What a model says about one photo."""

    classes: list[tuple[str, float]]  # label and probability, the most probable first
    score: float  # what the bundle's threshold is compared with: the larger, the surer
    uncertain: bool  # whether the score is below the threshold
    decode_seconds: float
    inference_seconds: float


@dataclass(frozen=True)
class LoadedModel:
    """A bundle and its network, warm. Safe to use from several threads."""

    bundle: Bundle
    predict: Predict
    max_pixels: int = Settings.max_pixels

    def classify(self, data: bytes, top: int | None = None) -> Prediction:
        """The `top` most probable classes of an image file, or all. Raises RequestError."""
        bundle = self.bundle
        began = time.perf_counter()
        image = decode(data, bundle.input_size, self.max_pixels)
        pixels = to_square(image, bundle.input_size, bundle.resize)
        decoded = time.perf_counter()
        (probabilities,), (score,) = self.predict(pixels[None])  # a batch of one
        ended = time.perf_counter()
        best = probabilities.argsort()[::-1][:top]
        classes = [(bundle.labels[i], float(probabilities[i])) for i in best]
        uncertain = bool(score < bundle.threshold)
        return Prediction(classes, float(score), uncertain, decoded - began, ended - decoded)


def load_model(
    path: str | Path,
    engine: Engine = "litert",
    threads: int = 1,
    max_pixels: int = Settings.max_pixels,
) -> LoadedModel:
    """Load a bundle. Up to `threads` predictions run at the same time. Raises BundleError."""
    bundle = load_bundle(path)
    return LoadedModel(bundle, load_engine(bundle, engine, threads), max_pixels)


def load_models(settings: Settings) -> dict[str, LoadedModel]:
    """Load each bundle of the settings; by name, the default first. Raises BundleError."""
    models: dict[str, LoadedModel] = {}
    for path in find_bundles(settings.models):
        model = load_model(path, settings.engine, settings.threads, settings.max_pixels)
        name = model.bundle.name
        if name in models:
            raise BundleError(f"{path} and {models[name].bundle.path} are both named {name!r}.")
        models[name] = model
    return models


def find_bundles(paths: Sequence[Path]) -> list[Path]:
    """The bundles among `paths`, where a folder of bundles stands for all in it, by name."""
    found = []
    for path in paths:
        inside = sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
        found += [path] if (path / MANIFEST).exists() or not inside else inside
    return found

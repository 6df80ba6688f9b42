"""A loaded model: from the bytes of a photo to a prediction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rest_api.bundle import MANIFEST, Bundle, BundleError, Engine, load_bundle
from rest_api.engine import Predict, judge, load_engine, mean_over_views
from rest_api.sandbox import Budget, load_views
from rest_api.settings import Settings


class Prediction(NamedTuple):
    """What a model says about one photo."""

    classes: list[tuple[str, float]]  # label and probability, the most probable first
    score: float  # as in Outputs, which see
    uncertain: bool  # none of these, or not sure which
    none_of_these: bool
    decode_seconds: float
    inference_seconds: float


@dataclass(frozen=True)
class LoadedModel:
    """A bundle and its network, warm. Safe to use from several threads."""

    bundle: Bundle
    predict: Predict
    max_pixels: int = Settings.max_pixels

    def classify(
        self, data: bytes, top: int | None = None, budget: Budget | None = None
    ) -> Prediction:
        """The `top` most probable classes of an image file, or all. Raises RequestError.

        Images of the same request share a budget, off which their decoding is taken.
        """
        bundle = self.bundle
        began = time.perf_counter()
        views = load_views(
            data, bundle.input_size, bundle.views, self.max_pixels, budget or Budget()
        )
        decoded = time.perf_counter()
        outputs = mean_over_views(self.predict(views), len(views))
        ended = time.perf_counter()
        (probabilities,), (score,) = outputs
        (none_of_these,), (uncertain,) = judge(outputs, bundle)
        best = probabilities.argsort()[::-1][:top]
        return Prediction(
            classes=[(bundle.labels[i], float(probabilities[i])) for i in best],
            score=float(score),
            uncertain=bool(uncertain),
            none_of_these=bool(none_of_these),
            decode_seconds=decoded - began,
            inference_seconds=ended - decoded,
        )


def load_model(
    path: str | Path,
    engine: Engine | None = None,
    threads: int = 1,
    max_pixels: int = Settings.max_pixels,
) -> LoadedModel:
    """Load a bundle, for its own engine or another. Raises BundleError.

    Up to `threads` predictions run at the same time.
    """
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

"""A loaded model: from the bytes of a photo to a prediction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rest_api.bundle import MANIFEST, Bundle, BundleError, Engine, load_bundle
from rest_api.engine import Predict, exits_early, judge, load_engine, mean_over_views
from rest_api.explain import explain
from rest_api.sandbox import Budget, load_views
from rest_api.settings import Settings

LEAST = 0.0005  # probability from which a class is shown: 0.1 %, rounded


class Prediction(NamedTuple):
    """What a model says about one photo."""

    classes: list[tuple[str, float]]  # label and probability, the most probable first
    score: float  # see Outputs.scores
    uncertain: bool  # none of these, or not sure which
    none_of_these: bool
    decode_seconds: float
    inference_seconds: float
    # (rows, columns), from 0 to 1: how much each part of the photo speaks for the best class
    explanation: np.ndarray | None = None
    embedding: np.ndarray | None = None  # (embedding_size,) float32, the features' mean over views


@dataclass(frozen=True)
class LoadedModel:
    """A bundle and its network, warm. Safe to use from several threads."""

    bundle: Bundle
    predict: Predict
    max_pixels: int = Settings.max_pixels

    def classify(
        self,
        data: bytes,
        top: int | None = None,
        budget: Budget | None = None,
        explained: bool = False,
        embedded: bool = False,
    ) -> Prediction:
        """The `top` most probable classes of an image file, or all. Raises RequestError.

        Images of the same request share a budget, off which their decoding is taken. With
        `explained`, the prediction of a bundle that `explains` says where its best class was seen;
        with `embedded`, that of one with an `embedding_size` holds its features.
        """
        bundle = self.bundle
        began = time.perf_counter()
        views = load_views(
            data, bundle.input_size, bundle.views, self.max_pixels, budget or Budget()
        )
        decoded = time.perf_counter()
        first, *others = (pixels[np.newaxis] for pixels in views.pixels)
        of_views = [self.predict(first)]
        if explained or embedded or not exits_early(of_views[0], bundle.early_exit):
            of_views += map(self.predict, others)
        outputs = mean_over_views(of_views, bundle.early_exit)
        ended = time.perf_counter()
        (probabilities,), (score,) = outputs.probabilities, outputs.scores
        (none_of_these,), (uncertain,) = judge(outputs, bundle)
        best = probabilities.argsort()[::-1][:top]
        maps = [each.maps[0, ..., best[0]] for each in of_views if each.maps is not None]
        features = [each.features[0] for each in of_views if each.features is not None]
        return Prediction(
            classes=[(bundle.labels[i], float(probabilities[i])) for i in best],
            score=float(score),
            uncertain=bool(uncertain),
            none_of_these=bool(none_of_these),
            decode_seconds=decoded - began,
            inference_seconds=ended - decoded,
            explanation=explain(maps, bundle.views, views.size) if explained else None,
            embedding=np.mean(features, 0) if embedded and features else None,
        )


def percent(probability: float, space: str = "") -> str:
    """A probability as people read it, none of which is quite 0 or 1; `space` before the sign."""
    if probability < LEAST:
        return f"under 0.1{space}%"
    return f"{100 * probability:.1f}{space}%" if probability < 1 - LEAST else f"over 99.9{space}%"


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
    return {
        name: LoadedModel(
            bundle, load_engine(bundle, settings.engine, settings.threads), settings.max_pixels
        )
        for name, bundle in read_bundles(settings.models).items()
    }


def read_bundles(paths: Sequence[Path]) -> dict[str, Bundle]:
    """The bundles among `paths` by name, their networks not yet loaded. Raises BundleError."""
    bundles: dict[str, Bundle] = {}
    for path in find_bundles(paths):
        bundle = load_bundle(path)
        name = bundle.name
        if name in bundles:
            raise BundleError(f"{path} and {bundles[name].path} are both named {name!r}.")
        bundles[name] = bundle
    return bundles


def find_bundles(paths: Sequence[Path]) -> list[Path]:
    """The bundles among `paths`, where a folder of bundles stands for all in it, by name.

    Raises BundleError.
    """
    found = []
    for path in paths:
        try:
            inside = sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
            found += [path] if (path / MANIFEST).exists() or not inside else inside
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}).") from error
    return found

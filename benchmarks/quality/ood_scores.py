"""Which score tells photos of nothing that a classifier knows.

    python -m benchmarks.quality.ood_scores

Takes folders of photos as training.transfer does. For each, heads are trained on three splits, and
the photos of all the others, with those of --strangers, are what it does not know. Prints the AUROC
of each score of training.rejection on the test photos, and how many of the strangers are accepted
where the threshold accepts 95 % of the validation photos.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from training import metrics
from training.export import COVERAGE
from training.ood import SCORES, Known
from training.photos.backbones import BACKBONES, load_backbone
from training.photos.features import VIEWS, cache_name, features, pooled
from training.photos.inspect import Photo, files_in, look, split, survey
from training.photos.tuning import best_penalty, fit_heads

SEEDS = (0, 1, 2)

Verdict = tuple[float, float]  # AUROC, and the share of the strangers that is accepted


def scores_of(head: keras.Model, known: Known) -> keras.Model:
    """A network from features to every score."""
    inputs = keras.Input(head.input_shape[1:])
    logits = head(inputs)
    return keras.Model(inputs, {name: fit(known)(inputs, logits) for name, fit in SCORES.items()})


def judge(
    photos: Sequence[Photo], seen: np.ndarray, strange: Mapping[str, np.ndarray], seed: int
) -> dict[tuple[str, str], Verdict]:
    """Train a head on one split; what each score says of each set of strangers.

    `seen` (N, views, D) are the features of the photos, `strange` (M, D) those of the strangers.
    """
    labels = sorted({photo.label for photo in photos})
    numbers = np.array([labels.index(photo.label) for photo in photos])
    row = {photo.digest: i for i, photo in enumerate(photos)}
    rows = {part: [row[p.digest] for p in some] for part, some in split(photos, seed).items()}
    train, validation, test = rows["train"], rows["validation"], rows["test"]
    heads = fit_heads(seen[train], numbers[train], seed)
    best = best_penalty(heads, seen[validation][:, 0], numbers[validation])
    scorer = scores_of(heads[best], Known(seen[train][:, 0], numbers[train]))
    checked, tested = (scorer.predict(seen[some][:, 0], verbose=0) for some in (validation, test))
    verdicts = {}
    for other, vectors in strange.items():
        scores = scorer.predict(vectors, verbose=0)
        for name in SCORES:
            accepted = scores[name] >= np.quantile(checked[name], 1 - COVERAGE)
            auroc = metrics.auroc(tested[name], scores[name])
            verdicts[other, name] = auroc, float(accepted.mean())
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare scores of how familiar a photo is.")
    parser.add_argument("photos", nargs="+", type=Path, help="folders with a folder a class")
    parser.add_argument("--strangers", nargs="*", type=Path, default=[], help="of anything else")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="mobilenetv2")
    parser.add_argument("--weights", help="file of ImageNet weights (Keras's download)")
    parser.add_argument("--width", type=float, default=1.0, help="MobileNetV2's alpha")
    args = parser.parse_args()

    maps = load_backbone(args.backbone, args.weights, width=args.width)
    network = pooled(maps, BACKBONES[args.backbone].side)
    cache = Path("runs", "features", cache_name(network, "squash"))
    tasks = {folder.name: survey(folder).photos for folder in args.photos}
    strangers = {
        folder.name: look([(p, "") for p in files_in(folder)])[0] for folder in args.strangers
    }
    seen = {
        name: features(network, photos, cache, views=VIEWS if name in tasks else 1)
        for name, photos in (tasks | strangers).items()
    }
    print("| classifier | not known | " + " | ".join(SCORES) + " |")
    print("|---|---|" + "---:|" * len(SCORES))
    for name, photos in tasks.items():
        strange = {other: vectors[:, 0] for other, vectors in seen.items() if other != name}
        verdicts = [judge(photos, seen[name], strange, seed) for seed in SEEDS]
        for other in strange:
            means = [np.mean([each[other, score] for each in verdicts], axis=0) for score in SCORES]
            cells = " | ".join("{:.3f}, {:.0%}".format(*mean) for mean in means)
            print(f"| {name} | {other} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

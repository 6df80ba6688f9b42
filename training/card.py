"""The model card of a bundle, CARD.md: what it knows, how good it is, what it is not for.

    python -m training.card BUNDLE --figures FILE

After Mitchell et al. 2019 (arXiv:1810.03993). training.transfer writes one; the command writes that
of any bundle from its model.json and from what benchmarks.quality.photos_in_the_wild measured.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rest_api.bundle import CARD, MANIFEST, BundleError, load_bundle
from training import check_installed, metrics
from training.files import replacing
from training.photos.backbones import LITE0

NOTICE = (
    "The network is made from EfficientNet-Lite0 weights, Copyright (c) 2020 ML Illustrated, "
    "[Apache License 2.0](https://www.apache.org/licenses/LICENSE-2.0), converted."
)
GENERAL = (
    "Photos that differ much from those it was trained on, in place, light, distance or style, are "
    "classified less well than the figures say.",
    "Of several things in a photo, it names one.",
    "It is made for learning and for trying things out, not for decisions about people or safety.",
)

Row = Sequence[str]  # measure, number of photos, figure, 95 % interval


def proportion(measure: str, count: int, n: int) -> Row:
    """The row of a share of photos, with its interval; of none there is no share."""
    if not n:
        return measure, "0", "", ""
    low, high = metrics.interval(count, n)
    return measure, f"{n:,}", f"{count / n:.1%}", f"{low:.1%} to {high:.1%}"


def share(measure: str, chosen: np.ndarray) -> Row:
    """The row of the photos, (N,) bool, of which something is true."""
    return proportion(measure, int(chosen.sum()), len(chosen))


def card(
    manifest: Mapping[str, Any], rows: Sequence[Row], failures: Sequence[str] = (), source: str = ""
) -> str:
    """The card as Markdown, from a bundle's model.json, its figures and its known failures.

    `source` says where the photos are from, and under which licence.
    """
    return "\n\n".join(
        [
            f"# {manifest['name']}",
            f"Version {manifest['version']}. It tells {len(manifest['labels'])} classes apart: "
            f"{', '.join(manifest['labels'])}.",
            "## What it was trained on",
            *training_of(manifest),
            *background_of(manifest),
            *([source] if source else []),
            "## How good it is",
            "Measured on the network as it is served.",
            table(rows),
            "## What it does with other pictures",
            *others_of(manifest),
            "## Known failures",
            "\n".join(f"- {each}" for each in [*failures, *GENERAL]),
            "## Licences",
            "The code, and what was trained with it, are under the MIT licence of this project.",
            *([NOTICE] if manifest["training"].get("backbone") == LITE0 else []),
        ]
    )


def training_of(manifest: Mapping[str, Any]) -> list[str]:
    """The paragraphs about a training."""
    training = manifest["training"]
    if "recipe" in training:
        others, data = "", "CIFAR-10 (Krizhevsky 2009) states"
        if "ood" in manifest:
            others = " and on images of other things, CIFAR-100's and synthetic ones"
            data = "CIFAR-10 and CIFAR-100 (Krizhevsky 2009) state"
        return [
            f"Trained from scratch on {training['images']:,} images of CIFAR-10{others}: "
            f"{training['epochs']} epochs of the recipe `{training['recipe']}` with seed "
            f"{training['seed']}.",
            f"{data} no licence.",
        ]
    photos = training["photos"]
    how = (
        f"its last layers fine-tuned for {training['tuned_epochs']} epochs"
        if training["tuned_epochs"]
        else "whose weights were left as they are"
    )
    return [
        f"A linear classifier on {training['backbone']}, a network with ImageNet's weights, {how}. "
        f"It was trained on {photos['train'] + photos['validation']:,} photos; {photos['test']:,} "
        "others, none of them a near-duplicate of these, were kept for the figures."
    ]


def background_of(manifest: Mapping[str, Any]) -> list[str]:
    """The paragraph about the background, if there is one."""
    background = manifest["training"].get("background", {"train": 0})
    if not background["train"]:
        return []
    return [
        f"{background['train'] + background['validation']:,} pictures of other things, some of "
        "them synthetic, were one more class in training, which is never answered; "
        f"{background['test']:,} others were kept for the figures."
    ]


def rows_of(accuracy: Mapping[str, Any]) -> list[Row]:
    """The figures that model.json has itself."""
    n = accuracy["images"]
    return [
        proportion(f"right on {accuracy['measured_on']}, engine `{engine}`", round(n * right), n)
        for engine, right in accuracy.items()
        if isinstance(right, float)
    ]


def others_of(manifest: Mapping[str, Any]) -> list[str]:
    """The paragraphs about what is of none of the classes."""
    if "ood" in manifest:
        known = (
            f"Where its out-of-distribution score ({manifest['ood']['score']}) is below a "
            "threshold, it answers `none_of_these`. The threshold was fitted on "
            f"{manifest['ood']['fitted_on']}; figures of the same photos are optimistic."
        )
    else:
        known = "It has no out-of-distribution score: it sees one of its classes in every picture."
    unsure = (
        "Where the best class has a probability under "
        f"{manifest['uncertainty']['threshold']:.0%}, the answer is `uncertain`."
        if "uncertainty" in manifest
        else "It has no threshold for the probability of the best class."
    )
    if "ood" in manifest and "uncertainty" in manifest:
        unsure += " Both together are why not all known photos are answered."
    return [known, unsure]


def table(rows: Sequence[Row]) -> str:
    """Rows of figures as a Markdown table."""
    head = ["| measure | photos | figure | 95 % interval |", "|---|---:|---:|---:|"]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)  # of any class's name
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in cells)])


def write_card(folder: Path, text: str) -> None:
    with replacing(folder / CARD) as part:
        part.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model card of a bundle.")
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle's folder")
    add("--figures", type=Path, help="as benchmarks.quality.photos_in_the_wild writes them (none)")
    add("--source", default="", help="where the images are from, and their licence")
    args = parser.parse_args()
    check_installed()
    try:
        bundle = load_bundle(args.bundle)
        rows = rows_of(bundle.manifest["accuracy"])
        if args.figures:
            record = json.loads(args.figures.read_text(encoding="utf-8"))
            if record["version"] != bundle.version:
                sys.exit(f"error: {args.figures} is of {record['version']}, not {bundle.version}.")
            rows += [(f"photos: {name}", *row) for name, row in record["figures"].items()]
        write_card(args.bundle, card(bundle.manifest, rows, source=args.source))
    except (BundleError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        sys.exit(f"error: a card needs {error}, which {MANIFEST} or the file of figures lacks.")
    except (ValueError, TypeError) as error:
        sys.exit(f"error: {args.figures} is no file of figures: {error}.")
    print(args.bundle / CARD)


if __name__ == "__main__":
    main()

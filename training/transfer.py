"""Train a classifier on a folder of photos: `python -m training.transfer PHOTOS`.

The same command continues a run that was interrupted. See training/photos/transfer.py.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import training
from rest_api.bundle import FILENAMES, BundleError, View
from rest_api.settings import int_between
from training.export import ExportError, parse_view
from training.photos import COVERAGE
from training.photos.backbones import BACKBONES, DEFAULT, WeightsError


def fraction(text: str) -> float:
    """A number above 0 and below 1, of the command line."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and below 1")
    return float(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a classifier on a folder of photos.")
    add = parser.add_argument
    add("photos", type=Path, help="a folder that holds one folder of photos per class")
    add("--output", type=Path, help="the bundle's folder (bundles/NAME-OF-PHOTOS)")
    add("--backbone", choices=list(BACKBONES), default=DEFAULT, help="(%(default)s)")
    add("--compare", nargs="+", choices=list(BACKBONES), help="train several, print a table")
    add("--weights", help="file of ImageNet weights, or 'random' (shipped, or Keras's download)")
    add("--width", type=float, default=1.0, help="MobileNetV2's alpha (%(default)s)")
    side = "pixels per side of the images (the backbone's)"
    add("--size", type=int_between(32, 1024), dest="image_size", metavar="SIZE", help=side)
    views = "of a photo, whose logits are averaged, such as stretch center_crop:mirrored (stretch)"
    stretch = [View("stretch")]
    add("--views", nargs="+", type=parse_view, default=stretch, metavar="VIEW", help=views)
    folders: dict[str, Any] = {"type": Path, "nargs": "+", "default": [], "metavar": "DIR"}
    add("--background", **folders, help="folders of photos of anything else, to be rejected")
    add("--others", **folders, help="the same, only to measure what is made of them")
    add("--source", default="", help="for the card: where the photos are from, and their licence")
    add(
        "--engines",
        nargs="+",
        choices=list(FILENAMES),
        default=list(FILENAMES),
        help="whose files to keep beside the one that is served (all)",
    )
    add("--saved-model", action="store_true", help="also write a TensorFlow SavedModel")
    answered = "fraction of known photos that is answered; more also answers more of other things"
    add("--coverage", type=fraction, default=COVERAGE, help=f"{answered} (%(default)s)")
    add("--no-tuning", action="store_false", dest="tuning", help="train the head only")
    about = "Ray cluster for the features, or for what --compare names: local, auto or HOST:PORT"
    add("--cluster", metavar="ADDRESS", help=about)
    seed = "random seed of split and training (%(default)s)"
    add("--seed", type=int_between(0, 2**32 - 1), default=0, help=seed)
    args = parser.parse_args()
    if args.width != 1 and "mobilenetv2" not in (args.compare or [args.backbone]):
        parser.error("--width is for --backbone mobilenetv2")
    if any(view.size for view in args.views):
        parser.error("a view cannot have a size of its own here; set the network's with --size")
    return args


def main() -> None:
    options = vars(parse_arguments())
    training.import_keras()
    from rest_api.errors import JobError, interruptible
    from rest_api.files import needs_ray
    from training.checkpoint import RunError
    from training.photos.inspect import PhotosError
    from training.photos.report import as_lines
    from training.photos.transfer import check_size

    photos, output, compare, cluster = (
        options.pop(name) for name in ("photos", "output", "compare", "cluster")
    )
    output = output or Path("bundles", photos.resolve().name)
    names = list(dict.fromkeys(compare or [options["backbone"]]))
    if cluster and not compare:
        with needs_ray():
            from training.cluster import compute_features
        options["compute"] = partial(compute_features, cluster)
    calls = {}
    for name in names:
        of_name = output.absolute()  # "." has no name
        destination = of_name.with_name(f"{of_name.name}-{name}") if compare else output
        calls[name] = partial(train, photos, destination, **options | {"backbone": name})
    rows = []
    try:
        for name in names:
            check_size(name, options["image_size"], tune=options["tuning"])
        with interruptible("The same command continues where it stopped."):
            for figures, destination in training.results_of(calls, cluster if compare else None):
                rows.append(figures)
                print("\n".join(f"{name:<32}{value}" for name, value in as_lines(figures).items()))
                serve = shlex.join(["python", "rest_api/app.py", "--model", str(destination)])
                print(f"Serve it: {serve}", flush=True)
    except (PhotosError, WeightsError, RunError, BundleError, ExportError, JobError) as error:
        sys.exit(f"error: {error}")
    if compare:
        print(comparison(names, rows))


def train(photos: Path, destination: Path, **options: Any) -> tuple[dict[str, Any], Path]:
    """The figures of one backbone and its bundle's folder; see training.photos.transfer."""
    from training.photos.transfer import transfer

    figures, _ = transfer(photos, destination, **options)
    return figures, destination


def comparison(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of backbones."""
    lines = ["| backbone | accuracy | network (MB) | one photo (ms) | minutes |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"| {name} | {row['accuracy']:.1%} | {row['megabytes']:.1f} "
            f"| {row['milliseconds']:.1f} | {row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""How should a photo become a 32-pixel square? `python -m benchmarks.resize_policy PHOTOS`.

PHOTOS holds a folder per class, named as CIFAR-10's labels (such as airplane/, automobile/).
Prints, for each policy, how many photos the shipped classifier puts into their class, as they are
and cut to the shapes that cameras take: a square photo looks the same to all three.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageOps

from rest_api.bundle import Resize, load_bundle
from rest_api.engine import load_engine
from rest_api.images import decode, fit
from rest_api.settings import DEFAULT_MODEL

SHAPES = {"1:1": 1, "4:3": 4 / 3, "3:4": 3 / 4, "16:9": 16 / 9}  # width to height


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare resize policies on real photos.")
    parser.add_argument("photos", type=Path, help="a folder per class, named as the labels are")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    args = parser.parse_args()
    bundle = load_bundle(args.model)
    predict = load_engine(bundle)
    folders = [path for path in sorted(args.photos.iterdir()) if path.name in bundle.labels]
    if not folders:
        parser.error(f"{args.photos} holds no folder named as one of {', '.join(bundle.labels)}")
    photos = [
        (bundle.labels.index(folder.name), decode(path.read_bytes(), bundle.input_size))
        for folder in folders
        for path in sorted(folder.iterdir())
    ]
    labels = np.array([label for label, _ in photos])
    print(
        f"| {len(photos)} photos, cut to | {' | '.join(get_args(Resize))} |\n|---|---:|---:|---:|"
    )
    shares = []
    for name, aspect in SHAPES.items():
        cut = [cut_to(image, aspect) for _, image in photos]
        shares.append([])
        for policy in get_args(Resize):
            pixels = np.stack([fit(image, bundle.input_size, policy) for image in cut])
            shares[-1].append((predict(pixels).probabilities.argmax(1) == labels).mean())
        print(row(name, shares[-1]))
    print(row("mean", np.mean(shares, axis=0)))


def cut_to(image: Image.Image, aspect: float) -> Image.Image:
    """The largest part in the middle of an image whose width is `aspect` times its height."""
    width, height = image.size
    return ImageOps.fit(
        image, (round(min(width, height * aspect)), round(min(height, width / aspect)))
    )


def row(name: str, shares: Iterable[float]) -> str:
    return f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |"


if __name__ == "__main__":
    main()

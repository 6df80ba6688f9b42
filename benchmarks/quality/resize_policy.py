"""How should a photo become a 32-pixel square? `python -m benchmarks.quality.resize_policy PHOTOS`.

PHOTOS holds a folder per class, named as CIFAR-10's labels (such as airplane/, automobile/).
Prints, for each policy, how many photos the shipped classifier puts into their class, as they are
and cut to the shapes that cameras take: a square photo looks the same to all three. Then, at what
scale a JPEG has to be decoded for that: how many pixels, each way, for one of the network's.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageOps

from rest_api.bundle import Bundle, Resize, load_bundle
from rest_api.engine import Predict, load_engine
from rest_api.images import SPARE, decode, to_square
from rest_api.settings import DEFAULT_MODEL

SPARES = (4, 2, 1)
FULL = 1000  # more than any photo has
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
    files = [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())]
    labels = [bundle.labels.index(folder.name) for folder in folders for _ in folder.iterdir()]
    compare_policies(files, np.array(labels), bundle, predict)
    compare_scales(files, np.array(labels), bundle, predict)


def compare_policies(
    files: Sequence[bytes], labels: np.ndarray, bundle: Bundle, predict: Predict
) -> None:
    print(f"| {len(files)} photos, cut to | {' | '.join(get_args(Resize))} |\n|---|---:|---:|---:|")
    photos = [decode(file, bundle.input_size) for file in files]
    shares = []
    for name, aspect in SHAPES.items():
        cut = [cut_to(photo, aspect) for photo in photos]
        shares.append([])
        for policy in get_args(Resize):
            pixels = np.stack([to_square(photo, bundle.input_size, policy) for photo in cut])
            shares[-1].append((predict(pixels).probabilities.argmax(1) == labels).mean())
        print(row(name, shares[-1]))
    print(row("mean", np.mean(shares, axis=0)))


def compare_scales(
    files: Sequence[bytes], labels: np.ndarray, bundle: Bundle, predict: Predict
) -> None:
    side = bundle.input_size

    def best(spare: int) -> np.ndarray:
        photos = [decode(file, side * spare // SPARE) for file in files]
        pixels = np.stack([to_square(photo, side, bundle.resize) for photo in photos])
        return predict(pixels).probabilities.argmax(1)

    in_full = best(FULL)
    found = {"all": in_full} | {f"{spare} or more": best(spare) for spare in SPARES}
    print("\n| pixels of a JPEG for one of the network's | right | other answers than in full |")
    print("|---|---:|---:|")
    for name, answers in found.items():
        print(row(name, ((answers == labels).mean(), (answers != in_full).mean())))


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

"""Make the example pictures of the web page: `python -m docs.examples`.

CIFAR-10 test images, enlarged as rest_api/frog.jpg is, and a drawing of what no model knows. They
were chosen to be recognised by people, and to show each kind of answer: of the cat, the default
model is not sure. Nothing is measured on them.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from training.cifar10.data import LABELS, DataError, load_cifar10

FOLDER = Path(__file__).parents[1] / "rest_api" / "static" / "examples"
SIDE = 256
POSITIONS = {206: "airplane", 82: "automobile", 1280: "cat", 102: "frog", 54: "ship"}  # test images


def enlarged(directory: Path | None) -> Iterator[tuple[str, Image.Image]]:
    """The chosen test images by label. Raises DataError."""
    _, (images, labels) = load_cifar10(directory)
    for position, name in POSITIONS.items():
        if LABELS[labels[position]] != name:
            raise DataError(f"test image {position} is no {name}: this is not CIFAR-10.")
        yield name, Image.fromarray(images[position]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def cup() -> Image.Image:
    """A cup of tea."""
    large = Image.new("RGB", (4 * SIDE, 4 * SIDE), "#f3d9a4")
    draw = ImageDraw.Draw(large)
    draw.rectangle((0, 760, 1024, 1024), fill="#8c5a33")
    draw.ellipse((180, 740, 800, 900), fill="#e8eef2")  # saucer
    draw.arc((600, 440, 860, 690), -100, 110, fill="#c23b3b", width=48)  # handle
    draw.pieslice((250, 160, 730, 840), 0, 180, fill="#c23b3b")
    draw.ellipse((250, 430, 730, 570), fill="#f7f3ee")
    draw.ellipse((285, 450, 695, 555), fill="#6b2f14")
    for x in (400, 490, 580):  # steam
        draw.arc((x - 30, 200, x + 30, 300), 90, 270, fill="#ffffff", width=14)
        draw.arc((x - 30, 286, x + 30, 386), -90, 90, fill="#ffffff", width=14)
    return large.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 (CIFAR10_DIR)")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    try:
        for name, image in [*enlarged(arguments.data), ("something-else", cup())]:
            image.save(FOLDER / f"{name}.jpg", quality=85, optimize=True)
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Do explanations show what a prediction rests on? `python -m benchmarks.quality.explanations DIR`.

Of each photo below DIR, the quarter that speaks most for the predicted class, as ?explain=true has
it, is covered with grey; beside it as many of the grid's cells at random, and a square of a quarter
of the photo at a random place. Prints how much probability the class loses by each, the mean over
the photos with its 95 % interval, and the ratio of the first to the others.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.common import command_line, print_table
from rest_api.bundle import BundleError
from rest_api.classifier import load_model
from rest_api.settings import DEFAULT_MODEL


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("photos", type=Path, metavar="DIR", help="photos, searched to its depths")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    args = parser.parse_args()
    from training.explanations import COVERS, losses
    from training.photos.inspect import PhotosError, files_in

    rng = np.random.default_rng(0)
    try:
        model = load_model(args.model)
        if not model.bundle.explains:
            sys.exit(f"error: {args.model} has no class activation maps.")
        lost = np.array([losses(photo, model, rng) for photo in files_in(args.photos)])
    except (BundleError, PhotosError) as error:
        sys.exit(f"error: {error}")
    means = lost.mean(0)
    half = 1.96 * lost.std(0, ddof=1) / len(lost) ** 0.5
    print_table(
        [f"covered, of {len(lost)} photos", "probability lost", "ratio"],
        (
            [name, f"{mean:.3f} ± {each:.3f}", f"{means[0] / mean:.2f}"]
            for name, mean, each in zip(COVERS, means, half, strict=True)
        ),
    )


if __name__ == "__main__":
    main()

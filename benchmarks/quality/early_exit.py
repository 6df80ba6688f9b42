"""From which probability is a photo's first view enough?

    python -m benchmarks.quality.early_exit PHOTOS --others DIR …

PHOTOS holds a folder a class, named as the bundle's labels; the DIRs, searched to their depths,
hold photos of other things. Prints, for several values of `early_exit` of model.json, how many
photos the first view decides alone, and what becomes of accuracy, calibration and coverage. With 1,
all photos are shown in all views.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import command_line, print_table
from rest_api.bundle import Bundle, BundleError, load_bundle, sizes_of
from rest_api.engine import Outputs, exits_early, judge, load_engine, mean_over_views
from rest_api.settings import DEFAULT_MODEL
from training import metrics
from training.evaluate import in_batches, labelled_views, views_of

VALUES = (0.9, 0.95, 0.98, 0.99, 0.995, 1)
CONFIDENT = 0.9  # probability
HEADER = (
    "early exit",
    "photos decided by their first view",
    "right",
    "expected calibration error",
    "coverage",
    "selective accuracy",
    "OOD photos answered",
    f"at over {CONFIDENT:.0%}",
)


def rows(
    known: Sequence[Outputs], class_ids: np.ndarray, others: Sequence[Outputs], bundle: Bundle
) -> Iterator[list[str]]:
    """A row for each value; `known` and `others` are the outputs for each view of the photos."""
    for value in VALUES:
        outputs, of_others = (mean_over_views(views, value) for views in (known, others))
        right = outputs.probabilities.argmax(1) == class_ids
        answered = ~judge(outputs, bundle).uncertain
        others_answered = ~judge(of_others, bundle).uncertain
        confident = others_answered & (of_others.probabilities.max(1) > CONFIDENT)
        shares = (
            exits_early(known[0], value).mean(),
            right.mean(),
            metrics.expected_calibration_error(outputs.probabilities, class_ids),
            answered.mean(),
            right[answered].mean(),
            others_answered.mean(),
            confident.mean(),
        )
        yield [f"{value:g}", *(f"{share:.1%}" for share in shares)]


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("photos", type=Path, help="a folder a class, named as the labels are")
    add("--others", required=True, nargs="+", type=Path, metavar="DIR", help="of other things")
    add("--model", type=Path, default=DEFAULT_MODEL, help="bundle (%(default)s)")
    args = parser.parse_args()
    from training.photos.inspect import PhotosError, files_in, read

    try:
        bundle = load_bundle(args.model)
        predict = load_engine(bundle)
        size, views = bundle.input_size, bundle.views
        shown, class_ids = labelled_views(args.photos, bundle.labels, size, views)
        files = (path for folder in args.others for path in files_in(folder))
        others = views_of((read(path, max(sizes_of(views, size))) for path in files), size, views)
    except (BundleError, PhotosError) as error:
        sys.exit(f"error: {error}")
    known, of_others = ([in_batches(predict, view) for view in each] for each in (shown, others))
    print_table(HEADER, rows(known, class_ids, of_others, bundle))


if __name__ == "__main__":
    main()

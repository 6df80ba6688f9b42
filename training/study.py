"""Train variants of the recipes, most for the notebooks: `python -m training.study`.

    python -m training.study                # every variant that is not finished yet
    python -m training.study l2 --seed 1

Trains on 45,000 images, measures on the 5,000 of validation.
"""

import argparse
import sys
from functools import partial

import training
from rest_api.settings import int_between


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the variants of the study.")
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help="names in training/cifar10/study.py (all)"
    )
    seed = "random seed (%(default)s)"
    parser.add_argument("--seed", type=int_between(0, 2**32 - 1), default=0, help=seed)
    parser.add_argument("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    parser.add_argument(
        "--outliers",
        help="directory of cifar-100-python, default $CIFAR100_DIR, for street-outliers",
    )
    about = "Ray cluster that trains them side by side: local, auto or HOST:PORT"
    parser.add_argument("--cluster", metavar="ADDRESS", help=about)
    args = parser.parse_args()
    training.import_keras()
    from rest_api.errors import JobError, interruptible
    from training.checkpoint import RunError
    from training.cifar10.data import DataError
    from training.cifar10.study import VARIANTS
    from training.cifar10.train import run_recipe

    if unknown := set(args.variants) - set(VARIANTS):
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    shared = {"seed": args.seed, "data": args.data, "cifar100": args.outliers}
    calls = {
        name: partial(run_recipe, name, VARIANTS[name], **shared)
        for name in args.variants or VARIANTS
    }
    try:
        with interruptible("The same command continues after the last finished epoch."):
            for _ in training.results_of(calls, args.cluster):
                pass
    except (DataError, RunError, JobError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

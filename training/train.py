"""Train a recipe on CIFAR-10: `python -m training.train fast94 --seed 1`.

By default 45,000 images train and 5,000 validate; --final trains on all 50,000 and measures
the 10,000 test images once, at the end. The run is kept in runs/RECIPE-seedN[-final]. The same
command continues a run that was interrupted, and repeats the result of one that is finished.
"""

import argparse
import json
import sys
from functools import partial
from math import inf
from pathlib import Path

import training
from rest_api.settings import int_between
from training.cifar10 import recipes
from training.cifar10.data import DataError

DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


def positive(text: str) -> float:
    """A finite number above 0, of the command line."""
    if not 0 < float(text) < inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return float(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a recipe on CIFAR-10.")
    add = parser.add_argument
    add("recipe", choices=recipes.names())
    seed = "random seed (0); several are a run each"
    add("--seed", type=int_between(0, 2**32 - 1), nargs="+", default=[0], metavar="N", help=seed)
    add(
        "--epochs",
        type=positive,
        help="instead of the recipe's number; image sizes change at the same epochs",
    )
    add("--final", action="store_true", help="train on all images, measure on the test set")
    add("--hold-out", action="store_true", help="with --final: keep 1,000 images to calibrate on")
    add("--dtype", choices=DTYPES, help="data type to compute in, instead of the recipe's choice")
    add("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    add("--outliers", help="directory of cifar-100-python, default $CIFAR100_DIR, where needed")
    add("--output", type=Path, help="directory of the run, default runs/RECIPE-seedN[-final]")
    about = "Ray cluster that trains the seeds side by side: local, auto or HOST:PORT"
    add("--cluster", metavar="ADDRESS", help=about)
    args = parser.parse_args()
    if args.hold_out and not args.final:
        parser.error("--hold-out is for --final; without it, 5,000 images are kept to validate on")
    if args.output and len(args.seed) > 1:
        parser.error("--output is the directory of one run, not of several seeds")
    return args


def main() -> None:
    args = parse_arguments()
    training.import_keras()
    from rest_api.errors import JobError, interruptible
    from training.checkpoint import RunError
    from training.cifar10.train import run_recipe

    calls = {
        f"seed {seed}": partial(
            run_recipe,
            args.recipe,
            recipes.load(args.recipe),
            seed=seed,
            final=args.final,
            epochs=args.epochs,
            dtype=args.dtype,
            hold_out=args.hold_out,
            data=args.data,
            cifar100=args.outliers,
            run=args.output,
            started=training.STARTED if [seed] == args.seed and not args.cluster else None,
        )
        for seed in args.seed
    }
    try:
        with interruptible("The same command continues after the last finished epoch."):
            for result in training.results_of(calls, args.cluster):
                print(json.dumps(result, indent=2), flush=True)
    except (DataError, RunError, JobError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

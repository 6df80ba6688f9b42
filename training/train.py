"""Train a recipe on CIFAR-10: `python -m training.train fast94 --seed 1`.

By default 45,000 images train and 5,000 validate; --final trains on all 50,000 and measures
the 10,000 test images once, at the end. The run is kept in runs/RECIPE-seedN[-final]. The same
command continues a run that was interrupted, and repeats the result of one that is finished.
"""

import argparse
import json
import sys
from pathlib import Path

import training
from training.cifar10 import recipes
from training.cifar10.data import DataError

DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a recipe on CIFAR-10.")
    add = parser.add_argument
    add("recipe", choices=recipes.names())
    add("--seed", type=int, default=0, help="of everything random (%(default)s)")
    add("--epochs", type=float, help="instead of the recipe's own number")
    add("--final", action="store_true", help="train on all images, measure on the test set")
    add("--hold-out", action="store_true", help="with --final: keep 1,000 images to calibrate on")
    add("--dtype", choices=DTYPES, help="to compute in, instead of the recipe's choice")
    add("--data", help="directory of cifar-10-batches-py, default $CIFAR10_DIR")
    add("--outliers", help="directory of cifar-100-python, default $CIFAR100_DIR, where needed")
    add("--output", type=Path, help="directory of the run, default runs/RECIPE-seedN[-final]")
    args = parser.parse_args()
    if args.hold_out and not args.final:
        parser.error("--hold-out is for --final; without it, 5,000 images are kept to validate on")
    return args


def main() -> None:
    args = parse_arguments()
    training.import_keras()
    from training.checkpoint import RunError
    from training.cifar10.train import run_recipe

    try:
        result = run_recipe(
            args.recipe,
            recipes.load(args.recipe),
            seed=args.seed,
            final=args.final,
            epochs=args.epochs,
            dtype=args.dtype,
            hold_out=args.hold_out,
            data=args.data,
            cifar100=args.outliers,
            run=args.output,
            started=training.STARTED,
        )
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command continues after the last finished epoch.")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

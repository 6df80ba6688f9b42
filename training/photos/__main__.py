"""Inspect a folder of photos before training: `python -m training.photos PHOTOS`."""

import argparse
import sys
from pathlib import Path

from training import check_installed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.photos", description=__doc__)
    parser.add_argument("photos", type=Path, help="a folder that holds one folder per class")
    args = parser.parse_args()
    check_installed()
    from training.photos.inspect import PhotosError, report, survey

    try:
        print(report(survey(args.photos)))
    except PhotosError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

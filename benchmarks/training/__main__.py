"""How soon the recipes reach an accuracy, and how near they come to the machine's limit.

    python -m benchmarks.training [--short]

The accuracies are those of the recorded runs in benchmarks/training/records (made by
training.train): by epoch on the 5,000 validation images, at the end on the test images. The speed
of a training step and of matrix products is measured now, in turn. Writes
benchmarks/training/README.md; --short measures one round and prints its page instead.
"""

from pathlib import Path

from benchmarks.common import command_line, publish
from training import import_keras

PAGE = Path(__file__).with_name("README.md")
ROUNDS = 3


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--short", action="store_true", help="one round of the speeds")
    args = parser.parse_args()
    import_keras()
    from benchmarks.training import report

    publish(report.sections(1 if args.short else ROUNDS), PAGE, short=args.short)


if __name__ == "__main__":
    main()

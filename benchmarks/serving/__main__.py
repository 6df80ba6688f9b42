"""This server beside others, with the same network: `python -m benchmarks.serving --venvs DIR`.

Its default model, which is shown a second view where the first does not decide, is also measured
with one view, as others are. The first decides the two small pictures, and not the large one.

Each server is a process of its own on this machine, loaded by wrk (`apt install wrk`; one thread)
with the form that curl sends. All are measured in turn, round after round, so that a slow minute
of the machine affects all alike: ratios are taken within a round, and their median and spread are
reported. DIR holds a virtual environment for each of benchmarks/serving/rivals/*.txt, as
`make bench` makes them; servers whose environment is missing are left out.

Writes benchmarks/serving/README.md and images/serving.png. --short takes one round at 16
connections and prints its page instead.
"""

from pathlib import Path

from benchmarks.common import ROOT, command_line, publish
from benchmarks.serving.load import need_wrk, pictures

PAGE = Path(__file__).with_name("README.md")
CONNECTIONS = (1, 16, 64)
ROUNDS = 5


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--venvs", type=Path, required=True, help="a folder of their environments")
    parser.add_argument("--short", action="store_true", help="one round at 16 connections")
    args = parser.parse_args()
    need_wrk()
    from benchmarks.serving import comparison, report
    from benchmarks.serving.stages import stages
    from training import plots

    images = pictures()
    connections, rounds = ((report.BUSY,), 1) if args.short else (CONNECTIONS, ROUNDS)
    seen = comparison.compare(args.venvs, images, connections, rounds)
    times = {name: stages(image) for name, image in images.items()}
    publish(report.sections(seen, times), PAGE, short=args.short)
    if not args.short:
        figure = report.draw(report.throughputs(seen.rounds))
        plots.save(figure, ROOT / "images" / "serving.png")


if __name__ == "__main__":
    main()

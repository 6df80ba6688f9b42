"""What leaks over many requests: `python -m benchmarks.robustness.soak --requests 100000`.

Needs wrk. Prints resident memory and open files of the whole server after a warm-up of half as
many, in which every thread has met every kind of input, and then after every tenth of the requests.
"""

from collections.abc import Iterator
from itertools import cycle

from benchmarks.common import FROG, command_line
from benchmarks.robustness.hostile_files import valid_files
from benchmarks.serving.load import (
    need_wrk,
    open_files,
    own_server,
    resident_megabytes,
    serving,
    wrk,
)


def soak(requests: int) -> Iterator[tuple[int, float, int]]:
    """(requests since the warm-up, MB resident, open files), ten times and once before."""
    inputs = cycle([FROG.read_bytes(), *valid_files(), b"no image"])
    with serving(own_server()) as (address, pid):
        done = -requests // 2
        for tenth in range(11):
            while done < requests * tenth / 10:
                done += wrk(f"{address}/predict", next(inputs), 8, 1).requests
            yield done, resident_megabytes(pid), open_files(pid)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="(%(default)s)")
    args = parser.parse_args()
    need_wrk()
    rows = []
    for done, megabytes, files in soak(args.requests):
        rows.append((megabytes, files))
        print(f"{done:>8,} requests  {megabytes:.1f} MB  {files} files", flush=True)
    (memory, files), (last_memory, last_files) = rows[0], rows[-1]
    print(
        f"memory changed by {last_memory / memory - 1:+.1%}, open files by {last_files - files:+d}"
    )


if __name__ == "__main__":
    main()

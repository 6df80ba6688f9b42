"""What leaks over many requests: `python -m benchmarks.robustness.soak --requests 100000`.

Needs wrk. Prints resident memory and open files of the whole server after a warm-up of half as
many, in which every thread has met every kind of input, and then after every tenth of the requests.
"""

import argparse
from itertools import cycle

from benchmarks.robustness.fuzz import corpus
from benchmarks.serving.load import (
    FROG,
    need_wrk,
    open_files,
    ours,
    resident_megabytes,
    serving,
    wrk,
)


def soak(requests: int) -> list[tuple[int, float, int]]:
    """(requests since the warm-up, MB resident, open files), ten times and once before."""
    inputs = cycle([FROG.read_bytes(), *corpus(), b"no image"])
    rows = []
    with serving(ours()) as (address, pid):
        done = -requests // 2
        for tenth in range(11):
            while done < requests * tenth / 10:
                done += wrk(f"{address}/predict", next(inputs), 8, 1).requests
            rows.append((done, resident_megabytes(pid), open_files(pid)))
            print(f"{done:>8,} requests  {rows[-1][1]:.1f} MB  {rows[-1][2]} files", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="See whether the server leaks.")
    parser.add_argument("--requests", type=int, default=100_000, help="(%(default)s)")
    args = parser.parse_args()
    need_wrk()
    rows = soak(args.requests)
    growth = rows[-1][1] / rows[0][1] - 1
    print(f"memory changed by {growth:+.1%}, open files by {rows[-1][2] - rows[0][2]:+d}")


if __name__ == "__main__":
    main()

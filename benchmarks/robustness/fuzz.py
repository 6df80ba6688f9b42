"""Damaged and hostile image files: `python -m benchmarks.robustness.fuzz --inputs 20000`.

The generators of hostile_files.py take turns. Every input is a function of the seed and its number,
so that a finding can be made again. Stops at the first response that is neither 200 nor 4xx, or
that takes over ten seconds; prints the responses by status, the slowest, and by how much memory
grew after the first tenth.

A million: `--inputs 1000000`, or a part of them with each of several `--seed`, side by side.
`--start N` goes on where it was interrupted, and with `--inputs 1` makes input N again.
"""

import logging
import resource
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import command_line
from benchmarks.robustness.hostile_files import GENERATORS

if TYPE_CHECKING:
    from flask.testing import FlaskClient

MAX_SECONDS = 10.0  # on any machine; sandbox.py allows two of CPU
REPORT = 10_000  # inputs after which to say how far it is
EXPECTED = {200, 400, 413, 415, 422}


def fuzz(
    client: "FlaskClient", inputs: int, seed: int, start: int = 0
) -> tuple[Counter, float, float]:
    """Responses by status, the slowest in seconds, and how many MB memory grew.

    Raises AssertionError, naming the generator, seed and number of the input, at the first bad
    response.
    """
    names, statuses, slowest, before = list(GENERATORS), Counter(), 0.0, 0.0
    client.post("/predict", data=b"no image", content_type="image/jpeg")  # starts the sandbox
    for number in range(start, start + inputs):
        name = names[number % len(names)]
        data = GENERATORS[name](np.random.default_rng([seed, number]))
        began = time.perf_counter()
        response = client.post("/predict?top=1", data=data, content_type="image/jpeg")
        slowest = max(slowest, time.perf_counter() - began)
        statuses[response.status_code] += 1
        if response.status_code not in EXPECTED or slowest > MAX_SECONDS:
            raise AssertionError(
                f"input {number} of seed {seed} ({name}): {response.status_code} "
                f"{response.data!r} after {slowest:.2f} s"
            )
        if number == start + inputs // 10:
            before = peak_megabytes()
        if number % REPORT == REPORT - 1:
            print(f"{number + 1:,} inputs of seed {seed}", flush=True)
    return statuses, slowest, peak_megabytes() - before


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the generators (%(default)s)")
    parser.add_argument("--start", type=int, default=0, help="number of the first (%(default)s)")
    args = parser.parse_args()
    from rest_api.app import create_app

    logging.disable()
    statuses, slowest, growth = fuzz(create_app().test_client(), args.inputs, args.seed, args.start)
    responses = ", ".join(f"{count:,} x {status}" for status, count in statuses.most_common())
    print(f"{args.inputs:,} inputs, seed {args.seed}: {responses}")
    print(f"slowest response {1000 * slowest:.0f} ms, memory grew by {growth:.1f} MB")


if __name__ == "__main__":
    main()

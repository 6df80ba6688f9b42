"""The page and the figure of `python -m benchmarks.serving`."""

import datetime
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from matplotlib.figure import Figure

from benchmarks.common import spread, table
from benchmarks.serving.comparison import OURS, Comparison, Measured
from benchmarks.serving.load import COLUMNS, Load, medians
from training import plots

MOST_REFUSED = 0.1  # of the requests; with more, a median latency is mostly that of refusals
BUSY = 16  # connections

Rounds = Sequence[Mapping[str, Measured]]
Key = tuple[str, int]  # input, connections


def sections(seen: Comparison, stages: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All that was measured, as Markdown; `stages` are milliseconds by input."""
    times = [[name, *(f"{ms:.2f}" for ms in each.values())] for name, each in stages.items()]
    return [
        f"# Serving, side by side\n\n{datetime.date.today().isoformat()}, {os.cpu_count()} cores, "
        f"which the load generator (wrk) shares; {len(seen.rounds)} rounds, all servers in turn in "
        "each. Medians of the rounds; of ratios, the least and the most too. Written by "
        "`python -m benchmarks.serving`.",
        "## Compared with others\n\nThe ratio of our throughput to the other server's, and of its "
        f"median latency to ours ({OURS}: all show the network one view of a picture, but ours as "
        "shipped a second one where the first does not decide, here for the large picture). "
        '"refused": one of the two refused over a tenth of the requests.',
        table(
            ["input, connections", "other", "throughput ratio", "median-latency ratio"],
            compared(seen.rounds),
        ),
        "## Resources\n\nSeconds from the start to the first response, the least of the rounds; "
        "memory of all processes right after so many connections have sent the last input; the "
        "installed packages, without bytecode.",
        resources(seen),
        "## The limit\n\nTwo processes that do the same without HTTP, and what share of their "
        f"throughput the server reaches at {BUSY} connections:",
        table(["input", "requests/s without HTTP", "reached (%)"], share_of_limit(seen)),
        "## Where the time goes\n\nMilliseconds of one request of the default model, as shipped, "
        "alone in a process:",
        table(["input", *next(iter(stages.values()))], times),
        "## All figures\n\nErrors include refusals (503).",
        table(["input, connections", "server", *COLUMNS], all_figures(seen.rounds)),
    ]


def loads(rounds: Rounds, server: str, key: Key) -> list[Load]:
    """What wrk measured of a server, by round."""
    return [each[server].loads[key] for each in rounds]


def ratios(rounds: Rounds, other: str, key: Key) -> tuple[list[float], list[float]]:
    """Our throughput over another server's, and its median latency over ours, by round.

    Infinite where the other answered nothing.
    """
    pairs = list(zip(loads(rounds, OURS, key), loads(rounds, other, key), strict=True))
    return (
        [a.throughput / b.throughput if b.throughput else math.inf for a, b in pairs],
        [b.p50 / a.p50 if b.throughput else math.inf for a, b in pairs],
    )


def mostly_answered(load: Load) -> bool:
    return load.refused <= MOST_REFUSED * load.requests


def compared(rounds: Rounds) -> Iterator[list[str]]:
    for key, other in product(rounds[0][OURS].loads, rounds[0]):
        if other == OURS:
            continue
        throughput, latency = map(spread, ratios(rounds, other, key))
        if not all(map(mostly_answered, loads(rounds, OURS, key) + loads(rounds, other, key))):
            latency = "refused"
        yield [f"{key[0]}, {key[1]}", other, throughput, latency]


def resources(seen: Comparison) -> str:
    last = seen.rounds[-1]
    heads = [f"resident, {number} (MB)" for number in last[OURS].resident]
    rows = []
    for name, installed in seen.installed.items():
        first = min(each[name].first_response for each in seen.rounds)
        megabytes = [*last[name].resident.values(), installed]
        rows.append([name, f"{first:.2f}", *(f"{each:,.0f}" for each in megabytes)])
    return table(["server", "first response (s)", *heads, "installed (MB)"], rows)


def share_of_limit(seen: Comparison) -> Iterator[list[str]]:
    for name in seen.limits[0]:
        most = [each[name] for each in seen.limits]
        reached = [load.throughput for load in loads(seen.rounds, OURS, (name, BUSY))]
        shares = [100 * ours / limit for ours, limit in zip(reached, most, strict=True)]
        yield [name, f"{statistics.median(most):,.0f}", spread(shares)]


def all_figures(rounds: Rounds) -> Iterator[list[str]]:
    for key, server in product(rounds[0][OURS].loads, rounds[0]):
        yield [f"{key[0]}, {key[1]}", server, *medians(loads(rounds, server, key))]


def draw(throughputs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Requests per second by input and server, a panel for each input."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(throughputs), sharey=True)
    for axes, (name, by_server) in zip(panels, throughputs.items(), strict=True):
        colours = [plots.BLUE if server == OURS else plots.GREY for server in by_server]
        drawn = axes.barh(list(by_server), list(by_server.values()), color=colours)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
        axes.set(title=name, xlabel="throughput (requests/s)")
        axes.margins(x=0.2)
        axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    return figure


def throughputs(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Medians at BUSY connections, by input and server."""

    def median(server: str, key: Key) -> float:
        return statistics.median(load.throughput for load in loads(rounds, server, key))

    keys = [key for key in rounds[0][OURS].loads if key[1] == BUSY]
    return {key[0]: {server: median(server, key) for server in rounds[0]} for key in keys}

"""How the cost of an answer grows: `python -m benchmarks.serving.growth`.

With the size of the photo, the images in one call of the network, the connections that ask at the
same time, and the processes that answer. Prints a table of each and draws images/growth_*.png.
Needs wrk.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.serving.__main__ import table
from benchmarks.serving.latency import jpeg_of_a_phone, milliseconds
from benchmarks.serving.load import FROG, ROOT, need_wrk, ours, serving, wrk
from rest_api.bundle import load_bundle
from rest_api.engine import load_engine
from rest_api.images import decode, to_square
from rest_api.settings import DEFAULT_MODEL
from training import plots

WIDTHS = (400, 800, 1600, 3200, 6400)  # pixels, of photos of 4:3
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
WORKERS = (1, 2, 3, 4)
SECONDS = 4

Lines = Mapping[str, Sequence[float]]


def by_pixels() -> tuple[list[float], Lines]:
    """Milliseconds to make a JPEG the network's input, by its megapixels."""
    side = load_bundle(DEFAULT_MODEL).input_size
    photos = [jpeg_of_a_phone(width, width * 3 // 4) for width in WIDTHS]

    def median(photo: bytes, decoded_for: int) -> float:
        times = milliseconds(lambda: to_square(decode(photo, decoded_for), side, "pad"), 15)
        return float(np.median(times))

    return [width**2 * 0.75 / 1e6 for width in WIDTHS], {
        "decoded in full": [median(p, w) for p, w in zip(photos, WIDTHS, strict=True)],
        "decoded at a reduced scale": [median(p, side) for p in photos],
    }


def by_batch() -> tuple[list[float], Lines]:
    """Milliseconds of the network for each image, by the images in one call; one thread."""
    bundle = load_bundle(DEFAULT_MODEL)
    shape = (bundle.input_size, bundle.input_size, 3)
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *shape), dtype=np.uint8)
    predict = load_engine(bundle)

    def median(number: int) -> float:
        predict(images[:number])  # the interpreter makes room for so many
        return float(np.median(milliseconds(lambda: predict(images[:number]), 50))) / number

    return list(BATCHES), {"8-bit LiteRT": [median(number) for number in BATCHES]}


def by_connections() -> tuple[list[float], Lines]:
    """Milliseconds until an answer, by the connections that ask, each again when answered."""
    loads = []
    with serving(ours("--queue", str(max(CONNECTIONS)))) as (address, _):
        for number in (CONNECTIONS[0], *CONNECTIONS):  # the first time is to warm up
            loads.append(wrk(f"{address}/predict", FROG.read_bytes(), number, SECONDS))
    return list(CONNECTIONS), {
        "99th percentile": [load.p99 for load in loads[1:]],
        "median": [load.p50 for load in loads[1:]],
    }


def by_workers() -> tuple[list[float], Lines]:
    """Answers a second at 16 connections, by the server's processes."""
    rates = {"256-pixel JPEG": FROG.read_bytes(), "12-megapixel JPEG": jpeg_of_a_phone()}
    lines: dict[str, list[float]] = {name: [] for name in rates}
    for number in WORKERS:
        with serving(ours("--workers", str(number))) as (address, _):
            for name, image in rates.items():
                wrk(f"{address}/predict", image, 16, 1)
                lines[name].append(wrk(f"{address}/predict", image, 16, SECONDS).per_second)
    return list(WORKERS), lines


def draw(x: Sequence[float], lines: Lines, x_label: str, y_label: str) -> Figure:
    """A line for each name, on log scales; what hardly varies, on a linear one from zero."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, y), colour, marker in zip(
        lines.items(), (plots.BLUE, plots.ORANGE), "os", strict=False
    ):
        axes.plot(x, y, color=colour, marker=marker, label=name)
    values = [value for y in lines.values() for value in y]
    if max(values) > 3 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        y_label += ", log scale"
    else:
        axes.set_ylim(0, 1.3 * max(values))
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=f"{x_label}, log scale", ylabel=y_label)
    axes.legend()
    return figure


def main() -> None:
    need_wrk()
    for name, measure, x_label, y_label in (
        ("pixels", by_pixels, "megapixels", "decode and resize (ms)"),
        ("batch", by_batch, "images in a call", "network, for each image (ms)"),
        ("connections", by_connections, "connections", "answer (ms)"),
        ("workers", by_workers, "processes", "answers a second"),
    ):
        x, lines = measure()
        rows = [
            [f"{value:g}", *(f"{y:,.3g}" for y in ys)]
            for value, *ys in zip(x, *lines.values(), strict=True)
        ]
        print(f"\n{y_label}\n\n{table([x_label, *lines], rows)}", flush=True)
        plots.save(draw(x, lines, x_label, y_label), ROOT / "images" / f"growth_{name}.png")


if __name__ == "__main__":
    main()

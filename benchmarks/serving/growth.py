"""How the cost of a prediction grows: `python -m benchmarks.serving.growth`.

With the size of the photo, the images in one call of the network, the connections that send at the
same time, and the server's processes. Prints a table of each and draws images/growth_*.png. Needs
wrk.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import FROG, ROOT, command_line, milliseconds, table
from benchmarks.serving.load import need_wrk, own_server, phone_photo, serving, wrk
from rest_api.bundle import load_bundle, sizes_of
from rest_api.engine import load_engine
from rest_api.images import decode, to_views
from rest_api.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (400, 800, 1600, 3200, 6400)  # pixels, of photos of 4:3
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
WORKERS = (1, 2, 3, 4)
SECONDS = 4

Lines = Mapping[str, Sequence[float]]


def by_pixels() -> tuple[list[float], Lines]:
    """Milliseconds to make a JPEG the network's input, by its megapixels."""
    bundle = load_bundle(DEFAULT_MODEL)
    side, views = bundle.input_size, bundle.views
    photos = [phone_photo(width, width * 3 // 4) for width in WIDTHS]

    def median(photo: bytes, decoded_for: int) -> float:
        times = milliseconds(lambda: to_views(decode(photo, decoded_for), side, views), 15)
        return float(np.median(times))

    return [width**2 * 0.75 / 1e6 for width in WIDTHS], {
        "decoded in full": [median(p, w) for p, w in zip(photos, WIDTHS, strict=True)],
        "decoded at a reduced scale": [median(p, max(sizes_of(views, side))) for p in photos],
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
    """Latency in milliseconds, by the connections that send, on each again when answered."""
    numbers = CONNECTIONS[0], *CONNECTIONS  # the first time is to warm up
    with serving(own_server("--queue", str(max(CONNECTIONS)))) as (address, _):
        loads = [wrk(f"{address}/predict", FROG.read_bytes(), n, SECONDS) for n in numbers][1:]
    p99s, medians = [load.p99 for load in loads], [load.p50 for load in loads]
    return list(CONNECTIONS), {"99th percentile": p99s, "median": medians}


def by_workers() -> tuple[list[float], Lines]:
    """Throughput in requests per second at 16 connections, by the server's processes."""
    images = {"256-pixel JPEG": FROG.read_bytes(), "12-megapixel JPEG": phone_photo()}
    lines: dict[str, list[float]] = {name: [] for name in images}
    for number in WORKERS:
        with serving(own_server("--workers", str(number))) as (address, _):
            for name, image in images.items():
                wrk(f"{address}/predict", image, 16, 1)
                lines[name].append(wrk(f"{address}/predict", image, 16, SECONDS).throughput)
    return list(WORKERS), lines


def draw(x: Sequence[float], lines: Lines, x_label: str, y_label: str) -> "Figure":
    """A line for each name, on log scales; what hardly varies, on a linear one from zero."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from training import plots

    figure, (axes,) = plots.grid(1, 1, 7, 4)
    looks = zip(lines.items(), (plots.BLUE, plots.ORANGE), "os", strict=False)
    for (name, y), colour, marker in looks:
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
    plots.log_x_axis(axes, x)
    axes.set(xlabel=f"{x_label}, log scale", ylabel=y_label)
    axes.legend()
    return figure


def main() -> None:
    command_line(__doc__).parse_args()
    need_wrk()
    from training import plots

    for name, measure, x_label, y_label in (
        ("pixels", by_pixels, "megapixels", "decode and resize (ms)"),
        ("batch", by_batch, "images in a call", "network, for each image (ms)"),
        ("connections", by_connections, "connections", "latency (ms)"),
        ("workers", by_workers, "processes", "throughput (requests/s)"),
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

"""Classify photos on Ray nodes, all on this machine, beside the plain command.

Photos of real sizes are made from those of a folder, in a temporary one of 1 GB: 2,000 files, under
as many names as photos are wanted. Measured are the commands as a whole, with their start. Each
node has one CPU of its own; the head and the command that waits have what is left.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.common import FROG, command_line, print_table, spread
from rest_api.classifier import load_model
from rest_api.settings import DEFAULT_MODEL

DIFFERENT = 2000  # photos; to make 20,000 would take longer than to classify them
NOISE = 5  # standard deviation, of 255
# Of ten photos; of a web page, a small and a large camera.
SIZES = [(1024, 768)] * 6 + [(2048, 1536)] * 3 + [(4032, 3024)]
# Even a cluster on one machine listens to others.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-a-cluster-for-tests-on-one-machine",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_worker_niceness": "0",  # as the plain command's
}


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Any]:
    """A cluster of a head without CPUs and nodes of one, whose address is `.address`.

    Commands that use it need the environment that is set meanwhile.
    """
    with patch.dict(os.environ, ENVIRONMENT):
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            add_node(cluster, cpus=0)
            for _ in range(nodes):
                add_node(cluster, cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Any, cpus: int) -> None:
    """Start a Ray node, up to three times: it ends if its agents take 15 seconds to start."""
    for last in (False, False, True):
        try:
            cluster.add_node(num_cpus=cpus, object_store_memory=10**8, include_dashboard=False)
            return
        except Exception:  # Ray has no other for this
            if last:
                raise


def pin_nodes(cluster: Any) -> None:
    """Give each node one CPU, in which all its processes run."""
    import psutil

    for cpu, node in enumerate(sorted(cluster.worker_nodes, key=lambda node: node.node_id)):
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children(recursive=True)):
            process.cpu_affinity([cpu])


def make_photo(task: tuple[Path, Path, int]) -> None:
    """Write a crop of a photo, enlarged to one of SIZES, as a JPEG file.

    Noise as of a camera makes its file as large as such photos are, and as slow to decode.
    """
    source, target, seed = task
    rng = np.random.default_rng(seed)
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    share = rng.uniform(0.6, 1)
    left, top = rng.uniform(0, 1 - share, 2)
    box = (left * width, top * height, (left + share) * width, (top + share) * height)
    size = SIZES[seed % len(SIZES)]
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box)).astype(np.int16)
    tiles = (-(-size[1] // 256), -(-size[0] // 256), 1)
    noise = np.tile(rng.normal(0, NOISE, (256, 256, 1)).round().astype(np.int16), tiles)
    pixels = (pixels + noise[: size[1], : size[0]]).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(target, quality=85)


def make_photos(sources: Path, folder: Path, number: int) -> None:
    folder.mkdir()
    files = sorted(path for path in sources.rglob("*.jpg"))
    if not files:
        sys.exit(f"error: {sources} holds no .jpg files.")
    names = [folder / f"{i:06}.jpg" for i in range(number)]
    tasks = [(files[i % len(files)], name, i) for i, name in enumerate(names[:DIFFERENT])]
    with Pool() as pool:
        pool.map(make_photo, tasks, chunksize=10)
    for i, name in enumerate(names[DIFFERENT:]):
        name.hardlink_to(names[i % DIFFERENT])


def start(*arguments: object, cpu: int | None = None) -> subprocess.Popen[bytes]:
    """Start `python -m rest_api.predict` on one CPU, or on all."""
    command = [sys.executable, "-m", "rest_api.predict", *map(str, arguments)]
    pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
    return subprocess.Popen([*pinned, *command], stderr=subprocess.DEVNULL, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for a command; returns the most memory that it had, in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: a command ended with status {process.returncode}.")
    return usage.ru_maxrss * 1024


def throughput(photos: Path, number: int, scratch: Path, rounds: int) -> None:
    """images/s of the plain command on one CPU, of one and of two nodes, in turn."""
    rates: dict[str, list[float]] = {"plain": [], "one node": [], "two nodes": []}
    for i in range(rounds):
        for nodes, (name, figures) in enumerate(rates.items()):
            output = scratch / f"{name}-{i}"
            with ray_cluster(nodes) if nodes else nullcontext() as cluster:
                if nodes:
                    pin_nodes(cluster)
                    options = ["--cluster", cluster.address]
                else:
                    options = ["--format", "csv"]
                began = time.perf_counter()
                process = start(photos, "--output", output, *options, cpu=None if nodes else 0)
                finish(process)
                figures.append(number / (time.perf_counter() - began))
    plain, one, two = rates.values()
    print_table(
        ["what", "images/s, median (least to most)"],
        [(name, spread(figures)) for name, figures in rates.items()],
    )
    pairs = list(zip(plain, one, two, strict=True))
    print(f"one node / plain: {statistics.median(o / p for p, o, _ in pairs):.2f}")
    print(f"two nodes / one: {statistics.median(t / o for _, o, t in pairs):.2f}", flush=True)


def cost(photos: Path) -> None:
    """CPU milliseconds of a photo of each size, which other work on the machine changes little."""
    model = load_model(DEFAULT_MODEL)
    rows = []
    for size in sorted(set(SIZES)):
        files = [photos / f"{i:06}.jpg" for i in range(100) if SIZES[i % len(SIZES)] == size]
        data = [file.read_bytes() for file in files]
        began = time.process_time()
        for each in data:
            model.classify(each, top=1)
        spent = 1000 * (time.process_time() - began) / len(data)
        kilobytes = sum(map(len, data)) / len(data) / 1000
        rows.append((f"{size[0]} × {size[1]}", f"{kilobytes:.0f}", f"{spent:.1f}"))
    print_table(["pixels", "kB", "CPU ms a photo"], rows)


def memory(address: str, numbers: tuple[int, int], scratch: Path) -> None:
    """The most memory of the command that waits, for few and for many small photos."""
    rows = []
    for number in numbers:
        folder = scratch / f"small-{number}"
        folder.mkdir()
        (folder / "0.jpg").write_bytes(FROG.read_bytes())
        for i in range(1, number):
            (folder / f"{i}.jpg").symlink_to("0.jpg")
        began = time.perf_counter()
        most = finish(start(folder, "--cluster", address, "--output", f"{folder}-out"))
        rows.append((f"{number:,}", f"{most / 2**20:.0f}", f"{time.perf_counter() - began:.0f}"))
    print_table(["photos", "driver's memory at most, MiB", "seconds"], rows)


def going_on(address: str, photos: Path, scratch: Path) -> None:
    """Seconds from the start of a command to its first new part, at first and after SIGKILL."""
    output = scratch / "killed"
    seconds = []
    for begun in (False, True):
        before = len(list(output.glob("predictions/*")))
        began = time.perf_counter()
        process = start(photos, "--cluster", address, "--output", output)
        while len(list(output.glob("predictions/*"))) == before:
            if process.poll() is not None:
                sys.exit(f"error: the command ended with status {process.returncode}")
            time.sleep(0.01)
        seconds.append(time.perf_counter() - began)
        if not begun:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finish(process)
    print_table(
        ["seconds from the command to its first finished part", ""],
        [
            ("at first, with the list of photos", f"{seconds[0]:.1f}"),
            ("after SIGKILL", f"{seconds[1]:.1f}"),
        ],
    )


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="cluster-", dir=args.scratch) as name:
        scratch = Path(name)
        photos = scratch / "photos"
        make_photos(args.photos, photos, args.images)
        size = sum(path.stat().st_size for path in photos.iterdir()) / args.images
        print(f"{args.images:,} photos of {size / 1000:.0f} kB on average", flush=True)
        cost(photos)
        throughput(photos, args.images, scratch, args.rounds)
        with ray_cluster(2) as cluster:
            going_on(cluster.address, photos, scratch)
            memory(cluster.address, (1_000, 3_000 if args.short else 100_000), scratch)


def parse_arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("photos", type=Path, help="a folder of .jpg files, to make photos from")
    add("--images", type=int, default=20_000, help="photos to make (%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--short", action="store_true", help="300 photos, one round, 3,000 rows")
    add("--scratch", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    if args.short:
        args.images, args.rounds = 300, 1
    return args


if __name__ == "__main__":
    main()

"""Servers started as their users start them, and load on them by wrk (`apt install wrk`)."""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import FROG, ROOT, encoded

BOUNDARY = "benchmark"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

# What wrk sends, and what it prints at its end: microseconds and counts.
SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "{form}"
function done(summary, latency)
  io.write(string.format(
    '{{"requests": %d, "seconds": %f, "refused": %d, "failed": %d, "p50": %f, "p99": %f}}\\n',
    summary.requests, summary.duration / 1e6, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk measured: latencies of all responses, refusals too, in milliseconds."""

    requests: int
    seconds: float
    refused: int  # responses of a status above 399
    failed: int  # requests without a response
    p50: float
    p99: float

    @property
    def throughput(self) -> float:
        """Answered requests per second."""
        return (self.requests - self.refused) / self.seconds


# Of several rounds: the columns that `medians` makes.
COLUMNS = ("throughput (requests/s)", "p50 (ms)", "p99 (ms)", "errors")


def medians(rounds: Sequence[Load]) -> list[str]:
    """The cells of a table's row: medians of the rounds, and all that was refused or failed."""
    throughput, p50, p99 = (
        statistics.median(getattr(load, name) for load in rounds)
        for name in ("throughput", "p50", "p99")
    )
    errors = sum(load.failed + load.refused for load in rounds)
    return [f"{throughput:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{errors}"]


def pictures() -> dict[str, bytes]:
    """What is sent: a small PNG, a middling JPEG, a photo of a phone."""
    return {
        "32-pixel PNG": encoded(Image.open(FROG).resize((32, 32)), "PNG"),
        "256-pixel JPEG": FROG.read_bytes(),
        "12-megapixel JPEG": phone_photo(),
    }


def phone_photo(width: int = 4000, height: int = 3000) -> bytes:
    """A JPEG as large as a phone's: smooth shapes and the noise of a camera."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    return encoded(Image.fromarray(noisy), "JPEG", quality=90)


def multipart(image: bytes) -> bytes:
    """The body that `curl -F image=@…` sends."""
    head = 'Content-Disposition: form-data; name="image"; filename="image"'
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(connection: http.client.HTTPConnection, image: bytes) -> int:
    """POST an image to /predict; returns the status once the whole response is there."""
    connection.request("POST", "/predict", multipart(image), FORM)
    response = connection.getresponse()
    response.read()
    return response.status


def first_response(url: str, image: bytes | None = None) -> float:
    """Seconds until a server that has just been started answers a GET, or the POST of an image."""
    request = urllib.request.Request(url, multipart(image) if image else None, FORM)
    start = time.perf_counter()
    while True:
        try:
            urllib.request.urlopen(request, timeout=60).close()
            return time.perf_counter() - start
        except OSError:
            if time.perf_counter() - start > 60:
                raise
            time.sleep(0.005)


def wrk(url: str, image: bytes, connections: int, seconds: float) -> Load:
    """POST an image on so many connections, on each again as soon as it is answered."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(multipart(image))
        script.write_text(SCRIPT.format(body=body, form=FORM["Content-Type"]))
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        run = subprocess.run(
            ["wrk", *options, "-s", str(script), url], capture_output=True, text=True, check=True
        )
    return Load(**json.loads(run.stdout.splitlines()[-1]))


def free_port() -> int:
    """A free port below Linux's ephemeral range, of which connections get theirs."""
    while True:
        port = 10000 + secrets.randbelow(22768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A server by its command, in which {port} stands for its port; yields its port and PID."""
    port = free_port()
    process = subprocess.Popen(
        [part.format(port=port) for part in command],
        cwd=ROOT,
        # Bytecode may be written, as where users start it: the second start is quick.
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            with suppress(ProcessLookupError):  # LitServe leaves its workers behind
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def serving(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server that is ready; yields its address and PID."""
    with started(command) as (port, pid):
        address = f"http://127.0.0.1:{port}"
        first_response(f"{address}/health/ready")
        yield address, pid


def own_server(*options: str) -> list[str]:
    """The command that starts this project's server."""
    return [sys.executable, "rest_api/app.py", "--port", "{port}", "--drain", "0", *options]


def family(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    children: list[str] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():  # each has the children that it started
            with suppress(FileNotFoundError, ProcessLookupError):  # they are another thread's then
                children += (thread / "children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the name of the process, its state the first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def resident_megabytes(pid: int) -> float:
    """Memory of a process and its children, what they share counted once."""
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid)]
    return sum(int(kb) for kb in re.findall(r"^Pss: +(\d+)", "".join(rollups), re.M)) / 1024


def wait_until_idle(pid: int) -> None:
    """Wait for a server that still works on requests whose client has gone."""

    def activity() -> tuple[float, bool]:
        """Seconds that all its processes have worked, and whether one wants to work now."""
        stats = [stat_of(each) for each in family(pid)]
        ticks = sum(int(n) for stat in stats for n in stat[11:13])  # in user and kernel mode
        return ticks / os.sysconf("SC_CLK_TCK"), any(stat[0] == "R" for stat in stats)

    before, _ = activity()
    for _ in range(300):
        time.sleep(0.2)
        now, runnable = activity()
        if now - before < 0.04 and not runnable:  # a fifth of a core
            return
        before = now
    raise RuntimeError("The server still works a minute after its last request.")


def open_files(pid: int) -> int:
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in family(pid))


def need_wrk() -> None:
    if not shutil.which("wrk"):
        sys.exit("error: this needs wrk: apt install wrk")

"""Servers started as their users start them, and load on them by wrk (`apt install wrk`)."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FROG = ROOT / "rest_api" / "frog.jpg"
BOUNDARY = "benchmark"

# What wrk sends, and what it prints at its end: microseconds and counts.
SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "multipart/form-data; boundary={boundary}"
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
    """What wrk saw; `refused` are answers above 399, `failed` got none. Milliseconds."""

    requests: int
    seconds: float
    refused: int
    failed: int
    p50: float
    p99: float

    @property
    def per_second(self) -> float:
        return (self.requests - self.refused) / self.seconds


def multipart(image: bytes) -> bytes:
    """The body that `curl -F image=@…` sends."""
    head = 'Content-Disposition: form-data; name="image"; filename="image"'
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def wrk(url: str, image: bytes, connections: int, seconds: float) -> Load:
    """POST an image from so many connections, each as fast as it is answered."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(multipart(image))
        script.write_text(SCRIPT.format(body=body, boundary=BOUNDARY))
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        run = subprocess.run(
            ["wrk", *options, "-s", str(script), url], capture_output=True, text=True, check=True
        )
    return Load(**json.loads(run.stdout.splitlines()[-1]))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
        process.wait(timeout=60)
        with suppress(ProcessLookupError):  # LitServe leaves its workers behind
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def serving(command: Sequence[str], path: str = "/health/ready") -> Iterator[tuple[str, int]]:
    """A server that answers at `path`; yields its address and PID."""
    with started(command) as (port, pid):
        address = f"http://127.0.0.1:{port}"
        wait_for(address + path)
        yield address, pid


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def ours(*options: str) -> list[str]:
    """The command that starts this project's server."""
    return [sys.executable, "rest_api/app.py", "--port", "{port}", "--drain", "0", *options]


def family(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def resident_megabytes(pid: int) -> float:
    """Memory of a process and its children, what they share counted once."""
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid)]
    return sum(int(kb) for kb in re.findall(r"^Pss: +(\d+)", "".join(rollups), re.M)) / 1024


def wait_until_idle(pid: int) -> None:
    """Wait for a server that still works on requests whose client has gone."""

    def seconds() -> float:  # that all its processes have worked, in user and kernel mode
        stats = [Path(f"/proc/{each}/stat").read_text() for each in family(pid)]
        ticks = (int(n) for stat in stats for n in stat.rpartition(")")[2].split()[11:13])
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    before = seconds()
    for _ in range(300):
        time.sleep(0.2)
        if (now := seconds()) - before < 0.04:  # a fifth of a core
            return
        before = now
    raise RuntimeError("The server still works a minute after its last request.")


def open_files(pid: int) -> int:
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in family(pid))


def need_wrk() -> None:
    if not shutil.which("wrk"):
        sys.exit("error: this needs wrk: apt install wrk")

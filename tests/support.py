"""What several test modules use: files, pictures, servers and commands."""

import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import numpy as np
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from benchmarks.serving.load import free_port

if TYPE_CHECKING:
    import keras

ROOT = Path(__file__).parent.parent
FROG = ROOT / "rest_api" / "frog.jpg"


def encode(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth shapes that no other seed has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def coloured(seed: int, channel: int) -> np.ndarray:
    """A picture that is mostly red, green or blue: (height, width, 3) uint8."""
    pixels = np.asarray(picture(seed)).copy()
    pixels[..., channel] = 255 - pixels[..., channel] // 8
    return pixels


def rename(bundle: Path, name: str, **changes: object) -> None:
    """Give a bundle another name, and whatever else of its model.json should differ."""
    manifest = json.loads((bundle / "model.json").read_text())
    (bundle / "model.json").write_text(json.dumps(manifest | {"name": name} | changes))


def small_backbone(*_: object, **__: object) -> "keras.Model":
    """Stands in for a backbone: quick, and good enough for colours."""
    import keras

    keras.utils.set_random_seed(0)
    images, maps = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    convolved = keras.layers.Conv2D(24, 3, strides=2)(maps)
    normed = keras.layers.BatchNormalization()(convolved)
    inner = keras.Model(maps, keras.layers.ReLU()(normed))
    return keras.Model(images, inner(keras.layers.Rescaling(1 / 127.5, -1)(images)), name="small")


def post(client: FlaskClient, data: bytes, query: str = "") -> TestResponse:
    """POST one image to /predict as curl -F does."""
    return client.post(f"/predict{query}", data={"image": (io.BytesIO(data), "photo.jpg")})


def error_of(module: str, *arguments: object) -> str:
    """The one line in which `python -m module` says why it ends."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    line = run.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@contextmanager
def server(
    *options: str,
    script: str = "rest_api/app.py",
    cwd: Path = ROOT,
    by_environment: bool = False,
) -> Iterator[tuple[subprocess.Popen, int]]:
    """A running server and its port; stopped by SIGTERM at the end.

    It writes into a file, `process.stdout`: a pipe that nobody reads would fill up and stop it.
    """
    port = free_port()
    at_once = [] if "--drain" in options else ["--drain", "0"]
    by_option = [] if by_environment else ["--port", str(port)]
    with NamedTemporaryFile("w") as log, Path(log.name).open() as output:
        process = subprocess.Popen(
            [sys.executable, script, *by_option, *options, *at_once],
            cwd=cwd,
            env=os.environ | ({"PORT": str(port)} if by_environment else {}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        process.stdout = output
        try:
            wait_for(port, process)
            yield process, port
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                process.kill()


def until(condition: Callable[[], object], what: str = "", seconds: float = 60) -> None:
    """Wait until something holds; fails, and says what, where it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Wait until the server is ready; fail with its output if it ends instead."""
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
            return
        except OSError:
            time.sleep(0.02)


def ask(port: int, chunked: bool = False) -> dict:
    """POST the frog as curl -F does, without a client library; the answer."""
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="frog.jpg"\r\n\r\n'
    body = head + FROG.read_bytes() + b"\r\n--x--\r\n"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict",
        iter([body[:5000], body[5000:]]) if chunked else body,
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)

"""Fixtures shared by the tests. None needs the network; those of real data skip without it."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from rest_api.app import create_app

ROOT = Path(__file__).parent.parent
FROG = ROOT / "rest_api" / "frog.jpg"


@pytest.fixture(scope="session")
def client() -> FlaskClient:
    """A client of the API as it is shipped."""
    return create_app().test_client()


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    """A directory in the official format, with 40 random images a file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = rng.integers(0, 256, (40, 3072), dtype=np.uint8)
        labels = [int(label) for label in np.arange(40) % 10]
        content = {b"data": pixels, b"labels": labels, b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


@pytest.fixture(scope="session")
def real_cifar() -> Path:
    """The directory of the real data set, or skip."""
    directory = os.environ.get("CIFAR10_DIR")
    if not directory:
        pytest.skip("needs the real CIFAR-10: set CIFAR10_DIR to its directory")
    return Path(directory)


def error_of(module: str, *arguments: object) -> str:
    """The one line in which `python -m module` says why it ends."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    line = run.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def post(client: FlaskClient, data: bytes, query: str = ""):
    """POST one image to /predict as curl -F does."""
    return client.post(f"/predict{query}", data={"image": (io.BytesIO(data), "photo.jpg")})

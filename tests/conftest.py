"""Fixtures shared by the tests. None needs the network; those of real data skip without it."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from playwright.sync_api import Browser, sync_playwright

from benchmarks.robustness.resume import write_cifar10
from rest_api.app import create_app

# By how long they take: with these first, no process is left with the longest at the end.
LONGEST = ("test_resume", "test_notebooks", "test_transfer", "test_train", "test_export")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))  # files stay whole


@pytest.fixture(scope="session")
def client() -> FlaskClient:
    """A client of the API as it is shipped."""
    return create_app().test_client()


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    """A directory in the official format, with 40 random images a file."""
    write_cifar10(tmp_path)
    return tmp_path


@pytest.fixture
def small_cifar100(tmp_path: Path) -> Path:
    """A directory in the official format, with two random images of each class."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    content = {b"data": pixels, b"fine_labels": [int(label) for label in np.arange(200) % 100]}
    (folder / "train").write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


@pytest.fixture(scope="session")
def real_cifar() -> Path:
    """The directory of the real data set, or skip."""
    directory = os.environ.get("CIFAR10_DIR")
    if not directory:
        pytest.skip("needs the real CIFAR-10: set CIFAR10_DIR to its directory")
    return Path(directory)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, or skip."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--use-fake-device-for-media-stream",  # a camera
                "--host-resolver-rules=MAP lan.test 127.0.0.1",  # a name that is not localhost
            ],
        )
        yield browser
        browser.close()

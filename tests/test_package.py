"""The package as people get it: installed into an empty environment, used in an empty directory."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.serving.load import free_port
from rest_api import __version__
from tests.support import FROG, ROOT, ask, wait_for

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
OFFLINE = ["--no-deps", "--no-index", "--disable-pip-version-check"]


def run(*command: object, cwd: Path) -> str:
    """What a command prints. Raises subprocess.CalledProcessError if it fails."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def build_wheel(folder: Path) -> Path:
    """Build the source distribution of the project as it stands, and the wheel from that alone."""
    source = folder / "source"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.split("\0")[:-1]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", program, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:  # without what they need, tests would not run
        assert not [
            name for name in archive.getnames() if "/tests/" in name and name.endswith(".py")
        ]
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", *OFFLINE, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def needed_by(package: Distribution, extras: set[str]) -> set[str]:
    """The names of the packages that one needs, and those that these need."""
    names = set()
    for line in package.requires or []:
        needed = Requirement(line)
        if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras | {""}):
            names |= {needed.name} | needed_by(distribution(needed.name), needed.extras)
    return names


def link(package: Distribution, site: Path) -> None:
    """Put a package that is installed here into another environment."""
    for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
        if not (site / name).exists():  # a namespace, such as google, is there after its first
            (site / name).symlink_to(package.locate_file(name))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that holds the wheel and what it says it needs, no more.

    What it needs is linked from the environment of the tests, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("package")
    wheel = build_wheel(folder)
    run(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=folder)
    python = folder / "environment" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, wheel, cwd=folder)
    (site,) = folder.glob("environment/lib/python*/site-packages")
    (metadata,) = site.glob("cifar10_cnn-*.dist-info")
    for name in needed_by(Distribution.at(metadata), set()):
        link(distribution(name), site)
    return python.parent


def read(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_server_runs_from_the_wheel_alone(commands, tmp_path):
    port = free_port()
    process = subprocess.Popen(
        [commands / "cifar10-serve", "--port", str(port), "--drain", "0", "--workers", "2"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(port, process)
        assert ask(port)["predictions"][0]["label"] == "frog"
        assert "<html" in read(port, "")
        assert "fetch(" in read(port, "static/page.js")
        picture = f"http://127.0.0.1:{port}/static/examples/frog.jpg"
        assert urllib.request.urlopen(picture, timeout=10).status == 200
        assert json.loads(read(port, "openapi.json"))["info"]["version"] == __version__
        counted = 'classifier_requests_total{route="/predict",status="200"} 1.0'
        for _ in range(20):  # whichever process answers
            assert counted in read(port, "metrics")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_predict_runs_from_the_wheel_alone(commands, tmp_path):
    answer = json.loads(run(commands / "cifar10-predict", "--format", "json", FROG, cwd=tmp_path))
    assert answer["predictions"][0]["label"] == "frog"
    program = (
        "import importlib.metadata, rest_api\n"
        "print(rest_api.__file__, importlib.metadata.version('cifar10-cnn'))"
    )
    where, version = run(commands / "python", "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(commands.parent)
    assert version == __version__


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["train fast94", "transfer photos", "export run bundle", "evaluate bundle"]
)
def test_training_without_its_extra_says_what_to_install(commands, tmp_path, line):
    command, *arguments = line.split()
    (tmp_path / "photos").mkdir()
    ended = subprocess.run(
        [commands / f"cifar10-{command}", *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    (error,) = ended.stderr.splitlines()
    assert error.startswith('error: training needs TensorFlow: pip install "cifar10-cnn[train]"')


def test_the_lock_holds_what_the_server_needs_at_hashes():
    """After a change of rest_api/requirements.txt, `make lock` takes it up."""
    lock = (ROOT / "rest_api" / "requirements.lock").read_text(encoding="utf-8")
    blocks = re.findall(r"^([a-z0-9-]+)==([^ ]+)(.*\n(?: {4}.*\n)+)", lock, re.MULTILINE)
    assert len(blocks) > 20
    assert all("--hash=sha256:" in rest for _, _, rest in blocks)
    wanted = (ROOT / "rest_api" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for requirement in map(Requirement, (line for line in wanted if line[:1] not in ("", "#"))):
        versions = [version for name, version, _ in blocks if name == requirement.name]
        assert versions, f"{requirement.name} is not in the lock: make lock"
        assert all(version in requirement.specifier for version in versions), "make lock"
    assert "://" not in lock  # an index of someone's own

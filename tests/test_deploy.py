"""The files for deployment: linted by tools of their own, and the image's steps taken for real."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from benchmarks.serving.load import free_port, resident_megabytes
from tests.support import ROOT, ask, wait_for

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TOOLS = Path(sys.executable).parent


def instructions(stage: int) -> list[tuple[str, str]]:
    """(instruction, argument) of a stage of the Dockerfile, by its number."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    pairs = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    starts = [i for i, (name, _) in enumerate(pairs) if name == "FROM"] + [len(pairs)]
    return pairs[starts[stage] : starts[stage + 1]]


def in_context(path: str) -> list[str]:
    """The tracked files that .dockerignore lets into the build."""
    listed = subprocess.run(
        ["git", "ls-files", path], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [name for name in listed if name.startswith("rest_api/") and name[-6:] != ".keras"]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """A folder that holds what the image does, made by the steps of its Dockerfile."""
    root = tmp_path_factory.mktemp("image")
    for name, argument in instructions(0):
        if name == "COPY":
            source, _ = argument.split()
            for file in in_context(source):
                (root / "app" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, root / "app" / file)
        elif name == "RUN":
            command = argument.replace("/venv", f"{root}/venv")
            command = re.sub(r"^python ", f"{sys.base_prefix}/bin/python3 ", command)
            subprocess.run(["bash", "-ec", command], cwd=root / "app", check=True)
        else:
            assert name in ("FROM", "WORKDIR"), f"the test does not know {name}"
    return root


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_image_installs_starts_answers_and_stops(image, capsys):
    (start,) = [argument for name, argument in instructions(1) if name == "CMD"]
    port = free_port()
    command = [part.replace("/venv", f"{image}/venv") for part in json.loads(start)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=image / "app",
        env={"PORT": str(port), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(port, process)
        seconds = time.perf_counter() - began
        assert ask(port)["predictions"][0]["label"] == "frog"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready") as response:
            assert response.status == 200
        resident = resident_megabytes(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=45) == 0
    finally:
        process.terminate()
        process.communicate(timeout=45)
    installed = megabytes(image)
    with capsys.disabled():
        print(
            f"\nimage: {installed:.0f} MB beside Python, {resident:.0f} MB resident, "
            f"ready after {seconds:.2f} s"
        )
    assert installed < 230  # with python:3.13-slim, 120 MB, under 350


def test_image_holds_no_tensorflow(image):
    packages = {path.name.lower() for path in (image / "venv").glob("lib/*/site-packages/*")}
    assert "flask" in packages
    assert not packages & {"tensorflow", "keras", "torch", "matplotlib"}


def test_image_runs_as_a_user_without_rights_and_checks_its_health():
    last = dict(instructions(1))
    assert last["USER"].isdecimal()
    assert int(last["USER"]) > 0
    assert "/health/ready" in last["HEALTHCHECK"]


def test_only_the_server_enters_the_build():
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    assert [rule for rule in rules if rule and rule[0] not in "#"] == [
        "*",
        "!rest_api",
        "**/__pycache__",
        "**/*.keras",
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        [
            "check-jsonschema",
            "--builtin-schema",
            "vendor.github-workflows",
            ".github/workflows/ci.yml",
        ],
        ["kubernetes-validate", "--strict", "deploy/kubernetes.yaml"],
    ],
    ids=["dockerfile", "compose", "workflow", "kubernetes"],
)
def test_tools_find_no_fault(command):
    run = subprocess.run(
        [TOOLS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_manifest_uses_the_servers_own_routes_and_options():
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == [
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    ]
    (container,) = documents[0]["spec"]["template"]["spec"]["containers"]
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")
    }
    assert probes == {"readiness": "/health/ready", "liveness": "/health/live"}
    help_text = subprocess.run(
        [sys.executable, "rest_api/app.py", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for option in [part for part in container["args"] if part.startswith("--")]:
        assert option in help_text
    assert container["command"] == ["/venv/bin/python", "rest_api/app.py"]


def test_procfile_starts_the_server():
    (line,) = (ROOT / "Procfile").read_text().splitlines()
    assert line == "web: python rest_api/app.py --host 0.0.0.0"


def test_workflow_tests_every_supported_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]

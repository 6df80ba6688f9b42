"""The files for deployment: linted by tools of their own, and the image's steps taken for real."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePath

import pytest
import yaml

from benchmarks.serving.load import free_port, resident_megabytes
from rest_api import gateway, sandbox
from rest_api.settings import Settings, parse_arguments
from tests.support import ROOT, ask, rename, server, wait_for

TOOLS = Path(sys.executable).parent
TENSORFLOW_PYTHONS = {"3.11", "3.12", "3.13"}


def instructions(stage: int) -> list[tuple[str, str]]:
    """(instruction, argument) of a stage of the Dockerfile, by its number."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    pairs = [
        (name, argument) for name, _, argument in (line.partition(" ") for line in lines if line)
    ]
    starts = [i for i, (name, _) in enumerate(pairs) if name == "FROM"] + [len(pairs)]
    return pairs[starts[stage] : starts[stage + 1]]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: the last rule for it, or for a folder above, says."""
    names = [path, *(str(folder) for folder in PurePath(path).parents[:-1])]
    out = False
    for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not rule.startswith("#") and any(fnmatch(name, rule.strip("!")) for name in names):
            out = not rule.startswith("!")
    return out


def files_of_the_project() -> list[str]:
    """The files of a checkout, new ones too, without those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def make_context(context: Path) -> None:
    """What `docker build` sends: the project with a bundle of one's own, by .dockerignore."""
    classic, mine = "rest_api/assets/cifar10-classic/", "bundles/mine/"
    files = [name for name in files_of_the_project() if not name.startswith(mine)]
    sources = {name: name for name in files}
    sources |= {name.replace(classic, mine): name for name in files if name.startswith(classic)}
    sources[mine + "model.keras"] = "README.md"
    for name, source in sources.items():
        if not ignored(name):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, context / name)
    rename(context / mine, "mine")


def build(context: Path, image: Path) -> None:
    """Take the steps of the Dockerfile's first stage, with `image` as the root folder."""
    (image / "app").mkdir()
    for name, argument in instructions(0):
        if name == "COPY":
            source, target = argument.split()
            destination = image / "app" / target
            if (context / source).is_dir():
                shutil.copytree(context / source, destination, dirs_exist_ok=True)
            else:
                destination.parent.mkdir(exist_ok=True)
                shutil.copy(context / source, destination)
        elif name == "RUN":
            command = argument.replace("/venv", f"{image}/venv")
            command = re.sub(r"^python ", f"{sys.base_prefix}/bin/python3 ", command)
            subprocess.run(
                ["bash", "-ec", command],
                cwd=image / "app",
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
                check=True,
            )
        else:
            assert name in ("FROM", "WORKDIR"), f"the test does not know {name}"


@contextmanager
def container(image: Path, *options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """The image as `docker run` starts it, and its port; stopped as Docker does."""
    (start,) = [argument for name, argument in instructions(1) if name == "ENTRYPOINT"]
    command = [part.replace("/venv", f"{image}/venv") for part in json.loads(start)]
    port = free_port()
    process = subprocess.Popen(
        [*command, *options],
        cwd=image / "app",
        env={"PORT": str(port), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(port, process)
        yield process, port
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=45) == 0
    finally:
        process.kill()
        process.communicate(timeout=45)


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def kubernetes(kind: str) -> dict:
    """The specification of the only such thing in deploy/kubernetes.yaml."""
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text("utf-8"))
    (spec,) = [document["spec"] for document in documents if document["kind"] == kind]
    return spec


def inference_service() -> dict:
    """The predictor in deploy/kserve.yaml."""
    document = yaml.safe_load((ROOT / "deploy" / "kserve.yaml").read_text("utf-8"))
    assert document["apiVersion"] == "serving.kserve.io/v1beta1"
    assert document["kind"] == "InferenceService"
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(document["spec"]) == {"predictor"}
    return document["spec"]["predictor"]


@pytest.mark.slow
def test_image_is_small_and_serves_its_own_model_and_those_in_bundles(tmp_path, capsys):
    reached = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "flask"])
    if reached.returncode:
        pytest.skip("needs a package index, to install the image's packages from")
    context, image = tmp_path / "context", tmp_path / "image"
    make_context(context)
    image.mkdir()
    build(context, image)

    packages = {path.name.lower() for path in (image / "venv").glob("lib/*/site-packages/*")}
    assert "flask" in packages
    assert not packages & {"tensorflow", "keras", "torch", "matplotlib"}
    assert not list((image / "app").rglob("*.keras"))
    installed = megabytes(image)
    assert installed < 230  # with python:3.13-slim, 120 MB, under 350

    began = time.perf_counter()
    with container(image) as (process, port):
        seconds = time.perf_counter() - began
        answer = ask(port)
        assert answer["predictions"][0]["label"] == "frog"
        assert answer["model"]["name"] == "cifar10"
        resident = resident_megabytes(process.pid)
    (pod,) = kubernetes("Deployment")["template"]["spec"]["containers"]
    with container(image, *pod["args"], "--model", "bundles/mine") as (_, port):
        assert ask(port)["model"]["name"] == "mine"
    with capsys.disabled():
        print(
            f"\nimage: {installed:.0f} MB beside Python, {resident:.0f} MB resident, "
            f"ready after {seconds:.2f} s"
        )


def test_image_runs_as_a_user_without_rights():
    last = dict(instructions(1))
    user, _, group = last["USER"].partition(":")  # without one, the group would be root's
    assert int(user) > 0
    assert int(group) > 0


def test_health_checks_ask_routes_that_the_server_has(client):
    (pod,) = kubernetes("Deployment")["template"]["spec"]["containers"]
    paths = {probe["httpGet"]["path"] for name, probe in pod.items() if name.endswith("Probe")}
    paths |= set(re.findall(r"\}(/health/\w+)", dict(instructions(1))["HEALTHCHECK"]))
    assert paths == {"/health/ready", "/health/live"}
    for path in paths:
        assert client.get(path).status_code == 200


@pytest.mark.slow
def test_health_check_of_the_image_asks_the_server_itself_whatever_proxy_is_set():
    _, _, arguments = dict(instructions(1))["HEALTHCHECK"].partition("CMD ")
    command = [sys.executable, *json.loads(arguments)[1:]]

    def status(port: int) -> int:
        env = os.environ | {"PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(command, env=env, capture_output=True).returncode

    with server("--workers", "1") as (_, port):
        assert status(port) == 0
    assert status(port) != 0  # nobody listens there now


def test_the_autoscaler_alone_sets_the_number_of_pods():
    """`kubectl apply` of a Deployment with replicas undoes what the autoscaler has chosen."""
    assert kubernetes("HorizontalPodAutoscaler")["scaleTargetRef"]["kind"] == "Deployment"
    assert "replicas" not in kubernetes("Deployment")


def test_pods_take_their_keys_from_a_secret_where_there_is_one():
    (pod,) = kubernetes("Deployment")["template"]["spec"]["containers"]
    keys = {variable["name"]: variable["valueFrom"] for variable in pod["env"]}["API_KEYS"]
    assert keys["secretKeyRef"]["optional"]


def test_kserve_asks_by_protocol_v2_for_routes_that_the_server_has(client):
    (pod,) = inference_service()["containers"]
    assert {"name": "PROTOCOL", "value": "v2"} in pod["env"]
    assert parse_arguments(pod["args"]).workers == 2
    for probe in ("readinessProbe", "livenessProbe"):
        assert client.get(pod[probe]["httpGet"]["path"]).status_code == 200
        assert pod[probe]["httpGet"]["port"] == pod["ports"][0]["containerPort"]
    assert f"EXPOSE {pod['ports'][0]['containerPort']}" in (ROOT / "Dockerfile").read_text("utf-8")


def test_kserve_gives_pods_what_kubernetes_gives_them():
    (ours,) = kubernetes("Deployment")["template"]["spec"]["containers"]
    (theirs,) = inference_service()["containers"]
    for key in ("image", "args", "resources"):
        assert theirs[key] == ours[key]
    assert ours["env"][0] in theirs["env"]


def test_what_is_not_kserves_in_its_file_is_a_pod(tmp_path):
    if not shutil.which("kubernetes-validate", path=TOOLS):
        pytest.skip("needs kubernetes-validate: pip install -r deploy/requirements.txt")
    spec = inference_service()
    # KServe's own fields, as its v1beta1 PredictorSpec has them beside those of a PodSpec
    own = [spec.pop(key) for key in ("canaryTrafficPercent", "minReplicas", "maxReplicas")]
    assert [type(value) for value in own] == [int] * 3
    assert own[0] <= 100
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "classifier"}, "spec": spec}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    command = [TOOLS / "kubernetes-validate", "--strict", tmp_path / "pod.yaml"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_heroku_builds_the_image_and_passes_it_one_option():
    manifest = yaml.safe_load((ROOT / "heroku.yml").read_text("utf-8"))
    assert set(manifest) == {"build", "run"}
    assert manifest["build"] == {"docker": {"web": "Dockerfile"}}
    (option,) = manifest["run"].values()
    assert parse_arguments(option.split(maxsplit=0)).workers == 2


@pytest.mark.parametrize(
    "command",
    [
        "hadolint Dockerfile",
        "check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml",
        "check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml",
        "check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml",
        "check-jsonschema --builtin-schema vendor.github-issue-forms"
        " .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml",
        "check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff",
        "kubernetes-validate --strict deploy/kubernetes.yaml",
    ],
    ids=["dockerfile", "compose", "workflow", "dependabot", "issue-forms", "citation", "pods"],
)
def test_tools_find_no_fault(command):
    tool, *arguments = command.split()
    if not shutil.which(tool, path=TOOLS):
        pytest.skip(f"needs {tool}: pip install -r deploy/requirements.txt")
    run = subprocess.run([TOOLS / tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_proxy_finds_no_fault_with_its_configuration():
    if not shutil.which("haproxy"):
        pytest.skip("needs HAProxy: apt install haproxy")
    command = ["haproxy", "-c", "-f", "deploy/haproxy.cfg"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stderr


def test_proxy_knows_how_much_a_process_takes_and_how_long():
    text, settings = (ROOT / "deploy" / "haproxy.cfg").read_text("utf-8"), Settings()
    (seconds,) = re.findall(r"timeout server (\d+)s", text)
    assert int(seconds) > gateway.QUEUE_TIMEOUT + sandbox.MAX_SECONDS
    (each,) = re.findall(r"default-server .* maxconn (\d+)", text)
    assert int(each) == settings.threads + settings.queue
    assert "option httpchk GET /health/ready" in text


def test_procfile_starts_the_server_on_the_port_of_the_environment():
    (line,) = (ROOT / "Procfile").read_text().splitlines()
    _, script, *options = shlex.split(line.removeprefix("web: "))
    with server(*options, script=script, by_environment=True) as (_, port):
        assert ask(port)["success"]


def test_continuous_integration_tries_every_python_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name.split()[-1] for name in project["classifiers"] if " Python :: 3." in name}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    tried = {name: set(jobs[name]["strategy"]["matrix"]["python"]) for name in ("package", "test")}
    assert tried == {"package": named, "test": named & TENSORFLOW_PYTHONS}

"""The README is part of the product: what it says must be so."""

import functools
import json
import re
import shlex
import statistics
import subprocess
import sys

import pytest

from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.gateway import MAX_BUFFERED
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, post
from training.cifar10 import recipes

README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [
    "rest_api.predict",
    "training.train",
    "training.evaluate",
    "training.export",
    "training.photos",
    "training.transfer",
    "benchmarks.robustness.overload",
    "benchmarks.serving",
    "benchmarks.training",
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@functools.cache
def help_of(*command: str) -> str:
    run = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_every_option_of_the_server_is_documented():
    options = set(re.findall(r"--[a-z-]+", help_of("rest_api/app.py"))) - {"--help"}
    assert options >= {"--host", "--port", "--model", "--workers", "--engine"}
    for option in options:
        assert f"`{option}`" in README, f"README does not explain {option}"


@pytest.mark.parametrize("module", ["rest_api.predict", "training.transfer"])
def test_every_option_is_documented(module):
    for option in set(re.findall(r"--[a-z-]+", help_of("-m", module))) - {"--help"}:
        assert f"`{option}`" in README, f"README does not explain {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_option_exists(page):
    own = re.sub(r"^docker .*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    documented = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", own))
    commands = [["rest_api/app.py"], *(["-m", module] for module in MODULES)]
    existing = set(re.findall(r"--[a-z-]+", "".join(help_of(*command) for command in commands)))
    assert documented <= existing, f"no command has {documented - existing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_command_names_files_and_modules_that_exist(page):
    commands = re.findall(r"^(?:python|make) .*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) > 4
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        if program == "make":
            assert arguments[0] in targets, command
        elif arguments[0] == "-m":
            module = ROOT / arguments[1].replace(".", "/")
            assert module.with_suffix(".py").exists(), command
        else:
            assert (ROOT / arguments[0]).exists(), command


def test_every_recipe_is_documented():
    for name in recipes.names():
        assert f"`{name}`" in README


def test_every_route_is_documented():
    routes = {rule.rule for rule in create_app().url_map.iter_rules()}
    for route in routes - {"/static/<path:filename>", "/docs/<path:name>"}:
        assert f" {route}`" in README


def test_every_code_of_a_refusal_is_documented():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "rest_api").glob("*.py")]
    codes = set(re.findall(r'(?:RequestError|refusal)\([^"]*?\d+, "(\w+)"', "".join(sources)))
    assert len(codes) > 10
    for code in codes | {"too_large", "not_found", "method_not_allowed", "too_many_requests"}:
        assert f"`{code}`" in README


def test_answer_in_the_readme_is_the_true_one(client):
    shown = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL).group(1))
    answer = post(client, FROG.read_bytes(), "?top=3").get_json()
    assert [p["label"] for p in shown["predictions"]] == [p["label"] for p in answer["predictions"]]
    for said, true in zip(shown["predictions"], answer["predictions"], strict=True):
        assert said["probability"] == pytest.approx(true["probability"], abs=0.002)
    assert set(shown) == set(answer)


def test_accuracy_in_the_readme_is_the_bundles():
    accuracy = load_bundle(DEFAULT_MODEL).manifest["accuracy"]
    assert f"{accuracy['litert']:.2%}".replace("%", " %") in README


def test_figures_of_the_recipe_are_those_of_its_runs():
    records = (ROOT / "benchmarks" / "training" / "records").glob("fast94-seed*-final.json")
    runs = [json.loads(path.read_text()) for path in records]
    assert {run["recipe"] for run in runs} == {"fast94"}
    assert all(run["images"] == 50_000 and run["measured_on"] == "test" for run in runs)
    table = README + (recipes.load("fast94") and sys.modules["training.recipes.fast94"].__doc__)
    for key, scale, unit in (("accuracy", 100, "%"), ("accuracy_tta", 100, "%")):
        values = [run[key] * scale for run in runs]
        figure = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} {unit}"
        assert table.count(figure) == 2, f"README and recipe must say {figure}"
    minutes = [run["seconds"] / 60 for run in runs]
    assert table.count(f"{statistics.mean(minutes):.1f} minutes") == 2
    assert f"n={len(runs)}" in table


def test_figures_of_classic_are_those_of_its_run():
    record = ROOT / "benchmarks" / "training" / "records" / "classic-seed0-final.json"
    run = json.loads(record.read_text())
    recipes.load("classic")
    minutes = f"{run['seconds'] / 60:.1f} minutes"
    for text in (README, sys.modules["training.recipes.classic"].__doc__):
        assert f"{run['accuracy']:.2%}".replace("%", " %") in text
        assert f"{run['accuracy_tta']:.2%}".replace("%", " %") in text
        assert minutes in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_quoted_rows_of_benchmarks_are_those_measured():
    measured = [
        line
        for name in ("serving/README.md", "training/README.md")
        for line in (ROOT / "benchmarks" / name).read_text(encoding="utf-8").splitlines()
    ]
    first = ("| 32-pixel", "| 256-pixel JPEG,", "| 12-megapixel", "| training step", "| matrix")
    quoted = [
        line
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith(first)
    ]
    assert len(quoted) > 15
    for line in quoted:
        assert line in measured


def test_bound_on_what_requests_hold_is_the_servers():
    assert f"at most {MAX_BUFFERED / 2**20:g} MiB in each process" in README


def test_top_level_is_what_the_layout_says():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {path.split("/")[0] + "/" for path in tracked if "/" in path} - {".ci/", ".github/"}
    for folder in folders:
        assert folder in README

"""Which package may import which, and what commands import before their arguments are read."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import ROOT

PACKAGES = ("rest_api", "training", "benchmarks")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def statements(node: ast.AST, in_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements of a module, optionally those inside its functions as well."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif in_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(child, in_functions)


def imported(module: str, in_functions: bool = True) -> set[str]:
    """The names of the modules that a module of ours imports, its own packages included."""
    names = set()
    for statement in statements(ast.parse(FILES[module].read_text("utf-8")), in_functions):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            assert not statement.level, f"{module}: relative imports hide where they lead"
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, 9)}


def reached(module: str) -> set[str]:
    """All modules of ours that importing a module imports."""
    found, ahead = set(), {module}
    while ahead:
        found |= ahead
        ahead = {n for name in ahead for n in imported(name, in_functions=False) & FILES.keys()}
        ahead -= found
    return found


def of(package: str) -> list[str]:
    return [name for name in FILES if f"{name}.".startswith(f"{package}.")]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("rest_api", {"training", "benchmarks", "tensorflow", "keras", "tests"}),
        ("training", {"benchmarks", "tests"}),
        ("training.photos", {"training.cifar10"}),
        ("training.cifar10", {"training.photos"}),
        ("benchmarks", {"tests"}),
    ],
)
def test_imports_go_one_way(package, forbidden):
    assert of(package)
    broken = {name: found for name in of(package) if (found := imported(name) & forbidden)}
    assert not broken


CLUSTER = {"rest_api.cluster", "rest_api.manifest", "training.cluster"}


def test_only_the_modules_of_the_cluster_import_what_it_needs():
    needed = {"ray", "pyarrow", "fsspec"}
    assert {name for name in of("rest_api") + of("training") if imported(name) & needed} == CLUSTER
    assert {name for name in CLUSTER if "ray" in imported(name)} == CLUSTER - {"rest_api.manifest"}


def test_nothing_loads_the_modules_of_the_cluster_but_the_option_that_asks_for_them():
    for name in FILES.keys() - CLUSTER:
        assert not reached(name) & CLUSTER, name


def test_photos_reach_nothing_of_cifar10_through_what_both_trainings_use():
    for name in of("training.photos"):
        assert not {each for each in reached(name) if each.startswith("training.cifar10")}, name


@pytest.mark.parametrize(
    "command", ["train", "study", "export", "evaluate", "transfer", "photos", "card"]
)
def test_help_comes_without_importing_tensorflow(command):
    script = (
        "import runpy, sys\n"
        "sys.argv.pop(0)\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, f"training.{command}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: " in run.stdout
    heavy = {"keras", "tensorflow", "matplotlib", "scipy.stats", "scipy.optimize"}
    assert not heavy & set(run.stdout.split())
    assert run.stderr == ""

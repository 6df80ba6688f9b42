"""The documentation is part of the product: what it says must be so."""

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import itertools
import json
import logging
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import requests
from prometheus_client.metrics import MetricWrapperBase

from benchmarks.common import mean_and_std
from rest_api import gateway, settings, telemetry
from rest_api.api import PARAMETERS
from rest_api.app import create_app
from rest_api.bundle import load_bundle
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, post
from training import metrics
from training.cifar10 import recipes

TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in TRACKED if name.endswith(".md")
}
RECORDS = ROOT / "benchmarks" / "training" / "records"
PHOTO_RECORDS = ROOT / "benchmarks" / "quality" / "records"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PYPROJECT["project"]["scripts"]
IMAGES = {"classifier", "vehicles"}  # as the pages call them
OTHERS = {"docker", "gcloud", "git", "heroku", "kill"}  # whose words are not checked


class CaughtError(Exception):
    """Carries the parser that a command was about to read its arguments with."""


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, without running more of it."""

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise CaughtError(parser)

    if importlib.util.find_spec(module).submodule_search_locations is not None:
        module += ".__main__"
    main = importlib.import_module(module).main
    assert re.search("parse_arg|command_line", inspect.getsource(main)), "would run for real"
    with (
        patch.object(argparse.ArgumentParser, "parse_args", catch),
        pytest.raises(CaughtError) as caught,
    ):
        main()
    return caught.value.args[0]


def options_of(module: str) -> dict[str, argparse.Action]:
    """The long options of a command, without --help and --version."""
    parser = parser_of(module)
    return {
        option: action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--version")
    }


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def blocks_in(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


def prose_of(text: str) -> str:
    """All but the fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command: lines of ```sh blocks, and inline code that is one."""
    for block in blocks_in(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)
    for code in code_in(prose_of(text)):
        if re.match(r"(python -m|python \S+\.py|make|pip|pytest|docker|cifar10-\w+)\s", code):
            yield shlex.split(code)
        elif re.match(r"(rest_api|training|benchmarks)(\.\w+)+( |$)", code):
            yield ["python", "-m", *shlex.split(code)]  # tables leave the first words out


def check(command: list[str]) -> None:
    """Raise AssertionError or SystemExit where a command would not be understood.

    One without arguments may be no more than the name of the command.
    """
    match [command[0].removeprefix(".venv/bin/"), *command[1:]]:
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert set(targets) <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
        case ["python", "-m", "venv", _]:
            pass
        case ["python", "-m", "pytest", path, *_] | ["pytest", path]:
            assert (ROOT / path).exists()
        case ["python", "-m", module]:
            parser_of(module)
        case ["python", "-m", module, *arguments]:
            parser_of(module).parse_args(arguments)
        case ["python", script, *arguments]:
            assert (ROOT / script).exists()
            parser_of(script.removesuffix(".py").replace("/", ".")).parse_args(arguments)
        case ["pip", "install", "-r", file]:
            assert (ROOT / file).exists()
        case ["pip", "install", what]:
            extras = PYPROJECT["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
            assert set(re.findall(r"^\.\[(.+)\]$", what)) <= set(extras)
        case ["docker", "run", *words]:  # the name of the image, then options of the server
            image = next(i for i, word in enumerate(words) if word in IMAGES)
            after = words[image + 1 :]
            if "--entrypoint" in words:
                check(["python", *after])
            else:
                parser_of("rest_api.app").parse_args(after)
        case (
            ["kubectl", "apply", "-f", file] | ["streamlit", "run", file] | ["haproxy", "-f", file]
        ):
            assert (ROOT / file).exists()
        case ["curl", *words]:
            adapter = create_app().url_map.bind("localhost")
            (url,) = [word for word in words if word.startswith("localhost:5000")]
            method = words[words.index("-X") + 1] if "-X" in words else "GET"
            adapter.match(urlsplit(f"http://{url}").path, method)
        case [script, *arguments] if script in SCRIPTS:
            parser_of(SCRIPTS[script].partition(":")[0]).parse_args(arguments)
        case [program, *_]:
            assert program in OTHERS, f"{program} is not checked"


def table(page: str, header: str) -> list[list[str]]:
    """The cells of each row of the table whose head starts with `header`."""
    start = TEXTS[page].index(f"\n| {header}") + 1
    lines = TEXTS[page][start:].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_readme_fits_on_a_few_screens():
    assert len(TEXTS["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("page", TEXTS)
def test_documented_commands_are_understood_by_their_parsers(page):
    for command in commands_in(TEXTS[page]):
        try:
            check(command)
        except (AssertionError, SystemExit, ImportError, LookupError) as error:
            pytest.fail(f"{shlex.join(command)}: {error!r}")


@pytest.mark.parametrize("page", TEXTS)
def test_options_in_prose_are_options_of_a_command_that_the_page_names(page):
    code = code_in(prose_of(TEXTS[page]))
    mentioned = {part for each in code for part in each.split() if re.match(r"--[a-z]", part)}
    modules = {"rest_api.app"} | {
        command[2] for command in commands_in(TEXTS[page]) if command[:2] == ["python", "-m"]
    }
    known = {"--help", "--version"}.union(*(options_of(module) for module in modules - {"venv"}))
    assert mentioned <= known


@pytest.mark.parametrize(
    ("page", "header", "module"),
    [
        ("docs/api.md", "option ", "rest_api.predict"),
        ("docs/training.md", "option of `training.train`", "training.train"),
        ("docs/training.md", "option of `training.export`", "training.export"),
        ("docs/training.md", "option of `training.evaluate`", "training.evaluate"),
        ("docs/your_own_photos.md", "option of `training.transfer`", "training.transfer"),
    ],
)
def test_table_of_options_is_the_commands(page, header, module):
    rows = {code_in(row[0])[0]: row for row in table(page, header)}
    named = {code for row in rows.values() for code in code_in(row[1])}
    options = options_of(module)
    assert set(rows) == set(options)
    for option, action in options.items():
        assert set(action.choices or ()) <= named, option
        if action.default and not isinstance(action.default, bool | list):
            default = str(action.default).removeprefix(f"{ROOT}/")
            assert rows[option][2].strip("`") == default, option


def test_table_of_the_servers_options_is_made_from_the_settings():
    assert settings.as_markdown() in TEXTS["docs/operations.md"]


def test_table_of_console_commands_is_the_packages():
    rows = table("README.md", "command | the same")
    assert {code_in(row[0])[0] for row in rows} == set(SCRIPTS)
    for script, same in rows:
        module = re.search(r"(?:-m )?([\w./]+)`$", same).group(1)
        documented = parser_of(module.removesuffix(".py").replace("/", "."))
        assert (
            documented.description
            == parser_of(SCRIPTS[code_in(script)[0]].partition(":")[0]).description
        )


def test_table_of_recipes_is_complete():
    assert {code_in(row[0])[0] for row in table("README.md", "recipe")} == set(recipes.names())


@pytest.mark.parametrize("page", TEXTS)
def test_environment_variables_in_the_documentation_are_read_by_the_code(page):
    named = {name for code in code_in(prose_of(TEXTS[page])) for name in variables(code)}
    sources = [(ROOT / name).read_text(encoding="utf-8") for name in TRACKED if name[-3:] == ".py"]
    for name in named:
        assert any(f'"{name}"' in source for source in sources), name


def variables(code: str) -> list[str]:
    return re.findall(r"^([A-Z0-9_]{4,})=", code) + re.findall(r"^\$([A-Z0-9_]+)$", code)


def test_table_of_routes_is_the_servers():
    routes = {
        f"{method} {rule.rule}"
        for rule in create_app().url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if "<path:" not in rule.rule  # files of the pages
    }
    headers = ("route | what", "route of protocol v2", "route of TensorFlow Serving")
    rows = [code_in(row[0])[0] for header in headers for row in table("docs/api.md", header)]
    names = {"NAME": "<name>", "VERSION": "<version>"}
    documented = {
        re.sub("NAME|VERSION", lambda match: names[match[0]], route)
        for row in rows
        for route in (re.sub(r"\[.*\]", "", row), re.sub(r"[][]", "", row))  # [optional]
    }
    assert documented == routes


def test_table_of_errors_is_what_the_server_raises():
    raised = {
        pair
        for path in (ROOT / "rest_api").glob("*.py")
        for pair in refusals(path.read_text(encoding="utf-8"))
    }
    by_flask = {(404, "not_found"), (405, "method_not_allowed"), (429, "too_many_requests")}
    documented = {
        (int(status), code_in(code)[0]) for status, code, _ in table("docs/api.md", "status")
    }
    assert documented == raised | by_flask


def refusals(source: str) -> Iterator[tuple[int, str]]:
    """(status, code) of each call that has both among its arguments, one after the other."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call):
            values = [arg.value if isinstance(arg, ast.Constant) else None for arg in call.args]
            for status, code in itertools.pairwise(values):
                if type(status) is int and 400 <= status < 600 and isinstance(code, str):
                    yield status, code


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_shown_answer_is_the_true_one(page, client):
    (shown,) = [
        answer
        for block in blocks_in(TEXTS[page], "json")
        if "predictions" in (answer := json.loads(block))
    ]
    answer = post(client, FROG.read_bytes(), "?top=3").get_json()
    assert [p["label"] for p in shown["predictions"]] == [p["label"] for p in answer["predictions"]]
    for said, true in zip(shown["predictions"], answer["predictions"], strict=True):
        assert said["probability"] == pytest.approx(true["probability"], abs=0.002)
    assert shown | {"predictions": 0} == answer | {"predictions": 0}


def test_shown_error_is_the_true_one(client):
    (shown,) = [
        json.loads(block) for block in blocks_in(TEXTS["docs/api.md"], "json") if "error" in block
    ]
    assert post(client, FROG.read_bytes(), "?top=0").get_json() == shown


@pytest.mark.parametrize("page", ["docs/api.md", "docs/clients.md"])
def test_shown_python_runs(page, client, monkeypatch, capsys):
    def post_to_client(url: str, files: dict, timeout: float = 0) -> SimpleNamespace:
        return SimpleNamespace(json=client.post(urlsplit(url).path, data=files).get_json)

    class Gradio:  # is not installed: shows what the function that it is given says
        Image = Label = staticmethod(lambda **_: None)
        Error = RuntimeError

        def __init__(self, function, *_):
            print(function(str(FROG)))

        def launch(self):
            print("launched")

        Interface = classmethod(lambda cls, *arguments: cls(*arguments))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(requests, "post", post_to_client)
    monkeypatch.setitem(sys.modules, "gradio", Gradio)
    for block in blocks_in(TEXTS[page], "python"):
        exec(block, {})  # noqa: S102
        assert "frog" in capsys.readouterr().out


def test_shown_line_of_the_log_has_the_fields_of_a_true_one(client, caplog):
    (block,) = blocks_in(TEXTS["docs/operations.md"], "json")
    with caplog.at_level(logging.INFO, "rest_api.requests"):
        post(client, FROG.read_bytes())
    assert list(json.loads(block)) == list(json.loads(caplog.messages[-1]))


def test_table_of_metrics_is_what_the_server_counts():
    metrics = [value for value in vars(telemetry).values() if isinstance(value, MetricWrapperBase)]
    counted = {
        family.name + ("_total" if family.type == "counter" else ""): set(metric._labelnames)
        for metric in metrics
        for family in metric.describe()
    }
    rows = table("docs/operations.md", "metric")
    assert {code_in(name)[0]: set(code_in(labels)) for name, labels, _ in rows} == counted


def test_parameters_in_the_documentation_are_those_that_are_read():
    rows = table("docs/api.md", "parameter in the query")
    assert [code_in(name)[0] for name, *_ in rows] == list(PARAMETERS)


def test_limits_in_the_documentation_are_the_gateways():
    text = " ".join(TEXTS["docs/operations.md"].split())
    assert f"at most {gateway.MAX_BUFFERED / 2**20:g} MiB in each process" in text
    assert f"over {gateway.READ_TIMEOUT:g} seconds to arrive gets 408" in text
    assert f"not come after {gateway.QUEUE_TIMEOUT:g} seconds is refused" in text
    assert f"kept some of it for over {gateway.PATIENCE:g} seconds are closed" in text


def figures_of_runs(recipe: str) -> tuple[int, list[str]]:
    """The number of recorded runs on the test set, and what they came to."""
    runs = [json.loads(path.read_text()) for path in RECORDS.glob(f"{recipe}-seed*-final.json")]
    assert {run["recipe"] for run in runs} == {recipe}
    assert all(run["images"] == 50_000 and run["measured_on"] == "test" for run in runs)
    return len(runs), [
        mean_and_std([100 * run["accuracy_tta"] for run in runs], " %"),
        mean_and_std([100 * run["accuracy"] for run in runs], " %"),  # one view
        f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f} minutes",
    ]


@pytest.mark.parametrize("recipe", ["fast94", "fast94_2025", "classic", "street"])
def test_evidence_of_a_recipe_is_that_of_its_runs(recipe):
    n, figures = figures_of_runs(recipe)
    assert all(figure in evidence(recipe) for figure in [*figures, f"n={n}"])


def test_time_of_fast94_is_that_of_runs_in_turn_with_its_predecessor():
    seconds = {
        name: [
            json.loads((RECORDS / f"{name}-seed{seed}-final.json").read_text())["seconds"]
            for seed in range(3)
        ]
        for name in ("fast94", "fast94_2025")
    }
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    for text in (TEXTS["docs/performance.md"], evidence("fast94")):
        assert f"{mean_and_std(ratios)} of the time" in text


@pytest.mark.parametrize("recipe", ["fast94", "classic", "street"])
def test_figures_of_a_recipe_in_the_readme_are_those_of_its_runs(recipe):
    n, figures = figures_of_runs(recipe)
    rows = table("README.md", "what | figure")
    (first,) = [i for i, row in enumerate(rows) if row[0].startswith(f"`{recipe}` on the ")]
    assert [row[1] for row in rows[first : first + 3]] == figures
    assert f"n={n} seed" in rows[first][0]


def test_figures_of_the_default_model_are_the_recorded_ones():
    rows = table("README.md", "the default model")
    shown = [f"{n}; {share}; {interval}" for _, n, share, interval in rows]
    photos = photo_figures("cifar10")
    measures = (
        "right (accuracy)",
        "right of those answered (selective accuracy)",
        "all others: answered",
    )
    assert shown[1:] == [
        f"{n}; {share.replace('%', ' %')}; {interval.replace('%', '', 1).replace('%', ' %')}"
        for n, share, interval in (photos[name] for name in measures)
    ]
    test = json.loads((PHOTO_RECORDS / "cifar10-test.json").read_text())
    assert test["accuracy"] == load_bundle(DEFAULT_MODEL).manifest["accuracy"]["litert"]
    low, high = metrics.interval(round(test["accuracy"] * test["images"]), test["images"])
    interval = f"{100 * low:.2f} to {percent(high)}"
    assert shown[0] == f"{test['images']:,}; {percent(test['accuracy'])}; {interval}"


def test_size_of_the_default_models_squares_is_its_bundles():
    size = load_bundle(DEFAULT_MODEL).input_size
    assert f"squares as the network takes them ({size} for the default model)" in TEXTS[
        "docs/api.md"
    ].replace("\n", " ")


def test_figures_of_photos_in_the_benchmarks_are_the_recorded_ones():
    ours, former = (photo_figures(name) for name in ("cifar10", "cifar10-fast94"))
    for measure, _, *cells in table("benchmarks/README.md", "measure | photos | `cifar10`"):
        name = {
            "accuracy": "right (accuracy)",
            "expected calibration error": "expected calibration error",
            "coverage": "answered (coverage)",
            "selective accuracy": "right of those answered (selective accuracy)",
            "OOD photos answered": "all others: answered",
            "OOD photos answered at over 90%": "all others: answered at over 90%",
            "AUROC": "all others: AUROC",
            "FPR95": "all others: FPR95",
        }.get(measure)
        if name:
            figures = [each[name][1:] for each in (ours, former)]
            assert cells == [f"{a} ({b})" if b else a for a, b in figures]


def photo_figures(bundle: str) -> dict[str, list[str]]:
    """The figures of a shipped bundle on photos: number, share, interval of each measure."""
    return json.loads((PHOTO_RECORDS / f"{bundle}-photos.json").read_text())["figures"]


def percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def evidence(recipe: str) -> str:
    """The head of a recipe's module, read without importing Keras."""
    path = ROOT / "training" / "cifar10" / "recipes" / f"{recipe}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_throughput_in_the_readme_is_the_measured_one():
    record = TEXTS["benchmarks/serving/README.md"]
    ours = re.search(r"\| 256-pixel JPEG, 16 \| ours, as shipped \| ([\d,]+) \|", record).group(1)
    ratios = [
        re.search(rf"\| 256-pixel JPEG, 16 \| {other} \| ([\d.]+) \(", record).group(1)
        for other in ("LitServe", "BentoML", "blog pattern")
    ]
    assert f"| {ours} requests/s |" in TEXTS["README.md"]
    assert f"| {', '.join(ratios)} times |" in TEXTS["README.md"]


def test_quoted_rows_of_benchmarks_are_those_measured():
    measured = {
        line
        for name in ("benchmarks/serving/README.md", "benchmarks/training/README.md")
        for line in TEXTS[name].splitlines()
    }
    first = ("| 32-pixel", "| 256-pixel JPEG", "| 12-megapixel JPEG", "| training step", "| matrix")
    quoted = [line for line in TEXTS["docs/performance.md"].splitlines() if line.startswith(first)]
    assert len(quoted) == 9 + 3 + 5
    assert set(quoted) <= measured


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[page]):
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in headings}


def test_layout_in_the_architecture_is_the_repositorys():
    drawn = set(paths_in(blocks_in(TEXTS["docs/architecture.md"], "")[0]))
    missing = {path for path in drawn if not (ROOT / path).exists()}
    assert not missing
    tops = {name.split("/")[0] for name in TRACKED if "/" in name and name[0] != "."}
    modules = {
        name
        for name in TRACKED
        if re.fullmatch(r"(rest_api|training|training/cifar10|training/photos)/[a-z]\w*\.py", name)
    }
    assert tops | modules <= drawn


def paths_in(drawing: str) -> Iterator[str]:
    """The paths of a layout, in which what is indented lies in the folder above it."""
    folders: list[tuple[int, str]] = []
    for line in drawing.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [each for each in folders if each[0] < indent]
        inside = "".join(name for _, name in folders)
        for name in re.match(r"\s*((?:[\w.]+/? )*[\w.]+/?)(?=  |$)", line).group(1).split():
            yield (inside + name).rstrip("/")
            if name.endswith("/"):
                folders.append((indent, name))

"""The one table of options: what the command line makes of it, and the documentation."""

import subprocess
import sys
from pathlib import Path

import pytest

from rest_api import __version__, app
from rest_api.app import create_app
from rest_api.settings import DEFAULT_MODEL, MIB, Settings, as_markdown, options, parse_arguments
from tests.support import ROOT


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("PORT", "API_KEYS"):
        monkeypatch.delenv(name, raising=False)


def test_no_arguments_give_the_defaults():
    assert parse_arguments([]) == Settings()


def test_every_setting_has_an_option_and_a_row_of_the_table():
    assert len({each.flag for each in options()}) == len(Settings.__dataclass_fields__)
    rows = as_markdown().splitlines()
    assert "| `--max-body` | MiB of a request | 10 |" in rows
    assert "| `--cors` | an origin whose pages may send requests from a browser; " in rows[14]
    assert [row.split("`")[1] for row in rows] == [each.flag for each in options()]


def test_units_lists_and_zero_are_read():
    arguments = "--max-body 3 --drain 0 --model a/ --model b/ --cors https://x --rate-limit 9/hour"
    assert parse_arguments(arguments.split()) == Settings(
        max_body=3 * MIB,
        drain=0,
        models=(Path("a"), Path("b")),
        cors_origins=("https://x",),
        rate_limit="9/hour",
    )


def test_environment_gives_what_the_command_line_does_not(monkeypatch, tmp_path):
    monkeypatch.setenv("PORT", "8000")
    monkeypatch.setenv("API_KEYS", "one two")
    assert parse_arguments([]) == Settings(port=8000, api_keys=("one", "two"))
    (tmp_path / "keys").write_text("three\n")
    arguments = ["--port", "9000", "--api-keys", str(tmp_path / "keys")]
    assert parse_arguments(arguments) == Settings(port=9000, api_keys=("three",))


def test_bare_name_is_a_shipped_model_unless_there_is_such_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dishes").mkdir()
    arguments = "--model scenes --model dishes --model dir/scenes --model scenes/"
    assert parse_arguments(arguments.split()).models == (
        DEFAULT_MODEL.with_name("scenes"),
        Path("dishes"),
        Path("dir/scenes"),
        Path("scenes"),
    )


def test_version_is_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--version"])
    assert capsys.readouterr().out == f"cifar10-cnn {__version__}\n"


@pytest.mark.parametrize(
    ("flag", "value", "complaint"),
    [
        ("--port", "99999", "'99999' is not a whole number from 1 to 65535"),
        ("--port", "http", "'http' is not a whole number"),
        ("--workers", "0", "from 1 to 256"),
        ("--engine", "onnx", "invalid choice: 'onnx'"),
        ("--model", "absent", "'absent' is no path and no shipped model: these are airplane-or-"),
        ("--model", "a" * 300, "aaa' is no path and no shipped model: these are airplane-or-"),
        ("--queue", "-1", "from 0 to 1000"),
        ("--max-pixels", "1e9", "from 1 to 178"),
        ("--rate-limit", "often", "'often' is not a rate such as 60/minute"),
        ("--rate-limit", "1/fortnight", "'1/fortnight' is not a rate such as 60/minute"),
        ("--rate-storage", "redis://127.0.0.1:1", "redis://127.0.0.1:1 cannot be"),
        ("--rate-storage", "nowhere", "nowhere cannot be used: unknown storage"),
        ("--api-keys", "nowhere", "cannot read nowhere"),
        ("--cors", "example.org", "'example.org' is no origin such as https://example.org"),
        ("--cors", "https://example.org/", "is no origin"),
        ("--cors", "https://Example.org", "is no origin"),  # as no browser sends it
        ("--cors", "https://", "is no origin"),
    ],
)
def test_senseless_option_is_refused_by_name(flag, value, complaint, capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments([flag, value])
    assert end.value.code == 2
    (line,) = (each for each in capsys.readouterr().err.splitlines() if "error:" in each)
    assert f"argument {flag}: " in line
    assert complaint in line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no key"),
        (" \n", "holds no key"),
        ("ключ", "ASCII"),
        ("secret\n# of the team", "line 2 of"),
        ("alice: secret", "line 1 of"),
    ],
)
def test_file_of_no_usable_key_does_not_open_the_server(content, complaint, tmp_path, capsys):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(SystemExit):
        parse_arguments(["--api-keys", str(tmp_path / "keys")])
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("keys", ["", " "])
def test_environment_of_no_usable_key_does_not_open_the_server(keys, monkeypatch):
    monkeypatch.setenv("API_KEYS", keys)
    with pytest.raises(SystemExit, match=r"error: \$API_KEYS holds no key"):
        parse_arguments([])


def test_application_of_another_server_heeds_the_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("API_KEYS", "secret")
    assert create_app().test_client().get("/models").status_code == 401


def test_command_line_is_read_before_anything_heavy_is_imported():
    heavy = "('flask', 'numpy', 'prometheus_client', 'httptools')"
    script = f"import sys, rest_api.app; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(("platform", "told"), [("darwin", True), ("linux", False)])
def test_port_that_airplay_has_is_explained_on_macos(monkeypatch, platform, told):
    def taken(address, **_):
        raise OSError(48, "Address already in use")

    monkeypatch.setattr(app.sys, "platform", platform)
    monkeypatch.setattr(app.socket, "create_server", taken)
    with pytest.raises(SystemExit) as end:
        app.check(Settings())
    assert str(end.value).startswith("error: cannot listen on 127.0.0.1:5000: Address already")
    assert "--port 8000" in str(end.value)
    assert ("AirPlay" in str(end.value)) == told


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
def test_host_that_can_have_no_address_is_refused_in_one_line(host):
    with pytest.raises(SystemExit) as end:
        app.check(Settings(host=host))
    message = f"error: cannot listen on {host}:5000: not a valid host name. Choose another"
    assert str(end.value).startswith(message)
    assert str(end.value).endswith("or another --host.")


def test_bundle_that_may_not_be_read_is_not_taken_for_a_port(monkeypatch):
    def forbidden(path, pattern):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "glob", forbidden)
    with pytest.raises(SystemExit) as end:
        app.check(Settings(models=(Path("bundles/mine"),)))
    assert str(end.value) == "error: bundles/mine cannot be read (Permission denied)."

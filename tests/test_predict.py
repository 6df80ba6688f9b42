"""Prediction without a server."""

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rest_api import __version__, predict
from rest_api.bundle import load_bundle
from rest_api.classifier import Prediction
from rest_api.errors import interruptible
from rest_api.files import files_of, needs_ray
from rest_api.images import FORMATS as FORMATS_OF_IMAGES
from rest_api.images import read_image
from rest_api.predict import FORMATS, MANY, already_in, classify_all, csv_header
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, encode, error_of, picture, post


def run(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rest_api.predict", *map(str, arguments)],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
    )


@pytest.fixture
def folder(tmp_path):
    """Three images at different depths, a text file and a hidden one."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    photos = tmp_path / "photos"
    (photos / "a.jpg").write_bytes(FROG.read_bytes())
    (photos / "deep" / "b.png").write_bytes(encode(Image.new("RGB", (40, 30), "blue")))
    (photos / "deep" / "c.jpg").write_bytes(FROG.read_bytes())
    (photos / "notes.txt").write_text("not an image")
    (photos / ".hidden").write_text("nor this")
    return photos


@pytest.mark.parametrize(
    ("options", "says"),
    [([], "\nStopped."), (["--output", "a.csv"], "\nStopped. The same command continues.")],
)
def test_interruption_says_whether_the_same_command_continues(monkeypatch, options, says):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "classify_here", interrupted)
    monkeypatch.setattr("sys.argv", ["predict", "photo.jpg", "--format", "csv", *options])
    with pytest.raises(SystemExit) as stopped:
        predict.main()
    assert stopped.value.code == says


def test_interruption_of_compiled_code_is_one_too():
    def compiled() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:  # what CPython makes of it, in a function in C
            raise SystemError("returned a result with an exception set") from interrupt

    with pytest.raises(SystemExit, match=r"^\nStopped\. Go on\.$"), interruptible("Go on."):
        compiled()


def test_of_a_file_that_is_no_image_only_the_beginning_is_read(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0\x20ftypisom" + bytes(100_000))
    assert len(read_image(film)) == 16


@pytest.mark.parametrize("fmt", FORMATS_OF_IMAGES)
def test_images_of_every_format_are_read_whole(fmt, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encode(picture(0), fmt))
    assert read_image(path) == path.read_bytes()


def test_standard_output_in_the_folder_is_left_out_and_written_in_utf8(tmp_path):
    shutil.copy(FROG, tmp_path / "é.jpg")
    shutil.copy(FROG, tmp_path / "-")
    command = [sys.executable, "-m", "rest_api.predict", ".", "--format", "csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    with (tmp_path / "out.csv").open("wb") as out:
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.PIPE, timeout=60
        )
    assert (run.returncode, run.stderr) == (0, b"")
    rows = list(csv.reader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert [row[0] for row in rows] == ["file", f".{os.sep}-", "é.jpg"]


def test_error_without_an_interruption_is_raised():
    with pytest.raises(KeyError), interruptible("Go on."):
        raise KeyError


def test_answers_are_those_of_the_server(client):
    answer = post(client, FROG.read_bytes(), "?top=2").get_json()
    line = json.loads(run(FROG, "--format", "json", "--top", "2").stdout)
    assert line["predictions"] == answer["predictions"]
    assert line["uncertain"] == answer["uncertain"]
    assert line["none_of_these"] == answer["none_of_these"]
    assert line["model"] == answer["model"]


@pytest.mark.parametrize(
    ("uncertain", "none_of_these", "table", "cells"),
    [
        (False, False, "a.jpg  dog 51.0%  cat 49.0%", "false,false"),
        (True, False, "a.jpg  uncertain: dog 51.0%  cat 49.0%", "true,false"),
        (True, True, "a.jpg  none of these: dog 51.0%  cat 49.0%", "true,true"),
    ],
)
def test_every_format_tells_the_verdict(uncertain, none_of_these, table, cells):
    prediction = Prediction([("dog", 0.51), ("cat", 0.49)], 0, uncertain, none_of_these, 0, 0)
    bundle = replace(load_bundle(DEFAULT_MODEL), name="pets", version="1")
    assert FORMATS["table"]("a.jpg", prediction, bundle) == table
    line = FORMATS["csv"]("a.jpg", prediction, bundle)
    assert line == f"a.jpg,{cells},dog,0.510000,cat,0.490000,pets,1"
    verdicts, first, second = "uncertain,none_of_these", "label_1,probability_1", "label_2"
    assert csv_header(2) == f"file,{verdicts},{first},{second},probability_2,model,version"
    line = json.loads(FORMATS["json"]("a.jpg", prediction, bundle))
    assert (line["uncertain"], line["none_of_these"]) == (uncertain, none_of_these)
    assert line["model"] == {"name": "pets", "version": "1"}


def test_large_files_are_read_up_to_the_limit_that_is_asked_for_without_a_warning(tmp_path):
    (tmp_path / "large.png").write_bytes(encode(Image.new("1", (10_000, 9_000))))  # Pillow warns
    refused = run(tmp_path / "large.png")
    assert "more than 50 megapixels" in refused.stderr.decode()
    done = run(tmp_path / "large.png", "--max-pixels", "90")
    assert done.returncode == 0
    assert done.stderr == b""


def test_folders_are_searched_and_unreadable_files_reported_at_the_end(folder):
    done = run(folder, folder / "absent.jpg", "--format", "csv", "--top", "1")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [Path(row["file"]).name for row in rows] == ["a.jpg", "b.png", "c.jpg"]
    assert rows[0]["label_1"] == "frog"
    assert float(rows[0]["probability_1"]) > 0.9
    assert done.returncode == 1
    complaints = done.stderr.decode().splitlines()[-3:]
    assert complaints[0] == "2 of 5 files could not be read:"
    assert "notes.txt: This is not an image" in complaints[1]
    assert "absent.jpg: No such file" in complaints[2]


def test_shipped_model_is_chosen_by_its_name():
    (line,) = run(FROG, "--format", "json", "--model", "scenes").stdout.splitlines()
    assert json.loads(line)["model"]["name"] == "scenes"


def test_progress_bar_is_for_terminals_alone(tmp_path):
    for i in range(MANY):
        (tmp_path / f"{i}.jpg").write_bytes(FROG.read_bytes())
    done = run(tmp_path)
    assert len(done.stdout.splitlines()) == MANY
    assert done.stderr == b""


def test_version_is_told():
    assert run("--version").stdout.decode() == f"cifar10-cnn {__version__}\n"


def test_standard_input_is_read():
    done = run("-", "--top", "1", stdin=FROG.read_bytes())
    assert re.fullmatch(r"-  frog (over )?99\.9%\n", done.stdout.decode())
    assert done.stderr == b""  # no noise from the libraries
    assert done.returncode == 0


@pytest.mark.slow
def test_keras_writes_nothing_to_stderr_either():
    done = run(FROG, "--engine", "keras", "--top", "1")
    assert re.fullmatch(rf"{FROG}  frog (over )?99\.9%\n", done.stdout.decode())
    assert done.stderr == b""


@pytest.mark.parametrize("form", ["csv", "json"])
def test_interrupted_run_goes_on_after_its_last_whole_line(folder, tmp_path, form):
    (folder / "notes.txt").unlink()
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run(folder, "--format", form, "--output", whole).returncode == 0
    lines = whole.read_bytes()
    part.write_bytes(lines[: lines.rfind(b"frog") - 3])  # within the last line
    assert run(folder, "--format", form, "--output", part).returncode == 0
    assert part.read_bytes() == lines
    assert run(folder, "--format", form, "--output", part).returncode == 0
    assert part.read_bytes() == lines


@pytest.mark.parametrize("form", ["csv", "json"])
def test_output_of_another_model_is_refused_and_kept(folder, tmp_path, form):
    output = tmp_path / "out"
    assert run(folder / "a.jpg", "--format", form, "--output", output).returncode == 0
    before = output.read_bytes()
    scenes = ROOT / "rest_api" / "assets" / "scenes"
    options = ["--format", form, "--top", "3", "--output", output, "--model", scenes]
    line = error_of("rest_api.predict", folder, *options)
    assert line.startswith(f"error: {output} cannot be continued: its answers are those of cifar10")
    assert f", not of scenes {load_bundle(scenes).version}. Name another --output." in line
    assert output.read_bytes() == before


def test_files_that_were_already_answered_are_counted(folder, tmp_path):
    options = ["--format", "csv", "--output", tmp_path / "out"]
    assert run(folder / "a.jpg", *options).stderr == b""
    told = run(folder / "a.jpg", folder / "deep", *options).stderr.decode()
    assert told == f"Files that {tmp_path}/out already answers: 1.\n"


@pytest.mark.parametrize("form", ["csv", "json"])
def test_of_what_was_answered_only_the_names_are_held(tmp_path, form):
    bundle, output, count = load_bundle(DEFAULT_MODEL), tmp_path / "out", 10_000
    prediction = Prediction([(label, 0.1) for label in bundle.labels], 0, False, False, 0, 0)
    names = [f"photos/of/a/long/journey/{i:05}.jpg" for i in range(count)]
    lines = [csv_header(10)] * (form == "csv")
    lines += [FORMATS[form](name, prediction, bundle) for name in names]
    output.write_text("\n".join([*lines, "and"]))
    tracemalloc.start()
    try:
        assert already_in(output, form, 10, bundle) == set(names)
        assert tracemalloc.get_traced_memory()[1] < 250 * count
    finally:
        tracemalloc.stop()
    assert output.read_text() == "\n".join([*lines, ""])


def test_another_image_on_standard_input_is_answered_in_the_same_output(tmp_path):
    options = ["--format", "json", "--output", tmp_path / "out"]
    for colour in ("red", "blue"):
        assert run("-", *options, stdin=encode(Image.new("RGB", (32, 32), colour))).stderr == b""
    first, second = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert first["file"] == second["file"] == "-"
    assert first["predictions"] != second["predictions"]


def test_output_among_the_photos_is_no_photo(folder):
    (folder / "notes.txt").unlink()
    options = ["--format", "json", "--output", folder / "o.json"]
    assert run(folder, *options).stderr == b""
    told = run(folder, folder / "deep" / ".." / "o.json", *options).stderr
    assert told.endswith(b"o.json already answers: 3.\n")


def test_csv_is_not_taken_for_json_lines(folder, tmp_path):
    output = tmp_path / "o.csv"
    run(folder / "a.jpg", "--format", "csv", "--output", output)
    line = error_of("rest_api.predict", folder, "--format", "json", "--output", output)
    assert f"{output} cannot be continued: its lines are not JSON objects of this command." in line


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize(
    "content", ["something,else\n1,2\nand", "a letter to my aunt", "5\n", "\n\n", '{"file": []}\n']
)
def test_output_of_another_kind_is_refused_and_kept(folder, tmp_path, form, content):
    output = tmp_path / "out"
    output.write_text(content)
    done = run(folder, "--format", form, "--output", output)
    assert done.returncode == 1
    assert "cannot be continued" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert output.read_text() == content


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_names_that_are_not_utf8_are_written_as_they_are(folder, tmp_path, form):
    (folder / "deep" / "b.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    written = b"\\udcff.png" if form == "json" else b"/\xff.png"
    assert written in run(folder, "--format", form).stdout
    if form != "table":
        options = ["--format", form, "--output", tmp_path / "out"]
        assert written in (run(folder, *options), (tmp_path / "out").read_bytes())[1]
        assert b"already answers: 3.\n" in run(folder, *options).stderr


def test_names_with_line_breaks_stay_in_one_cell(folder, tmp_path):
    (folder / "deep" / "b.png").rename(folder / "deep" / "b\n\r.png")
    options = ["--format", "csv", "--output", tmp_path / "out"]
    run(folder, *options)
    assert b"already answers: 3.\n" in run(folder, *options).stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [(".", "Is a directory"), ("absent/o.csv", "No such file"), ("a.jpg/o.csv", "Not a directory")],
)
def test_output_that_cannot_be_written_is_refused_by_name(folder, output, reason):
    line = error_of("rest_api.predict", FROG, "--format", "csv", "--output", folder / output)
    assert line.startswith(f"error: {folder / output} cannot be written: {reason}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_told_in_one_line():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "rest_api.predict", FROG]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard output cannot be written: No space left")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("form", ["table", "csv"])
def test_closed_standard_output_ends_quietly_as_a_killed_pipe(folder, form):
    command = [sys.executable, "-m", "rest_api.predict", folder, "--format", form]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_only_a_few_files_are_read_ahead():
    begun = []

    def files():
        for number in range(1000):
            begun.append(number)
            yield "absent"

    answers = classify_all(files(), model=None, top=1, threads=2)
    for _ in range(10):
        next(answers)
    assert len(begun) <= 10 + 4 * 2


def test_files_come_in_the_order_of_their_names(folder):
    names = [Path(file).name for file in files_of([str(folder), "-", "x"])]
    assert names == ["a.jpg", "notes.txt", "b.png", "c.jpg", "-", "x"]


def test_pipes_in_a_folder_are_left_out_and_broken_links_are_not(folder):
    os.mkfifo(folder / "deep" / "pipe.jpg")
    (folder / "deep" / "link.jpg").symlink_to("absent")
    names = [Path(file).name for file in files_of([str(folder / "deep")])]
    assert names == ["b.png", "c.jpg", "link.jpg"]


def test_folder_that_cannot_be_read_is_reported_as_a_file_is(folder, monkeypatch):
    def scandir(path: str):
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    names = [Path(file).name for file in files_of([str(folder)])]
    assert names == ["a.jpg", "notes.txt", "deep"]


def test_folder_without_files_is_an_error(tmp_path):
    (tmp_path / ".hidden").touch()
    line = error_of("rest_api.predict", tmp_path, "--format", "csv", "--output", tmp_path / "o")
    assert line.startswith(f"error: no files in {tmp_path}. Name images")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--top", "0"), "--top must be 1 or more"),
        (("--output", "x"), "--output needs --format"),
        (("--model", "./absent"), "is not a model bundle"),
        (("--model", "absent"), "'absent' is no path and no shipped model: these are airplane-or"),
        (("--max-pixels", "200"), "'200' is not a whole number from 1 to 178"),
        (("--cluster", "auto"), "--cluster needs --output"),
        (("--cluster", "auto", "--output", "x", "--top", "5"), "without --top and --format"),
        (("--retry-errors",), "--retry-errors needs --cluster"),
        (("--embeddings",), "--embeddings needs --cluster"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, complaint):
    done = run(FROG, *arguments)
    assert done.returncode != 0
    assert complaint in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_model_that_returns_no_features_is_refused_for_embeddings(tmp_path):
    classic = ROOT / "rest_api" / "assets" / "cifar10-classic"
    options = ["--model", classic, "--cluster", "local", "--output", tmp_path / "out"]
    line = error_of("rest_api.predict", FROG, "--embeddings", *options)
    assert line == f"error: {classic} returns no features: export it again for --embeddings."
    assert not (tmp_path / "out").exists()


def test_cluster_cannot_read_standard_input():
    done = run("-", "--cluster", "auto", "--output", "x", stdin=FROG.read_bytes())
    assert done.returncode == 2
    assert "--cluster cannot read from standard input" in done.stderr.decode()


def test_missing_ray_is_explained_in_one_line():
    with pytest.raises(SystemExit) as ended, needs_ray():
        raise ImportError("No module named 'ray'")
    assert str(ended.value).startswith("error: --cluster needs Ray: pip install ")
    assert "\n" not in str(ended.value)

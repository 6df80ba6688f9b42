"""Which photos a job on a cluster is of, and what becomes of its parts; without a cluster."""

import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from benchmarks.serving.load import free_port
from rest_api import cluster, manifest
from rest_api.bundle import load_bundle
from rest_api.classifier import load_model
from rest_api.cluster import Classifier, Job, failures_in, open_job, refuse_unreachable
from rest_api.errors import JobError
from rest_api.manifest import part_name, photos_of, read_manifest, write_manifest
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import FROG, ROOT, error_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos at different depths, one that is cut off, and a hidden file."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.jpg", "a #1 50%.jpg", "deep/c.jpg"):
        shutil.copy(FROG, folder / name)
    (folder / "cut.jpg").write_bytes(FROG.read_bytes()[:5000])
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def output(tmp_path: Path) -> str:
    for name in ("manifest", "predictions", "unfinished"):
        (tmp_path / "out" / name).mkdir(parents=True)
    return str(tmp_path / "out")


def job(*paths: object) -> Job:
    bundle = load_bundle(DEFAULT_MODEL)
    return Job([str(path) for path in paths], "litert", Settings.max_pixels, False, bundle.manifest)


def classifier(output: str, embeddings: bool = False) -> Classifier:
    names = ("model.json", "model.int8.tflite")
    files = {name: (DEFAULT_MODEL / name).read_bytes() for name in names}
    return Classifier(files, "litert", Settings.max_pixels, embeddings, output)


def listed(output: str, parts: int) -> list[str]:
    return [path for i in range(parts) for path in read_manifest(output, part_name(i)).to_pylist()]


@pytest.mark.parametrize("scheme", ["", "file://", "fsspec+file://"])
def test_folder_stands_for_all_below_it_but_hidden_files(photos, scheme):
    names = ["a #1 50%.jpg", "b.jpg", "cut.jpg", "deep/c.jpg"]
    assert list(photos_of(f"{scheme}{photos}")) == [f"{scheme}{photos}/{name}" for name in names]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_pattern_stands_for_the_files_that_fit_it(photos, scheme):
    assert list(photos_of(f"{scheme}{photos}/[bc]*.jpg")) == [
        f"{scheme}{photos}/{name}" for name in ("b.jpg", "cut.jpg")
    ]
    assert f"{scheme}{photos}/deep/c.jpg" in list(photos_of(f"{scheme}{photos}/**/*.jpg"))


@pytest.mark.parametrize("pattern", ["*", "**"])
def test_pattern_stands_for_no_folder(photos, pattern):
    (photos / "folder.jpg").mkdir()
    found = list(photos_of(f"{photos}/{pattern}"))
    assert found
    assert all(Path(path).is_file() for path in found)


def test_place_that_cannot_be_listed_is_named(monkeypatch, photos):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest, "walk", denied)
    with pytest.raises(JobError, match=f"^file://{photos} cannot be listed: Permission denied"):
        list(photos_of(f"file://{photos}"))


def test_name_with_the_signs_of_a_pattern_is_a_photo_where_there_is_one(tmp_path):
    photo = tmp_path / "[1].jpg"
    shutil.copy(FROG, photo)
    assert list(photos_of(str(photo))) == [str(photo)]


def test_text_file_holds_a_path_or_uri_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("here.jpg\n\n /there ö.jpg \ns3://bucket/a b.jpg\n", "utf-8")
    expected = [f"{tmp_path}/here.jpg", "/there ö.jpg", "s3://bucket/a b.jpg"]
    assert list(photos_of("list.txt")) == expected


def test_parquet_file_holds_a_column_of_paths(tmp_path):
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"n": [1, 2], "path": ["/a.jpg", "gs://b/c.jpg"]}), file)
    assert list(photos_of(str(file))) == ["/a.jpg", "gs://b/c.jpg"]


def test_list_that_is_none_is_refused_by_name(tmp_path):
    pq.write_table(pa.table({"uri": ["/a.jpg"]}), tmp_path / "columns.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    (tmp_path / "latin.txt").write_bytes("ö.jpg".encode("latin-1"))
    for name in ("columns.parquet", "damaged.parquet", "latin.txt", "absent.txt"):
        with pytest.raises(JobError, match=rf"{name} is no list of paths: .+\."):
            list(photos_of(str(tmp_path / name)))


def test_pattern_that_is_none_is_refused_by_name():
    with pytest.raises(JobError, match=r"fsspec\+memory://bucket/a\*\*b/x is no pattern: .+"):
        list(photos_of("fsspec+memory://bucket/a**b/x"))


def test_storage_that_nobody_knows_is_refused_by_name():
    with pytest.raises(JobError, match="nowhere://bucket/ cannot be reached"):
        list(photos_of("nowhere://bucket/photos"))


@pytest.mark.parametrize("images", [0, 1, 130, 20_000])
def test_parts_hold_every_photo_once_in_their_order(output, images):
    paths = [f"/photos/{i:06}.jpg" for i in range(images)]
    parts, number = write_manifest(iter(paths), output)
    assert number == images
    assert listed(output, parts) == paths
    sizes = [len(read_manifest(output, part_name(i))) for i in range(parts)]
    assert all(size <= max(50, images // 100) for size in sizes)
    assert parts <= 300


def test_photo_that_is_listed_again_is_left_out(output):
    paths = [f"/photos/{i:06}.jpg" for i in range(200)]
    parts, number = write_manifest([*paths, paths[3], "/new.jpg", paths[199], paths[3]], output)
    assert number == 201
    assert listed(output, parts) == [*paths, "/new.jpg"]


def test_paths_that_share_a_digest_are_all_kept(output, monkeypatch):
    monkeypatch.setattr(
        manifest, "hash_array", lambda paths, categorize: np.zeros(len(paths), np.uint64)
    )
    paths = [f"/photos/{i}.jpg" for i in range(120)]
    parts, _ = write_manifest([*paths, paths[0]], output)
    assert listed(output, parts) == paths


def test_job_goes_on_with_the_photos_that_it_began_with(photos, tmp_path):
    output = str(tmp_path / "job")
    assert open_job(job(photos), output) == (1, 4)
    shutil.copy(FROG, photos / "new.jpg")
    assert open_job(job(photos), output) == (1, 4)


def test_listing_that_was_interrupted_begins_anew(photos, tmp_path):
    output = str(tmp_path / "job")
    open_job(job(photos), output)
    (tmp_path / "job" / "job.json").unlink()
    shutil.copy(FROG, photos / "new.jpg")
    assert open_job(job(photos), output) == (1, 5)


@pytest.mark.parametrize("path", ["empty", "empty/*.jpg"])
def test_job_without_photos_is_an_error_until_there_are_some(tmp_path, path):
    (tmp_path / "empty").mkdir()
    options = ["--cluster", "local", "--output", tmp_path / "job"]
    line = error_of("rest_api.predict", tmp_path / path, *options)
    assert line == f"error: no files in {tmp_path / path}. Name images, or a folder with some."
    shutil.copy(FROG, tmp_path / "empty" / "new.jpg")
    assert open_job(job(tmp_path / path), str(tmp_path / "job")) == (1, 1)


@pytest.mark.parametrize("change", ["paths", "max_pixels", "embeddings", "model"])
def test_folder_of_another_job_is_refused_and_kept(photos, tmp_path, change):
    output = str(tmp_path / "job")
    open_job(job(photos), output)
    before = (tmp_path / "job" / "job.json").read_bytes()
    other = {
        "paths": ["/others"],
        "max_pixels": 9,
        "embeddings": True,
        "model": {"name": "another"},
    }
    with pytest.raises(JobError, match=f"another `{change}`. Name another --output"):
        open_job(job(photos)._replace(**{change: other[change]}), output)
    assert (tmp_path / "job" / "job.json").read_bytes() == before


def test_photo_that_cannot_be_read_is_a_row_with_an_error(photos, tmp_path):
    output = str(tmp_path / "job")
    (tmp_path / "list.txt").write_text("nowhere://x/y.jpg")
    open_job(job(photos, photos / "absent.jpg", tmp_path / "list.txt"), output)
    classifier(output)({"part": np.array([part_name(0)])})
    rows = pq.read_table(f"{output}/predictions").to_pylist()
    assert [Path(row["path"]).name for row in rows if row["label"] == "frog"] == [
        "a #1 50%.jpg",
        "b.jpg",
        "c.jpg",
    ]
    errors = {Path(path).name: error for path, error, _ in failures_in(output)}
    assert errors["cut.jpg"] == "The JPEG file is truncated, damaged or too large."
    assert errors["absent.jpg"] == "No such file or directory"
    assert errors["y.jpg"].startswith("nowhere://x/ cannot be reached")
    assert len(errors) == 3
    for row in rows:
        values = (row["label"], row["probability"], row["uncertain"], row["none_of_these"])
        assert all((value is None) == (row["error"] is not None) for value in values)
    assert not list(Path(output, "unfinished").iterdir())


def test_embeddings_are_the_features_of_each_photo(photos, tmp_path):
    output = str(tmp_path / "job")
    open_job(job(photos), output)
    for _ in range(2):  # again: those that are there are kept
        classifier(output, embeddings=True)({"part": np.array([part_name(0)])})
    model = load_model(DEFAULT_MODEL)
    table = pq.read_table(f"{output}/predictions")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 288)
    for row in table.to_pylist():
        if row["error"]:
            assert row["embedding"] is None
            continue
        alone = model.classify(Path(row["path"]).read_bytes(), embedded=True)
        np.testing.assert_allclose(row["embedding"], alone.embedding, rtol=1e-5)


def test_part_is_classified_again_only_where_it_had_errors(photos, tmp_path, monkeypatch):
    output = str(tmp_path / "job")
    open_job(job(photos), output)
    once = classifier(output)
    once({"part": np.array([part_name(0)])})
    shutil.copy(FROG, photos / "cut.jpg")
    (photos / "b.jpg").unlink()  # its prediction stays
    once({"part": np.array([part_name(0)])})
    rows = pq.read_table(f"{output}/predictions").to_pylist()
    assert [row["label"] for row in rows] == ["frog"] * 4
    assert not list(failures_in(output))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"job": {}, "parts": 1, "images": 1}'])
def test_damaged_job_is_refused_by_name(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    line = error_of("rest_api.predict", FROG, "--cluster", "local", "--output", tmp_path)
    assert line == f"error: {tmp_path}/job.json is damaged. Name another --output."


def test_progress_bar_of_a_job_is_for_terminals_alone(monkeypatch, capsys):
    done = MagicMock()
    done.return_value.map_batches.return_value.iter_rows.return_value = [{"part": "a"}]
    monkeypatch.setattr(ray.data, "from_items", done)
    monkeypatch.setattr(cluster, "connected", nullcontext)
    cluster.run("local", ["a"], 1, ())
    assert capsys.readouterr().err == ""


def test_without_ray_one_line_says_how_to_install_it():
    program = (
        "import sys; sys.modules['ray'] = None; sys.argv = ['predict', 'x', '--cluster', 'auto', "
        "'--output', 'y']; from rest_api.predict import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: --cluster needs Ray: pip install "cifar10-cnn[cluster]"')


@pytest.mark.slow
def test_address_without_a_cluster_ends_the_command_at_once(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    line = error_of("rest_api.predict", FROG, "--cluster", address, "--output", tmp_path / "out")
    assert line.startswith(f"error: no Ray cluster answers at {address} (Connection refused).")
    assert time.monotonic() - began < 100  # Ray alone takes over 200


def test_unreachable_cluster_is_refused_however_it_is_named(monkeypatch):
    with pytest.raises(JobError, match=r"answers at nowhere \(Invalid address format: nowhere\)"):
        refuse_unreachable("nowhere")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")  # as of a cluster that is gone
    with pytest.raises(JobError, match=r"answers at auto \(Connection refused\)"):
        refuse_unreachable("auto")

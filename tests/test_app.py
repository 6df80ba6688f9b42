"""The server as a process: what a person starts."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from benchmarks.serving.load import free_port
from rest_api.app import (
    METRICS,
    binding,
    check,
    listen,
    locked,
    resolve,
    schedule_in_batches,
    shared_metrics,
)
from rest_api.settings import DEFAULT_MODEL, Settings
from tests.support import ROOT, ask, rename, server


@pytest.mark.parametrize(
    ("script", "cwd"), [("rest_api/app.py", ROOT), ("app.py", ROOT / "rest_api")]
)
def test_server_answers_started_from_the_root_or_its_folder(script, cwd):
    with server(script=script, cwd=cwd) as (_, port):
        assert ask(port)["predictions"][0]["label"] == "frog"


def test_photo_that_is_sent_in_chunks_is_answered():
    with server("--workers", "1") as (_, port):
        assert ask(port, chunked=True) == ask(port)


def test_sigterm_ends_the_server_with_status_zero():
    with server() as (process, port):
        assert ask(port)["success"]
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_server_says_where_it_listens_and_is_no_debugger():
    with server("--workers", "1") as (process, port):
        process.terminate()
        process.wait(timeout=30)
        output = process.stdout.read()
    assert f"http://127.0.0.1:{port}" in output
    assert "debug" not in output.lower()
    assert "development server" not in output


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv4 and IPv6")
def test_all_addresses_are_those_of_ipv4_and_ipv6():
    with listen(*resolve("::", 0)) as checked, binding("::", free_port())() as bound:
        for each in (checked, bound):
            each.listen()
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, each.getsockname()[1]), timeout=10).close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv4 and IPv6")
@pytest.mark.parametrize("shared", [False, True], ids=["another program", "a server of ours"])
def test_port_that_is_taken_for_ipv4_alone_stops_the_start_of_a_server_for_both(shared):
    with socket.create_server(("", 0), reuse_port=shared) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"error: cannot listen on :::{port}: Address already"):
            check(Settings(host="::", port=port))


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_server_listens_on_an_ipv6_address():
    with server("--workers", "1", "--host", "::", "--model", str(DEFAULT_MODEL)) as (process, port):
        assert ask(port)["success"]
        process.terminate()
        process.wait(timeout=30)
        assert f"http://[::]:{port}" in process.stdout.read()


def test_folder_of_a_killed_servers_metrics_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # and put back as it was
    killed = tmp_path / f"{METRICS}1"
    killed.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / f"{METRICS}link"
    link.symlink_to(elsewhere)  # as another user could make one
    with pytest.raises(OSError, match="link"), locked(link):
        pass
    make_old(tmp_path)
    with shared_metrics(1):
        assert not killed.exists()
        make_old(tmp_path)
        with shared_metrics(1):
            lives = [each for each in tmp_path.glob(f"{METRICS}*") if not each.is_symlink()]
            assert len(lives) == 2  # that of a server that lives is left alone
    assert elsewhere.exists()
    assert not any(each.exists() for each in lives)


def make_old(folder: Path) -> None:
    """Have all in a folder be of 1970."""
    for each in folder.iterdir():
        os.utime(each, (0, 0))


def test_folder_of_metrics_that_its_server_is_about_to_lock_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # and put back as it was
    begun = tmp_path / f"{METRICS}1"
    begun.mkdir()
    with shared_metrics(1):
        assert begun.exists()


def test_workers_serve_from_processes_of_their_own():
    with server("--workers", "3") as (process, port):
        deadline = time.monotonic() + 30
        while len(children_of(process)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ask(port)["success"]
        assert len(children_of(process)) == 3


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="scheduled in batches on Linux only")
def test_threads_of_the_server_do_not_interrupt_each_other():
    with server("--workers", "1") as (process, _):
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        policies = {
            int(task.name): os.sched_getscheduler(int(task.name))
            for task in Path(f"/proc/{worker}/task").iterdir()
        }
        assert len(policies) > 2
        assert set(policies.values()) == {os.SCHED_BATCH}


def test_server_runs_where_its_scheduling_cannot_be_changed(monkeypatch):
    def refuse(*_):  # as gVisor does
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "SCHED_BATCH", 3, raising=False)
    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    monkeypatch.setattr(os, "sched_param", int, raising=False)
    schedule_in_batches()


@pytest.mark.slow
def test_keras_engine_serves_the_same_answer():
    with server("--engine", "keras", "--workers", "1", "--model", str(DEFAULT_MODEL)) as (_, port):
        assert ask(port)["predictions"][0]["label"] == "frog"


@pytest.mark.parametrize(
    ("threshold", "ood", "verdict"),
    [(0.0, -1e9, []), (1.0, -1e9, ["uncertain:"]), (0.0, 1e9, ["none of these:"])],
)
def test_client_script_asks_the_port_of_the_environment_for_verdict_and_ranked_classes(
    tmp_path, threshold, ood, verdict
):
    bundle = shutil.copytree(DEFAULT_MODEL, tmp_path / "bundle")
    thresholds = {
        "uncertainty": {"threshold": threshold},
        "ood": {"score": "any", "threshold": ood},
    }
    rename(bundle, "cifar10", **thresholds)
    with server("--workers", "1", "--model", str(bundle)) as (_, port):
        client = subprocess.run(
            [sys.executable, "rest_api/simple_request.py"],
            cwd=ROOT,
            env=os.environ | {"PORT": str(port)},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = client.stdout.splitlines()
    assert lines[:-10] == verdict
    assert lines[-10].split()[:2] == ["1.", "frog"]


def test_client_script_says_how_to_start_a_server_where_none_answers():
    url = f"http://127.0.0.1:{free_port()}/"
    line = only_line_of("rest_api/simple_request.py", "--url", url)
    assert line == f"error: No server answers at {url}; start one: make serve"


@pytest.mark.parametrize(
    ("scheme", "sent", "said"),
    [
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "No trusted https at {}; use http://"),
        ("http", b"", "The connection to {} broke before its answer had come"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "The connection to {} broke"),
    ],
)
def test_client_script_tells_no_https_and_a_broken_answer_from_no_server(scheme, sent, said):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/predict"
        line = pool.submit(only_line_of, "rest_api/simple_request.py", "--url", url)
        listener.settimeout(60)
        with listener.accept()[0] as connection:
            connection.recv(2**20)
            connection.sendall(sent)
        assert line.result().startswith(f"error: {said.format(url)}")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"message": "hello"}'])
def test_client_script_tells_that_another_program_answers(body):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        line = pool.submit(only_line_of, "rest_api/simple_request.py", "--url", url)
        listener.settimeout(60)
        with listener.accept()[0] as connection:
            connection.recv(2**20)
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: ")
            connection.sendall(b"%d\r\n\r\n%s" % (len(body), body))
        assert line.result() == f"error: What answers at {url} (status 502) is not this server"


def only_line_of(script: str, *options: str) -> str:
    """All that a script writes to standard error, which must be the one line of its failure."""
    run = subprocess.run(
        [sys.executable, script, *options], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_bad_bundle_stops_the_start_with_one_clear_line(tmp_path, damage):
    bundle = tmp_path / "bundle"
    if damage == "broken":
        shutil.copytree(DEFAULT_MODEL, bundle)
        (bundle / "model.int8.tflite").write_bytes(b"broken")
    assert str(bundle) in only_line_of("rest_api/app.py", "--model", str(bundle))


def test_bundle_that_is_served_twice_stops_the_start_with_one_clear_line():
    twice = ["--model", str(DEFAULT_MODEL)] * 2
    assert "are both named 'cifar10'" in only_line_of("rest_api/app.py", *twice)


def test_port_in_use_stops_the_start_with_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = only_line_of("rest_api/app.py", "--port", str(port))
    assert error.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert "--port" in error

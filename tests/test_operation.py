"""The server in operation: stopped, reloaded, killed and overloaded."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.robustness.attack import kills
from benchmarks.robustness.bombs import jpeg_segments
from benchmarks.robustness.hostile_clients import CLIENTS
from benchmarks.robustness.overload import picture
from benchmarks.serving.load import family, free_port, multipart, open_files
from rest_api.settings import DEFAULT_MODEL
from tests.support import FROG, ROOT, ask, rename, server, until, wait_for

pytestmark = pytest.mark.slow

FORM = {"Content-Type": "multipart/form-data; boundary=benchmark"}


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def asking(question: Callable[[], object]) -> Iterator[tuple[list, list]]:
    """Ask again and again on a thread of its own; yields the answers and the failures."""
    answers, failures, stop = [], [], threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            try:
                answers.append(question())
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield answers, failures
    finally:
        stop.set()
        thread.join()


def test_sigterm_says_not_ready_at_once_and_finishes_what_it_has_accepted():
    body = multipart(FROG.read_bytes())
    with server("--drain", "4", "--workers", "1") as (process, port):
        begun = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        begun.putrequest("POST", "/predict")
        begun.putheader("Content-Length", str(len(body)))
        begun.putheader("Content-Type", FORM["Content-Type"])
        begun.endheaders(body[:1000])
        time.sleep(0.2)  # it has been accepted
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        until(lambda: get(port, "/health/ready")[0] == 503, "it still says that it is ready")
        assert get(port, "/health/live")[0] == 200
        assert ask(port)["success"]  # whom that has not reached yet is still answered
        time.sleep(max(0, told + 4.2 - time.monotonic()))  # it has stopped listening by now
        begun.send(body[1000:])
        answer = begun.getresponse()
        assert answer.status == 200
        assert json.load(answer)["predictions"][0]["label"] == "frog"
        begun.close()
        assert process.wait(timeout=30) == 0


def test_sighup_takes_up_a_new_bundle_and_refuses_a_bad_one_without_a_failed_request(tmp_path):
    bundle, new, old = (tmp_path / name for name in ("bundle", "new", "old"))
    shutil.copytree(DEFAULT_MODEL, bundle)
    rename(bundle, "model", version="first")
    shutil.copytree(bundle, new)
    rename(new, "model", version="second")
    with (
        server("--model", str(bundle)) as (process, port),
        asking(lambda: ask(port)["model"]["version"]) as (answers, failures),
    ):
        until(lambda: len(answers) > 20, "no answers")
        bundle.rename(old)
        new.rename(bundle)
        process.send_signal(signal.SIGHUP)
        until(lambda: answers[-20:] == ["second"] * 20, "the new bundle is not taken up")
        (bundle / "model.int8.tflite").write_bytes(b"broken")
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        since = len(answers)
        until(lambda: len(answers) > since + 20, "no answers")
        assert set(answers[since:]) == {"second"}
    assert not failures
    assert set(answers) == {"first", "second"}


def test_sighup_in_the_first_second_neither_ends_the_server_nor_is_lost(tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(DEFAULT_MODEL, bundle)
    command = [sys.executable, "rest_api/app.py", "--port", str(free_port()), "--drain", "0"]
    process = subprocess.Popen(
        [*command, "--model", str(bundle)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    until(lambda: survives_sighup(process.pid), "it never starts")
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    wait_for(int(command[3]), process)
    process.terminate()
    assert process.wait(timeout=30) == 0


def survives_sighup(pid: int) -> bool:
    """Whether a process ignores SIGHUP or handles it: Python has come to our first lines."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) & 1 for line in lines if line[:6] in ("SigIgn", "SigCgt"))


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_hostile_client_keeps_nobody_else_from_being_served(client):
    with server("--workers", "1") as (process, port):
        attacking = threading.Event()
        attacking.set()

        def attack() -> None:
            while attacking.is_set():
                with suppress(OSError):
                    client(("127.0.0.1", port), 1.0)

        def is_served() -> bool:
            with suppress(OSError):  # 503 while the queue is full, or no connection
                return ask(port)["success"]
            return False

        threads = [threading.Thread(target=attack) for _ in range(10)]
        for thread in threads:
            thread.start()
        try:
            until(is_served, "an answer during the attack")
        finally:
            attacking.clear()
            for thread in threads:
                thread.join()
        until(is_served, "an answer after it")
        assert process.poll() is None
        assert "has died" not in process.stdout.read()


def test_silent_connections_leave_room_for_others():  # test_gateway.py has when they are closed
    with server("--workers", "1") as (_, port):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(1500)]
        for _ in range(20):
            assert get(port, "/health/live")[0] == 200
        for connection in silent:
            connection.close()


def test_few_open_files_are_respected_and_told_of():
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}));"
    run = "sys.argv[0] = 'rest_api/app.py'; runpy.run_path('rest_api/app.py', run_name='__main__')"
    port = free_port()
    command = [sys.executable, "-c", limited.format(120) + run, "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workers", "1", "--drain", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_for(port, process)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    for _ in range(5):
        assert ask(port)["success"]
    for connection in silent:
        connection.close()
    process.terminate()
    errors = process.communicate(timeout=30)[1]
    assert "120 open files leave 56 connections for each process" in errors
    assert len(errors.splitlines()) == 1
    command[2] = limited.format(40) + run
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: 40 open files are too few")


def test_server_without_room_for_its_metrics_serves_and_survives_a_death(tmp_path):
    # No file may grow: as where the disk is full.
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999));"
    run = "sys.argv[0] = 'rest_api/app.py'; runpy.run_path('rest_api/app.py', run_name='__main__')"
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", limited + run, "--port", str(port), "--drain", "0"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(port, process)
    os.kill(family(process.pid)[1], signal.SIGKILL)
    for _ in range(5):
        assert ask(port)["success"]
    assert "classifier_requests_total" in get(port, "/metrics")[1]
    process.terminate()
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    assert errors.count("warning: GET /metrics tells of one process alone") == 1


def test_processes_end_when_their_parent_is_killed():
    with server("--workers", "2") as (process, _):
        until(lambda: len(family(process.pid)) == 3, "two processes")
        children = family(process.pid)[1:]
        process.kill()
        until(lambda: not any(Path(f"/proc/{each}").exists() for each in children), "orphans")


def test_random_kills_lose_few_requests_and_never_end_the_server():
    clients, watch = kills(10, 8)  # stops the server, which must still be there, at the end
    requests = sum(len(client.seconds) for client in clients)
    assert requests > 50
    # Each kill cuts off those who are being answered: four at most.
    assert sum(client.failures.total() for client in clients) <= 8 * 4
    assert sum(client.lost for client in clients) <= 3
    assert max(watch.seconds) < 5
    assert not watch.missed_since  # all are back


def listeners(port: int) -> int:
    """How many sockets listen on a port: each process of the server has its own."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_killed_process_is_replaced_and_the_others_go_on():
    with server("--workers", "2") as (process, port):
        until(lambda: listeners(port) == 2, "one of them does not listen")
        before = set(family(process.pid)) - {process.pid}
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in family(process.pid), "it is still there")
        for _ in range(50):
            assert ask(port)["success"]
        until(lambda: len(family(process.pid)) == 3, "it is not replaced")
        assert victim not in family(process.pid)
        assert process.poll() is None


def test_restart_behind_a_client_that_retries_loses_nothing():
    def patient_ask(port: int) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return ask(port)["success"]
            except OSError:  # refused, reset, or told 503
                time.sleep(0.05)
        return False

    port = free_port()
    command = ["rest_api/app.py", "--port", str(port), "--drain", "0", "--workers", "2"]

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(port, process)
        return process

    process = start()
    with asking(lambda: patient_ask(port)) as (answers, failures):
        until(lambda: len(answers) > 20, "no answers")
        for _ in range(2):
            process.terminate()
            process.communicate(timeout=30)
            assert process.returncode == 0
            process = start()
        since = len(answers)
        until(lambda: len(answers) > since + 20, "no answers")
    process.terminate()
    process.communicate(timeout=30)
    assert not failures
    assert all(answers)


def test_metrics_add_up_over_all_processes():
    with server("--workers", "3") as (_, port):
        for _ in range(30):
            ask(port)
        for _ in range(5):  # whichever process answers
            text = get(port, "/metrics")[1]
            assert 'classifier_requests_total{route="/predict",status="200"} 30.0' in text
            assert 'classifier_seconds_count{stage="infer"} 30.0' in text
            assert "classifier_in_flight 1.0" in text  # this one


def test_overload_is_refused_at_once_and_the_accepted_are_answered():
    body = multipart(picture())
    statuses = []

    def post_one(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", body, FORM)
        answer = connection.getresponse()
        answer.read()
        statuses.append((answer.status, answer.headers["Retry-After"]))
        connection.close()

    with server("--workers", "1", "--queue", "1") as (process, port):
        threads = [threading.Thread(target=post_one, args=(port,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert process.poll() is None
        assert ask(port)["success"]
    assert len(statuses) == 40
    assert set(statuses) <= {(200, None), (503, "1")}
    assert (200, None) in statuses
    assert (503, "1") in statuses


def test_slow_clients_keep_nobody_else_waiting():
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with server("--workers", "1", "--threads", "1", "--queue", "0") as (_, port):
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        for connection in slow:
            connection.sendall(head + b"and no more")
        for _ in range(5):
            assert ask(port)["success"]
        for connection in slow:
            connection.close()


def test_client_that_sends_too_much_still_reads_the_refusal():
    with server("--workers", "1", "--max-body", "1") as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/predict", bytes(20_000_000), {"Content-Type": "image/png"})
        answer = connection.getresponse()
        assert answer.status == 413
        assert "1 MiB" in json.load(answer)["error"]["message"]
        connection.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_soak_leaves_memory_flat_and_no_file_open():
    body = multipart(FROG.read_bytes())
    with server("--workers", "1") as (process, port):

        def many(requests: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            for _ in range(requests):
                connection.request("POST", "/predict", body, FORM)
                connection.getresponse().read()
            connection.close()

        many(300)
        memory, files = own_memory(process.pid), open_files(process.pid)
        many(1500)
        assert own_memory(process.pid) < 1.05 * memory
        until(lambda: open_files(process.pid) <= files, "files are open that were not before")


def own_memory(pid: int) -> int:
    """Kilobytes of a server's processes, without the libraries that others have loaded, too."""
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid)]
    return sum(map(int, re.findall(r"^Pss_Anon: +(\d+)", "".join(rollups), re.MULTILINE)))


def test_what_pillow_says_of_odd_files_is_not_logged():
    def frog_of_orientations(number: int) -> bytes:  # each with a warning of its own
        entry = struct.pack("<IHHHIII", 8, 1, 274, 3, number, 26, 0)
        exif = b"Exif\0\0II*\0" + entry + bytes(2 * number)
        return jpeg_segments(FROG.read_bytes(), (0xE1, exif))

    with server("--workers", "1") as (process, port):
        for number in (3, 4):
            data, headers = frog_of_orientations(number), {"Content-Type": "image/jpeg"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", data, headers)
            urllib.request.urlopen(request, timeout=30).close()
        log = process.stdout.read()
    assert log.count("/predict") == 2
    assert "Warning" not in log


def test_keys_of_the_environment_and_of_a_file_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("one\ntwo\n")
    with (
        server("--workers", "1", "--api-keys", str(tmp_path / "keys")) as (_, port),
        pytest.raises(urllib.error.HTTPError, match="401") as error,
    ):
        ask(port)
    error.value.close()
    monkeypatch.setenv("API_KEYS", "three")
    with (
        server("--workers", "1") as (_, port),
        pytest.raises(urllib.error.HTTPError, match="401") as error,
    ):
        ask(port)
    error.value.close()

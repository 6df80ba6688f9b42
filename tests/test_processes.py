"""The processes of the server: replaced when they die, told of signals, stopped."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.serving.load import free_port
from rest_api import processes
from rest_api.app import binding
from rest_api.processes import SERVES, Slot
from tests.support import ROOT, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")

# Process 1 cannot load, from its first start or after it was killed; the others serve.
SCRIPT = """
import os, signal, socket, sys, time
from pathlib import Path
from rest_api.processes import SERVES, accept_signals, supervise

def work(number, listener, parent):
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, lambda *_: os.write(1, f"told {number}\\n".encode()))
    accept_signals()
    starts = Path(sys.argv[1], str(number))
    starts.touch()
    with starts.open("a") as file:
        file.write("x")
    if number == 1 and len(starts.read_text()) > int(sys.argv[2]):
        sys.exit(3)
    parent.send_bytes(SERVES)
    print(f"serves {number}\\n", end="", flush=True)
    while True:
        time.sleep(60)

sys.exit(supervise(work, socket.socket, 2, 5, Path(sys.argv[1], "ready").mkdir))
"""


def start(folder: Path, good_starts: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(good_starts)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def starts(folder: Path, number: int) -> int:
    path = folder / str(number)
    return len(path.read_text()) if path.exists() else 0


def children(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(each) for each in text.split()]


def test_process_that_dies_again_and_again_is_replaced_at_once(tmp_path):
    process = start(tmp_path, good_starts=100)
    for number in range(1, 8):
        until(lambda so_far=number: starts(tmp_path, 0) + starts(tmp_path, 1) == 1 + so_far)
        os.kill(children(process)[0], signal.SIGKILL)
        assert process.poll() is None
    until(lambda: starts(tmp_path, 0) + starts(tmp_path, 1) == 9)
    process.terminate()
    assert process.wait(30) == 0
    assert "has died (-9)" in process.communicate()[1]


def test_process_that_can_no_longer_load_does_not_end_the_others(tmp_path):
    process = start(tmp_path, good_starts=1)
    assert {process.stdout.readline() for _ in range(2)} == {"serves 0\n", "serves 1\n"}
    until((tmp_path / "ready").exists)
    os.kill(children(process)[1], signal.SIGKILL)
    until(lambda: starts(tmp_path, 1) == 5)
    assert process.poll() is None
    assert starts(tmp_path, 0) == 1
    process.terminate()
    assert process.wait(30) == 0
    errors = process.communicate()[1]
    assert errors.index("started now") < errors.index("in 0.5 s") < errors.index("in 1 s")


def test_process_that_cannot_load_at_the_start_ends_the_server(tmp_path):
    script = SCRIPT.replace("if number == 1 and", "if")  # none of them can
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "Another is started" not in run.stderr  # none is
    assert not (tmp_path / "ready").exists()


def test_signals_are_passed_on(tmp_path):
    process = start(tmp_path, good_starts=100)
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert {process.stdout.readline() for _ in range(2)} == {"told 0\n", "told 1\n"}
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_pauses_grow_only_while_processes_die_before_they_serve(monkeypatch):
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: 0.0))
    slot = Slot(0, socket.socket)
    pauses = []
    for serves in (True, False, False, False, False, True, False):
        slot.serves = serves
        slot.schedule_restart("has died (1)")
        pauses.append(slot.due)
    assert pauses == [0, 0, 0.5, 1, 2, 0, 0]
    slot.socket.close()


def test_process_that_does_not_end_is_killed_after_the_grace():
    script = """
import signal, socket, sys, time
from rest_api.processes import SERVES, supervise

def work(number, listener, parent):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent.send_bytes(SERVES)
    time.sleep(60)

sys.exit(supervise(work, socket.socket, 1, 0.5, lambda: print("serves", flush=True)))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"serves\n"
        process.terminate()
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    assert b"Processes that do not end are killed." in errors


def test_socket_is_closed_before_a_pause_although_other_processes_hold_it():
    bind = binding("127.0.0.1", free_port())
    slot = Slot(0, bind)
    inherited = slot.socket.dup()
    inherited.listen()
    slot.serves, slot.failures = False, 1
    slot.schedule_restart("has died (1)")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(inherited.getsockname(), timeout=5)
    inherited.close()
    slot.socket.close()


def test_process_that_cannot_be_started_is_started_later(monkeypatch, caplog):
    slot = Slot(0, socket.socket)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError("no more")))
        slot.start(lambda *_: None)
    assert slot.process is None
    assert slot.due <= time.monotonic()
    assert "cannot be started (no more)" in caplog.text
    slot.start(lambda *_: time.sleep(60))
    assert slot.poll() is None
    slot.process.kill()
    until(lambda: slot.poll() is not None)
    slot.socket.close()


def test_parent_hears_that_a_process_serves():
    slot = Slot(0, socket.socket)
    slot.start(lambda number, listener, parent: (parent.send_bytes(SERVES), time.sleep(60)))
    until(lambda: slot.poll() is None and slot.serves)
    slot.process.kill()
    until(lambda: slot.poll() is not None)
    assert slot.process is None
    slot.socket.close()
    assert not multiprocessing.active_children()

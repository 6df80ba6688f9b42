"""Decoding in a process that can be stopped."""

import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.robustness.bombs import BOMBS, Watch, jpeg_segments, png, png_chunk, tiff_strips
from benchmarks.robustness.hostile_files import damaged, valid_files
from benchmarks.serving.load import open_files
from rest_api import sandbox
from rest_api.app import create_app
from rest_api.bundle import View
from rest_api.errors import RequestError
from rest_api.images import decode, to_views
from rest_api.sandbox import (
    Budget,
    Views,
    is_cheap,
    load_views,
    size_of_plain_jpeg,
    size_of_plain_png,
    views_from_sandbox,
)
from rest_api.settings import Settings
from tests.support import FROG, ROOT, encode, picture, post

VIEWS = View("stretch"), View("center_crop", mirror=True, size=40)
PIXELS = Settings.max_pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def fresh(monkeypatch):
    """No process waits for work, and none is left."""
    waiting = sandbox.SimpleQueue()
    monkeypatch.setattr(sandbox, "idle", waiting)
    yield
    while not waiting.empty():
        sandbox.stop(waiting.get())


def in_views(image: Image.Image) -> Views:
    return Views(to_views(image, 32, VIEWS), image.size)


def at_once(data: bytes):
    return outcome(lambda: in_views(decode(data, 40, PIXELS)))


def apart(data: bytes, budget: Budget | None = None):
    return outcome(lambda: views_from_sandbox(data, 32, VIEWS, PIXELS, budget or Budget()))


def outcome(call) -> object:
    try:
        views = call()
        return [views.size, *(pixels.tolist() for pixels in views.pixels)]
    except RequestError as error:
        return error.status, error.code, str(error)


@pytest.mark.parametrize("number", range(len(valid_files())))
def test_both_ways_give_the_same_pixels(number):
    data = valid_files()[number]
    assert isinstance(at_once(data), list)
    assert apart(data) == at_once(data)


def test_both_ways_refuse_the_same_files_for_the_same_reason():
    for number in range(200):
        data = damaged(np.random.default_rng([3, number]))
        assert apart(data) == at_once(data), number


@pytest.mark.parametrize(
    ("image", "fmt", "options"),
    [
        (picture(0), "JPEG", {}),
        (picture(0).convert("L"), "JPEG", {}),
        (picture(0).convert("CMYK"), "JPEG", {}),
        (picture(0, (4000, 3000)), "JPEG", {}),  # at an eighth
        (picture(0), "PNG", {}),
        (picture(0).convert("RGBA"), "PNG", {}),
        (picture(0).quantize(8), "PNG", {"transparency": 0}),
    ],
)
def test_ordinary_photos_need_no_other_process(image, fmt, options):
    assert is_cheap(encode(image, fmt, **options), 32, PIXELS)


def frog_with_two_frames() -> bytes:
    data = encode(picture(0), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[:at] + data[at : at + 19] * 2 + data[at + 19 :]


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(0), "JPEG", progressive=True),
        encode(picture(0, (3000, 3000)), "PNG"),
        encode(picture(0), "WEBP"),
        encode(picture(0), "GIF"),
        encode(picture(0), "TIFF"),
        frog_with_two_frames(),
        FROG.read_bytes().replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
        FROG.read_bytes()[:20] + bytes(1000) + FROG.read_bytes()[20:],
        jpeg_segments(FROG.read_bytes(), *[(0xFE, b"")] * 200),
        jpeg_segments(FROG.read_bytes(), *[(0xE1, bytes(65_000))] * 20),
        png(8, 8, 8, 2, png_chunk(b"tEXt", b"") * 30),
        png(8, 8, 8, 2, png_chunk(b"IHDR", bytes(13))),  # another header
        png(8, 8, 8, 2, png_chunk(b"tEXt", bytes(2**20))),
        png(70_000, 1, 8, 0),
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"",
        b"no image",
    ],
)
def test_all_else_goes_to_the_other_process(data):
    assert not is_cheap(data, 32, PIXELS)


def test_jpeg_whose_first_scan_is_not_its_only_one_goes_to_the_other_process():
    data = bytearray(FROG.read_bytes())
    data[data.index(b"\xff\xda") + 4] = 1  # of three components
    assert not is_cheap(bytes(data), 32, PIXELS)


def test_process_is_used_again(fresh):
    apart(encode(picture(0), "WEBP"))
    process = sandbox.waiting_process()
    sandbox.idle.put(process)
    apart(b"no image")
    assert sandbox.waiting_process() is process
    sandbox.stop(process)


def test_process_that_has_died_is_replaced(fresh):
    data = encode(picture(0), "WEBP")
    apart(data)
    process = sandbox.waiting_process()
    process.kill()
    process.wait()
    sandbox.idle.put(process)
    assert apart(data) == at_once(data)


@pytest.mark.slow
def test_file_that_computes_for_long_is_stopped_and_leaves_nothing(fresh):
    slow = tiff_strips(2_400_000)  # 12 seconds
    files = open_files(os.getpid()) if sys.platform == "linux" else 0
    budget = Budget(0.5)
    status, code, message = apart(slow, budget)
    assert (status, code) == (422, "too_complex")
    assert "takes over 2 seconds" in message
    assert budget.seconds == 0
    assert sandbox.idle.empty()
    if sys.platform == "linux":
        assert open_files(os.getpid()) == files


HANGS = "import time; print('ready', flush=True); time.sleep(60)"
SPINS = """
from rest_api import sandbox
def decode(*_):
    while True: pass
sandbox.decode = decode
sandbox.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [HANGS, SPINS], ids=["sleeps", "computes"])
def test_others_are_served_while_a_decoder_hangs(fresh, monkeypatch, decoder):
    monkeypatch.setattr(sandbox, "COMMAND", [sys.executable, "-c", decoder])
    monkeypatch.setattr(sandbox, "MAX_WALL_SECONDS", 8.0 if decoder == HANGS else 60.0)
    app = create_app()
    answers = []
    victim = threading.Thread(
        target=lambda: answers.append(post(app.test_client(), encode(picture(0), "WEBP")))
    )
    victim.start()
    time.sleep(0.2)
    assert post(app.test_client(), FROG.read_bytes()).status_code == 200
    assert not answers
    victim.join(60)
    assert answers[0].status_code == 422
    assert answers[0].get_json()["error"]["code"] == "too_complex"
    assert sandbox.idle.empty()


def test_decoder_that_does_not_start_is_told(fresh, monkeypatch):
    monkeypatch.setattr(sandbox, "COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(RuntimeError, match="decoder does not start"):
        apart(encode(picture(0), "WEBP"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_ends_with_the_one_that_started_it():
    script = """
import os, signal
from rest_api import sandbox
process = sandbox.start()
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid = int(run.stdout)
    deadline = time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_has_no_environment_and_no_rights(fresh, monkeypatch):
    monkeypatch.setenv("API_KEYS", "secret")
    process = sandbox.start()
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"secret" not in environment
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    for name in ("Max open files", "Max file size", "Max core file size"):
        (line,) = (each for each in limits.splitlines() if each.startswith(name))
        assert line.removeprefix(name).split()[:2] == ["0", "0"]
    sandbox.stop(process)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts it")
def test_image_that_takes_too_much_memory_is_refused(fresh, monkeypatch):
    script = "from rest_api import sandbox as s; s.decode = lambda *_: bytearray(10**9); s.main()"
    monkeypatch.setattr(sandbox, "COMMAND", [sys.executable, "-c", script])
    status, code, message = apart(encode(picture(0), "WEBP"))
    assert (status, code) == (422, "too_complex")
    assert "too much memory" in message
    assert sandbox.idle.empty()


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "[]",
        '{"seconds": -60}',
        '{"seconds": NaN}',
        '{"seconds": 0, "refused": [1]}',
        '{"seconds": 0, "refused": [999, "corrupt_image", "no status of HTTP"]}',
        '{"seconds": 0, "refused": [422, "a label of its own", "of the metrics"]}',
        '{"seconds": 0, "bytes": 1000000000000}',
        "x" * 20_000,
    ],
)
def test_decoder_that_a_file_has_taken_over_is_stopped(said, fresh, monkeypatch):
    script = f"print('ready', flush=True); input(); print({said!r}, flush=True)"
    monkeypatch.setattr(sandbox, "COMMAND", [sys.executable, "-c", script])
    budget = Budget()
    status, code, _ = apart(encode(picture(0), "WEBP"), budget)
    assert (status, code) == (422, "too_complex")
    assert budget.seconds == 0
    assert sandbox.idle.empty()


@pytest.mark.skipif(sys.platform != "linux", reason="limited on Linux alone")
def test_memory_is_limited_within_what_the_system_allows():
    script = (
        "import resource; from rest_api.sandbox import limit_memory\n"
        "allowed = 200 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed)); limit_memory(50_000_000)\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) == (allowed, allowed)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_images_of_a_request_share_its_seconds():
    budget = Budget(0.001)
    data = encode(picture(0, (1500, 1500)), "PNG")
    load_views(data, 32, VIEWS, PIXELS, budget)
    with pytest.raises(RequestError, match="before this one took too much time or memory") as error:
        load_views(data, 32, VIEWS, PIXELS, budget)
    assert (error.value.status, error.value.code) == (422, "too_complex")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_bomb_stays_within_its_bounds(fresh, name):
    data = BOMBS[name]()
    process = sandbox.start()
    sandbox.idle.put(process)
    before = resident(os.getpid())
    pid, bound = (os.getpid(), before + 250) if is_cheap(data, 44, PIXELS) else (process.pid, 350)
    watch, budget = Watch(pid), Budget()
    result = outcome(lambda: load_views(data, 32, VIEWS, PIXELS, budget))
    time.sleep(0.03)  # in which it looks at least once
    watch.ended.set()
    assert isinstance(result, list) or result[0] in (413, 415, 422)
    assert budget.seconds >= 0
    assert watch.process < bound  # megabytes


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    return psutil.Process(pid).memory_info().rss / 2**20


def test_sizes_are_those_that_pillow_reads():
    for fmt, size in (("JPEG", size_of_plain_jpeg), ("PNG", size_of_plain_png)):
        assert size(encode(picture(0, (123, 45)), fmt)) == (123, 45)


def test_header_is_read_without_surprise_whatever_it_holds():
    rng = np.random.default_rng(0)
    for start in (b"\xff\xd8", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        for _ in range(500):
            is_cheap(start + rng.bytes(100), 32, PIXELS)
    for end in range(1000):  # its scan begins at 608
        is_cheap(FROG.read_bytes()[:end], 32, PIXELS)
    is_cheap(b"\xff\xd8" + struct.pack(">BBH", 255, 0xC0, 2), 32, PIXELS)

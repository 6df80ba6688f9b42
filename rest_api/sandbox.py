"""Decoding that cannot harm: in a process of its own, which is stopped if it takes too much.

A small JPEG or PNG whose cost its header tells is decoded at once, as most photos are. All else
goes to a process that is started when it is first needed and used again: it has little memory
and time, no files and no network, and another takes its place when it dies. One serves at most
one thread at a time, so there are as many as threads that needed one at once.

The process is this module: `python -P -m rest_api.sandbox`. Both ways give the same pixels.
"""

import contextlib
import json
import math
import os
import signal
import struct
import subprocess  # nosec B404
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Annotated, Any, Literal, NamedTuple, cast

import msgspec
import numpy as np
from msgspec import Meta
from PIL import AvifImagePlugin

from rest_api.bundle import View, sizes_of
from rest_api.errors import RequestError
from rest_api.images import (
    MAX_SIDE,
    SPARE,
    START_OF_SCAN,
    decode,
    silence_pillow,
    to_views,
    too_complex,
)

MAX_SECONDS = 2.0  # of CPU, for the images of a request
# For an image, whatever it waits for. Windows has no timer of CPU, and this alone.
MAX_WALL_SECONDS = 30.0 if hasattr(signal, "setitimer") else 5.0
# Bytes of the process: itself, a file and a tile of it, and for each pixel of the largest image.
MEMORY, MEMORY_OF_A_PIXEL = 96 * 2**20, 4.5
MAX_LINE = 10_000  # bytes of its answer before the pixels
ROOT = Path(__file__).parent.parent  # of this package
COMMAND = [sys.executable, "-P", "-m", "rest_api.sandbox"]

CHEAP_PIXELS = 4_000_000  # to hold once decoded
CHEAP_HEADER = 2**20  # bytes that are no pixels; of a JPEG, those before them
CHEAP_SEGMENTS = 100  # of a JPEG before its pixels
CHEAP_CHUNKS, CHEAP_OTHERS = 2000, 20  # of a PNG, and those of them that hold no pixels

idle: "SimpleQueue[subprocess.Popen[bytes]]" = SimpleQueue()  # processes that wait for work


class Views(NamedTuple):
    """What the network is shown of an image."""

    pixels: list[np.ndarray]  # as to_views makes them
    size: tuple[int, int]  # width and height of the image, upright, perhaps decoded at a scale


# A RequestError of rest_api.images. Others come from a process that a file has taken over.
Refusal = tuple[
    Literal[400, 413, 415, 422],
    Literal["empty_file", "too_many_pixels", "unsupported_format", "corrupt_image", "too_complex"],
    str,
]


class Answer(msgspec.Struct):
    """What the process says before the pixels, of which there are none if it has refused."""

    seconds: Annotated[float, Meta(ge=0)]  # of CPU that it has taken
    # of the image, as in Views
    size: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]] = (1, 1)
    refused: Refusal | None = None


@dataclass
class Budget:
    """The seconds of CPU that the images of a request may still take."""

    seconds: float = MAX_SECONDS


def load_views(
    data: bytes, image_size: int, views: Sequence[View], max_pixels: int, budget: Budget
) -> Views:
    """The views of an image file.

    Takes its time off the budget. Raises RequestError.
    """
    if budget.seconds <= 0:
        message = "The images before this one took too much time or memory."
        raise too_complex(f"{message} Send it in a request of its own.")
    if not is_cheap(data, largest := max(sizes_of(views, image_size)), max_pixels):
        return views_from_sandbox(data, image_size, views, max_pixels, budget)
    began = time.thread_time()
    try:
        image = decode(data, largest, max_pixels)
        return Views(to_views(image, image_size, views), image.size)
    finally:
        budget.seconds -= time.thread_time() - began


def is_cheap(data: bytes, image_size: int, max_pixels: int) -> bool:
    """Whether an image takes little time and memory, whatever follows its header."""
    try:
        if data.startswith(b"\xff\xd8"):
            width, height = size_of_plain_jpeg(data)
            # as Pillow's draft() chooses
            scale = min(width, height) // (SPARE * image_size)
            scale = next(each for each in (8, 4, 2, 1, 0) if scale >= each) or 1
        else:
            width, height = size_of_plain_png(data)
            scale = 1
    except (struct.error, ValueError):
        return False
    pixels = width * height
    return pixels <= min(max_pixels, CHEAP_PIXELS * scale**2) and max(width, height) <= MAX_SIDE


def size_of_plain_jpeg(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG of one scan: its decoding ends after that, whatever follows.

    Raises struct.error or ValueError for any other.
    """
    frame = None
    at = 2
    for _ in range(CHEAP_SEGMENTS):
        prefix, kind, length = struct.unpack_from(">BBH", data, at)
        if prefix != 0xFF or at > CHEAP_HEADER:
            break
        if kind == START_OF_SCAN[1]:
            (components,) = struct.unpack_from("B", data, at + 4)
            if frame is None or components != frame[2]:  # not all of them: there are more scans
                break
            return frame[1], frame[0]
        if kind in (0xC0, 0xC1) and frame is None:  # sequential, Huffman-coded
            frame = struct.unpack_from(">HHB", data, at + 5)  # height, width, components
        elif kind not in (0xC4, 0xDB, 0xDD, 0xFE) and not 0xE0 <= kind <= 0xEF:
            break
        at += 2 + length
    raise ValueError


def size_of_plain_png(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG of few chunks. Raises struct.error or ValueError for any other."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        raise ValueError
    at, others, header = 8, 0, 0
    for _ in range(CHEAP_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if kind != b"IDAT":
            others, header = others + 1, header + length
        if others > CHEAP_OTHERS or header > CHEAP_HEADER:
            break
        if kind == b"IHDR" and at > 8:  # Pillow takes the last of several
            break
        at += 12 + length
    raise ValueError


def views_from_sandbox(
    data: bytes, image_size: int, views: Sequence[View], max_pixels: int, budget: Budget
) -> Views:
    """The same as load_views, by another process."""
    request = {
        "bytes": len(data),
        "image_size": image_size,
        "views": msgspec.to_builtins(views),
        "max_pixels": max_pixels,
        "seconds": budget.seconds,
    }
    squares = [(size, size, 3) for size in sizes_of(views, image_size)]
    lengths = [math.prod(square) for square in squares]
    process = waiting_process() or start()
    timer = threading.Timer(MAX_WALL_SECONDS, process.kill)
    timer.start()
    try:
        answer, content = exchange(process, request, data, sum(lengths))
    except (OSError, ValueError, msgspec.DecodeError) as error:  # it was stopped, or died
        budget.seconds = 0
        stop(process)
        message = f"Decoding the image takes over {MAX_SECONDS:g} seconds, or too much memory."
        raise too_complex(message) from error
    finally:
        timer.cancel()
    idle.put(process)
    budget.seconds -= answer.seconds
    if answer.refused:
        raise RequestError(*answer.refused)
    parts = np.split(np.frombuffer(content, np.uint8), np.cumsum(lengths)[:-1])
    pixels = [part.reshape(square) for part, square in zip(parts, squares, strict=True)]
    return Views(pixels, answer.size)


def waiting_process() -> "subprocess.Popen[bytes] | None":
    """One that has been started before and lives."""
    with contextlib.suppress(Empty):
        while True:
            process = idle.get_nowait()
            if process.poll() is None:
                return process
            stop(process)
    return None


def start() -> "subprocess.Popen[bytes]":
    """Start a process, with nothing of this one's environment; RuntimeError if that fails."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OPENBLAS_NUM_THREADS": "1",
        **{name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ},  # Windows
    }
    process = subprocess.Popen(  # noqa: S603  # nosec B603
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libtiff complains there of what is an error here
        env=environment,
    )
    if not pipes(process)[1].readline():
        stop(process)
        raise RuntimeError(f"The decoder does not start. Try it: {' '.join(COMMAND)}")
    return process


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and close what led to it."""
    process.kill()
    for pipe in pipes(process):
        with contextlib.suppress(OSError):  # what it has not read
            pipe.close()
    process.wait()


def pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    return cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)


def exchange(
    process: "subprocess.Popen[bytes]", request: dict[str, Any], data: bytes, expected: int
) -> tuple[Answer, bytes]:
    """Have a process decode an image. Raises OSError, ValueError or DecodeError if it dies.

    Whatever it answers, no more bytes are read than expected: a file may have taken it over.
    """
    to_process, from_process = pipes(process)
    to_process.write(json.dumps(request).encode() + b"\n")
    to_process.write(data)
    to_process.flush()
    answer = msgspec.json.decode(from_process.readline(MAX_LINE), type=Answer)
    content = from_process.read(0 if answer.refused else expected)
    if not answer.refused and len(content) != expected:
        raise ValueError("it died")
    return answer, content


def main() -> None:
    """In the other process: answer until there is no one to ask."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # on many cores their stacks would take the memory
    silence_pillow()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    give_up_rights()
    sink.write(b"ready\n")
    sink.flush()
    while line := source.readline():
        request = json.loads(line)
        data = source.read(request["bytes"])
        answer, content = handle(request, data)
        sink.write(msgspec.json.encode(answer) + b"\n")
        sink.write(content)
        sink.flush()


def handle(request: dict[str, Any], data: bytes) -> tuple[Answer, bytes]:
    """What to answer, and its pixels."""
    began = time.process_time()
    limit_memory(request["max_pixels"])
    limit_time(request["seconds"])
    refused, size, content = None, (1, 1), b""
    try:
        views, image_size = msgspec.convert(request["views"], list[View]), request["image_size"]
        image = decode(data, max(sizes_of(views, image_size)), request["max_pixels"])
        content = b"".join(view.tobytes() for view in to_views(image, image_size, views))
        size = image.size
    except RequestError as error:
        refused = cast(Refusal, (error.status, error.code, str(error)))
    limit_time(0)
    return Answer(time.process_time() - began, size, refused), content


def give_up_rights() -> None:
    """Open no file and no connection from here on; leave it to the parent when to end."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(ImportError):  # Windows
        import resource

        for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))


def limit_memory(max_pixels: int) -> None:
    """Let what asks for more than an image of `max_pixels` needs fail. Only Linux counts it."""
    if sys.platform == "linux":
        import resource

        most = round(MEMORY + MEMORY_OF_A_PIXEL * max_pixels)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)  # which only root may raise
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_time(seconds: float) -> None:
    """Die after so many seconds of CPU; never if 0."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()

"""The server's processes: started, replaced when they die, told of signals, stopped.

The parent does nothing else: no request reaches it, and it has one thread, so that it can fork.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before one that could not load is started again
STOPS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOPS, signal.SIGHUP) if hasattr(signal, "SIGHUP") else STOPS
SERVES = b"serves"  # what a process tells its parent

# What a process does; it gets its number, and whom to tell that it SERVES.
Work = Callable[[int, Connection], None]

# Forked, processes share the memory of what the parent has imported; macOS cannot do it safely.
CONTEXT = (
    multiprocessing.get_context("fork")
    if sys.platform == "linux"
    else multiprocessing.get_context("spawn")
)

log = logging.getLogger("rest_api")


class Slot:
    """One of the processes, whichever it is now."""

    def __init__(self, number: int):
        self.number = number
        self.process: BaseProcess | None = None
        self.failures = 0  # processes in a row that have died before they served
        self.due = 0.0  # when to start the next

    def start(self, work: Work) -> None:
        self.news, told = multiprocessing.Pipe(duplex=False)
        self.serves = False
        self.process = CONTEXT.Process(target=work, args=(self.number, told))
        with signals_held():
            self.process.start()
        told.close()

    def look(self) -> int | None:
        """Hear whether the process serves; if it has died, plan the next and tell its status."""
        if self.process is None:
            return None
        if not self.serves and self.news.poll():
            with suppress(EOFError):  # it has died
                self.serves = self.news.recv_bytes() == SERVES
                self.failures = 0
        status = None if self.process.is_alive() else self.process.exitcode
        if status is not None:
            self.failures += not self.serves
            pause = min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE) * (not self.serves)
            self.due = time.monotonic() + pause
            when = f"in {pause:g} s" if pause else "now"
            log.error("A server process has died (%d). Another is started %s.", status, when)
            self.process.close()
            self.process = None
            self.news.close()
        return status


def supervise(work: Work, number: int, grace: float) -> int:
    """Keep `number` processes at work until SIGTERM or Ctrl-C; the exit status of the server.

    One that dies is replaced: at once, or after a growing pause where it died before it served.
    If one cannot load before any has served, the status is 1. Signals are passed on. Those that
    have not ended `grace` seconds after a signal to stop are killed.
    """
    received, sender = multiprocessing.Pipe(duplex=False)
    for each in SIGNALS:
        signal.signal(each, lambda which, _: sender.send_bytes(bytes([which])))
    slots = [Slot(number) for number in range(number)]
    has_served = False
    while True:
        for slot in slots:
            if slot.process is None and slot.due <= time.monotonic():
                slot.start(work)
        wait_for_change(slots, received)
        for slot in slots:
            status = slot.look() or 0
            has_served |= slot.serves
            if status > 0 and not has_served:
                stop(slots, signal.SIGTERM, received, grace)
                return 1
        while received.poll():
            which = received.recv_bytes()[0]
            if which in STOPS:
                stop(slots, which, received, grace)
                return 0
            tell(slots, which)


def wait_for_change(slots: list[Slot], received: Connection) -> None:
    """Wait for a signal, for a process that serves or has died, and for the next to start."""
    sentinels = [slot.process.sentinel for slot in slots if slot.process]
    news = [slot.news for slot in slots if slot.process and not slot.serves]
    dues = [slot.due - time.monotonic() for slot in slots if not slot.process]
    wait([received, *sentinels, *news], max(0, min(dues)) if dues else None)


def tell(slots: list[Slot], which: int) -> None:
    for slot in slots:
        if slot.process and slot.process.pid:
            with suppress(ProcessLookupError):
                os.kill(slot.process.pid, which)


def stop(slots: list[Slot], which: int, received: Connection, grace: float) -> None:
    """Have the processes end by a signal, and by any that comes after it."""
    tell(slots, which)
    end = time.monotonic() + grace
    while alive := [slot.process for slot in slots if slot.process and slot.process.is_alive()]:
        if (left := end - time.monotonic()) <= 0:
            log.error("Processes that do not end are killed.")
            for process in alive:
                process.kill()
            return
        wait([received, *(process.sentinel for process in alive)], left)
        while received.poll():
            tell(slots, received.recv_bytes()[0])


@contextmanager
def signals_held() -> Iterator[None]:
    """Let no signal reach a new process before it has handlers of its own: see accept_signals."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    else:
        yield


def accept_signals() -> None:
    """In a new process, once it has handlers of its own."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


async def orphaned() -> None:
    """Wait until the parent is dead, killed without a chance to stop its processes."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(1)

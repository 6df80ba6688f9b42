"""The server's processes: started, replaced when they die, told of signals, stopped.

The parent does nothing else: no request reaches it, and it has one thread, so that it can fork.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

# Seconds before another is started, by how many in a row have died before they served.
PAUSES = (0, 0, 0.5, 1, 2, 4, 8, 16, 30)
STOPS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOPS, signal.SIGHUP) if hasattr(signal, "SIGHUP") else STOPS
SERVES = b"serves"  # what a process tells its parent

# What a process does; it gets its number, what to listen on, and whom to tell that it SERVES.
Work = Callable[[int, socket.socket, Connection], None]
Bind = Callable[[], socket.socket]

# Forked, processes share the memory of what the parent has imported; macOS cannot do it safely.
CONTEXT = (
    multiprocessing.get_context("fork")
    if sys.platform == "linux"
    else multiprocessing.get_context("spawn")
)

log = logging.getLogger("rest_api")


class Slot:
    """One of the processes, whichever it is now.

    Its socket outlives it: who connects while it is replaced waits for the next. Before a pause, a
    new socket, at which nobody listens, lets clients go to the others.
    """

    def __init__(self, number: int, bind: Bind):
        self.number, self.bind = number, bind
        self.socket = bind()
        self.process: BaseProcess | None = None
        self.failures = 0  # starts in a row after which none has served
        self.due = 0.0  # when to start the next

    def start(self, work: Work) -> None:
        self.receiver, sender = multiprocessing.Pipe(duplex=False)
        self.serves = False
        process = CONTEXT.Process(target=work, args=(self.number, self.socket, sender))
        try:
            with signals_held():
                process.start()
        except OSError as error:  # no memory is left, or no process allowed
            self.receiver.close()
            self.schedule_restart(f"cannot be started ({error})")
        else:
            self.process = process
        finally:
            sender.close()

    def poll(self) -> int | None:
        """Note whether the process serves; returns its exit status, if it has died."""
        if self.process is None:
            return None
        if not self.serves and self.receiver.poll():
            with suppress(EOFError):  # it has died
                self.serves = self.receiver.recv_bytes() == SERVES
        status = None if self.process.is_alive() else self.process.exitcode
        if status is not None:
            self.process.close()
            self.process = None
            self.receiver.close()
        return status

    def schedule_restart(self, why: str) -> None:
        self.failures = 0 if self.serves else self.failures + 1
        pause = PAUSES[min(self.failures, len(PAUSES) - 1)]
        if pause:
            before, self.socket = self.socket, self.bind()  # in this order the port stays ours
            refuse_connections(before)  # the other processes hold it, too
            before.close()
        self.due = time.monotonic() + pause
        when = f"in {pause:g} s" if pause else "now"
        log.error("A server process %s. Another is started %s.", why, when)


def supervise(
    work: Work, bind: Bind, number: int, grace: float, ready: Callable[[], object]
) -> int:
    """Keep `number` processes at work until SIGTERM or Ctrl-C; the exit status of the server.

    `bind` makes the socket of each, which the process makes listen once it serves; `ready` is
    called when the first does. One that dies is replaced: at once, or after a growing pause where
    several in a row have died before they served. If one cannot load before any has served, the
    status is 1. Signals are passed on. Those that have not ended `grace` seconds after a signal to
    stop are killed.
    """
    received, sender = multiprocessing.Pipe(duplex=False)
    for each in SIGNALS:
        signal.signal(each, lambda which, _: sender.send_bytes(bytes([which])))
    slots = [Slot(each, bind) for each in range(number)]
    has_served = False
    while True:
        for slot in slots:
            if slot.process is None and slot.due <= time.monotonic():
                slot.start(work)
        wait_for_change(slots, received)
        for slot in slots:
            status = slot.poll()
            if slot.serves and not has_served:
                has_served = True
                ready()
            if status is not None:
                if status > 0 and not has_served:
                    stop(slots, signal.SIGTERM, received, grace)
                    return 1
                slot.schedule_restart(f"has died ({status})")
        while received.poll():
            which = received.recv_bytes()[0]
            if which in STOPS:
                stop(slots, which, received, grace)
                return 0
            send_signal(slots, which)


def wait_for_change(slots: list[Slot], received: Connection) -> None:
    """Wait for a signal, for a process that serves or has died, and for the next to start."""
    sentinels = [slot.process.sentinel for slot in slots if slot.process]
    receivers = [slot.receiver for slot in slots if slot.process and not slot.serves]
    dues = [slot.due - time.monotonic() for slot in slots if not slot.process]
    wait([received, *sentinels, *receivers], max(0, min(dues)) if dues else None)


def send_signal(slots: list[Slot], which: int) -> None:
    for slot in slots:
        if slot.process and slot.process.pid:
            with suppress(ProcessLookupError):
                os.kill(slot.process.pid, which)


def stop(slots: list[Slot], which: int, received: Connection, grace: float) -> None:
    """Have the processes end by a signal, and by any that comes after it."""
    send_signal(slots, which)
    end = time.monotonic() + grace
    while alive := [slot.process for slot in slots if slot.process and slot.process.is_alive()]:
        if (left := end - time.monotonic()) <= 0:
            log.error("Processes that do not end are killed.")
            for process in alive:
                process.kill()
            return
        wait([received, *(process.sentinel for process in alive)], left)
        while received.poll():
            send_signal(slots, received.recv_bytes()[0])


def refuse_connections(listener: socket.socket) -> None:
    """Have the system refuse who connects from here on, although other processes hold the socket.

    On Linux; elsewhere they may go on listening.
    """
    with suppress(OSError):  # it does not listen
        listener.shutdown(socket.SHUT_RDWR)


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
    parent = multiprocessing.parent_process()  # as it was: it may be dead by now
    while parent and os.getppid() == parent.pid:
        await asyncio.sleep(1)

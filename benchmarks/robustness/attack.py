"""Everything at once, while a client asks twice a second: `python -m benchmarks.robustness.attack`.

Every hostile client of hostile_clients.py and every generator of hostile_files.py attacks a server
of two processes, some at a time; meanwhile SIGKILL hits one of its processes at random moments, and
SIGHUP makes it reload. Prints the good client's requests, how many were lost after one retry, its
p50 and p99, and the server's memory at a tenth of the time and at the end. `--seconds 1800` is the
long form; `--kills-only 100` leaves the attack out, while four clients ask without a pause, and
tells how long the server took to have all processes at work again.
"""

import http.client
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from benchmarks.common import FROG, command_line
from benchmarks.robustness.hostile_clients import CLIENTS, Address
from benchmarks.robustness.hostile_files import GENERATORS
from benchmarks.serving.load import own_server, post, resident_megabytes, serving

Work = Callable[[], None]


@contextmanager
def going_on(works: list[Work], pause: float = 0.0, patience: float = 0.1) -> Iterator[None]:
    """Do each of the works again and again, each in a thread of its own.

    At the end each thread has `patience` seconds to end what it is doing, then is left alone.
    """
    stop = threading.Event()

    def go_on(work: Work) -> None:
        while not stop.is_set():
            with suppress(OSError, http.client.HTTPException):  # refused or reset, as it may be
                work()
            stop.wait(pause)

    threads = [threading.Thread(target=go_on, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(patience)


def send_hostile_file(address: Address, rng: np.random.Generator) -> None:
    """POST a file of one of the generators."""
    names = list(GENERATORS)
    data = GENERATORS[names[rng.integers(len(names))]](rng)
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("POST", "/predict", data, {"Content-Type": "image/png"})
    connection.getresponse().read()
    connection.close()


def address_in(url: str) -> Address:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def server_processes(pid: int) -> list[int]:
    """Those that the parent has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int) -> float:
    """MB of the server, looked at again where a process dies under our eyes."""
    for _ in range(100):
        with suppress(ProcessLookupError, FileNotFoundError):
            return resident_megabytes(pid)
        time.sleep(0.01)
    raise RuntimeError("The server has ended.")


def kill_one(pid: int, choose: random.Random, every: float) -> None:
    """SIGKILL one of the server's processes, at a random moment within twice `every` seconds."""
    time.sleep(choose.uniform(0, 2 * every))
    if processes := server_processes(pid):
        with suppress(ProcessLookupError):
            os.kill(choose.choice(processes), signal.SIGKILL)


def reload(pid: int) -> None:
    time.sleep(10)
    os.kill(pid, signal.SIGHUP)


class GoodClient:
    """Asks on connections of its own, and once more where there was no answer of 200."""

    def __init__(self, address: Address, keep_alive: bool = False):
        self.image, self.keep_alive = FROG.read_bytes(), keep_alive
        self.connection = http.client.HTTPConnection(*address, timeout=15)
        self.seconds: list[float] = []
        self.failures: Counter[str] = Counter()
        self.lost = 0

    def ask(self) -> None:
        start = time.perf_counter()
        if (failure := self.failure()) is not None:
            self.failures[failure] += 1
            time.sleep(1)  # as Retry-After says
            self.lost += self.failure() is not None
        self.seconds.append(time.perf_counter() - start)

    def failure(self) -> str | None:
        """Why there is no answer of 200, where there is none."""
        try:
            status = post(self.connection, self.image)
            failure = None if status == 200 else str(status)
        except (OSError, http.client.HTTPException) as error:
            failure = type(error).__name__
        if failure or not self.keep_alive:
            self.connection.close()  # the next request opens it again
        return failure


def report(clients: Sequence[GoodClient]) -> str:
    """What came of all their requests."""
    seconds = [each for client in clients for each in client.seconds]
    failures = sum((client.failures for client in clients), Counter[str]())
    kinds = ", ".join(f"{count} x {kind}" for kind, count in failures.items()) or "none"
    p50, p99 = np.percentile(seconds, (50, 99))
    share, lost = failures.total() / len(seconds), sum(client.lost for client in clients)
    return (
        f"{len(seconds)} requests; failed at first: {kinds} ({share:.2%}); lost after one retry: "
        f"{lost}; p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, longest {max(seconds):.2f} s"
    )


class Watch:
    """For how long each process of a server that died was missed, until another served."""

    def __init__(self, pid: int):
        self.pid, self.at_work = pid, processes_at_work(pid)
        self.missed_since: deque[float] = deque()
        self.seconds: list[float] = []

    def look(self) -> None:
        now, at_work = time.monotonic(), processes_at_work(self.pid)
        self.missed_since.extend(now for _ in self.at_work - at_work)
        self.seconds += [now - self.missed_since.popleft() for _ in at_work - self.at_work]
        self.at_work = at_work

    def report(self) -> str:
        p50, p99 = np.percentile(self.seconds, (50, 99))
        return (
            f"{len(self.seconds)} processes died at work; another was at work after "
            f"p50 {p50:.2f} s, p99 {p99:.2f} s, at most {max(self.seconds):.2f} s; "
            f"still missed: {len(self.missed_since)}"
        )


def processes_at_work(pid: int) -> set[int]:
    return {each for each in server_processes(pid) if is_at_work(each)}


def is_at_work(process: int) -> bool:
    """Whether a process of the server serves: it handles SIGTERM from then on."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught, blocked = (
        int(status.partition(f"{name}:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1
        for name in ("SigCgt", "SigBlk")
    )
    return bool(caught and not blocked)  # at first it has its parent's handlers, blocked


def harm(address: Address, each: int) -> None:
    """Attack the server until killed: a process of its own, so that it does not slow the client."""
    os.nice(10)
    rngs = [np.random.default_rng(number) for number in range(2)]
    works: list[Work] = [lambda rng=rng: send_hostile_file(address, rng) for rng in rngs]
    works += [lambda client=client: client(address, 35.0) for client in CLIENTS.values()] * each
    with going_on(works, 0.2):
        signal.pause()


def attack(seconds: float, each: int, kill_every: float) -> GoodClient:
    """The good client of an attack by `each` clients of every kind; prints the memory."""
    choose = random.Random(0)  # noqa: S311
    with serving(own_server("--workers", "2")) as (url, pid):
        address = address_in(url)
        hostile = multiprocessing.Process(target=harm, args=(address, each), daemon=True)
        hostile.start()
        good = GoodClient(address)
        killing: list[Work] = [lambda: kill_one(pid, choose, kill_every), lambda: reload(pid)]
        with going_on(killing), going_on([good.ask], 0.5):
            time.sleep(seconds / 10)
            before = memory(pid)
            time.sleep(seconds * 9 / 10)
            after = memory(pid)
        hostile.kill()
        hostile.join()
        print(f"memory {before:.0f} MB after a tenth of the time, {after:.0f} MB at the end")
    return good


def kills(seconds: float, number: int) -> tuple[list[GoodClient], Watch]:
    """Four clients that ask without a pause, while SIGKILL hits processes at `number` moments."""
    choose = random.Random(0)  # noqa: S311
    moments = sorted(choose.uniform(0, seconds) for _ in range(number))
    with serving(own_server("--workers", "2")) as (url, pid):
        clients = [GoodClient(address_in(url)) for _ in range(4)]
        while len(processes_at_work(pid)) < 2:
            time.sleep(0.01)
        watch, start = Watch(pid), time.monotonic()
        works: list[Work] = [client.ask for client in clients]
        with going_on([watch.look], 0.005), going_on(works, patience=60):
            for moment in moments:
                time.sleep(max(0, start + moment - time.monotonic()))
                kill_one(pid, choose, 0.0)
            end = time.monotonic() + 30
            while watch.missed_since and time.monotonic() < end:  # the last may take its pause
                time.sleep(0.01)
    return clients, watch


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of attack (%(default)s)")
    parser.add_argument("--each", type=int, default=4, help="clients of each kind (%(default)s)")
    parser.add_argument(
        "--kill-every", type=float, default=10, help="seconds, on average (%(default)s)"
    )
    parser.add_argument(
        "--kills-only", type=int, metavar="N", help="no attack: N times SIGKILL in that time"
    )
    args = parser.parse_args()
    if args.kills_only:
        clients, watch = kills(args.seconds, args.kills_only)
        print(report(clients), watch.report(), sep="\n")
    else:
        print(report([attack(args.seconds, args.each, args.kill_every)]))


if __name__ == "__main__":
    main()

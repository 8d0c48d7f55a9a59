"""The application: a process that forks the workers, whose threads write and report every attempt.

`benchmarks.crew` starts it with its orders as the first line of standard input, because they contain a password. At the
end of standard input every process stops, also if the process that started them is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

from benchmarks import hosts
from benchmarks.clients import CLIENTS, Client, Config

__all__ = ["ENDED", "Orders", "reports_file"]

ENDED: Final = -1
"""The number that a thread reports, in place of a running number, when it has ended as ordered."""

_STDIN: Final = 0
_LEAVE_S: Final = 1.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of the crew.

    Attributes:
        client: The name of the client in CLIENTS.
        pause_s: The pause between two attempts of a thread; infinite for threads that write once and then idle.
        grace_s: The longest time for an attempt that is under way when all are ordered to stop.
    """

    client: str
    config: Config
    processes: int
    threads: int
    pause_s: float
    grace_s: float

    def as_line(self) -> bytes:
        """Return the orders as a line for standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Orders:
        """Return the orders in a line of as_line()."""
        data = json.loads(line)
        return cls(**{**data, "config": Config.from_json(data["config"])})


def reports_file(directory: str, worker: int) -> Path:
    """Return the path of *worker*'s reports: msgpack of (thread, n, began_s, ended_s, error class or "")."""
    return Path(directory) / f"worker-{worker}.reports"


def main() -> None:
    """Fork the workers, wait for the end of standard input, and end all workers."""
    orders = Orders.from_line(_read_line())
    if orders.config.hosts:
        hosts.enter(Path(orders.config.hosts))
    if orders.config.debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(process)d %(threadName)s %(message)s")
    CLIENTS[orders.client].load()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pids = [_fork(orders, number) for number in range(orders.processes)]
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()
    _wait_told()
    _reap(pids, orders.grace_s + 2 * _LEAVE_S)


def _read_line() -> bytes:
    # One byte at a time, so that no later input is consumed.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            sys.exit("no orders")
        line += byte
    return line


def _wait_told() -> None:
    while os.read(_STDIN, 1):
        pass


def _reap(pids: Sequence[int], timeout_s: float) -> None:
    """Wait for the workers, and kill the workers that still run after *timeout_s*."""
    left, deadline_s = set(pids), time.monotonic() + timeout_s
    while left and time.monotonic() < deadline_s:
        left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(_POLL_S)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(orders: Orders, number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _work(orders, number)
        status = 0
    except BaseException as error:
        sys.stderr.write(f"worker {number}: {error!r}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _work(orders: Orders, number: int) -> None:
    fd = os.open(reports_file(orders.config.directory, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def report(*what: Any) -> None:
        # One immediate write for each report, so that no report is lost if this process dies.
        os.write(fd, msgpack.packb(what))

    client = CLIENTS[orders.client].make(orders.config)
    stopping = threading.Event()
    crew = [
        threading.Thread(target=_write, args=(client, number, thread, orders.pause_s, stopping, report), daemon=True)
        for thread in range(orders.threads)
    ]
    for thread in crew:
        thread.start()
    select.select([_STDIN], [], [])
    stopping.set()
    deadline_s = time.monotonic() + orders.grace_s
    for thread in crew:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    # If close() hangs, all reports have been written already.
    closing = threading.Thread(target=_close, args=(client,), daemon=True)
    closing.start()
    closing.join(_LEAVE_S)


def _write(
    client: Client,
    worker: int,
    thread: int,
    pause_s: float,
    stopping: threading.Event,
    report: Callable[..., None],
) -> None:
    wait_s = None if math.isinf(pause_s) else pause_s
    n = 0
    while True:
        n += 1
        began_s = time.monotonic()
        error = ""
        try:
            client.write((worker, thread, n))
        except Exception as failure:
            error = type(failure).__name__
        report(thread, n, began_s, time.monotonic(), error)
        # A thread that will idle must first have written once.
        if stopping.wait(wait_s if not error or wait_s is not None else _POLL_S):
            break
    report(thread, ENDED, 0.0, time.monotonic(), "")


def _close(client: Client) -> None:
    with contextlib.suppress(Exception):
        client.close()


if __name__ == "__main__":
    main()

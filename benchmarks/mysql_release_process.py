"""The application of the *mysql_release* benchmark. It forks workers that each write a row at intervals.

The orders are one line on standard input, because they contain a password. A second line is a time on the monotonic
clock. The process answers it with the time of each worker's first success after it; then all processes exit.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

from benchmarks.clients import Client, Config, mysqls
from benchmarks.forked_workers import ForkedWorkers, WorkerReporter

__all__ = ["CLIENTS", "Orders"]

CLIENTS: Final[Mapping[str, Callable[[Config], Client]]] = {"pool": mysqls.Ours, "oracle": mysqls.Known}
_START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of the application.

    Attributes:
        client: The client in CLIENTS.
        pause_s: The pause between two rows of a worker.
    """

    client: str
    config: Config
    workers: int
    pause_s: float

    def as_line(self) -> str:
        """Return the orders as a line for standard input."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Orders:
        """Return the orders in a line of as_line()."""
        data = json.loads(line)
        return cls(**{**data, "config": Config.from_json(data["config"])})


def main() -> None:
    """Fork the workers, let them write, and print the results."""
    orders = Orders.from_line(sys.stdin.readline())
    with ForkedWorkers(orders.workers, partial(_live, orders=orders)) as workers:
        workers.wait_ready(_START_TIMEOUT_S)
        print("ready", flush=True)
        since = sys.stdin.readline()
        if not since:
            return
        since_s = float(since)
        firsts: dict[int, float] = {}
        errors = 0
        for call in workers.calls():
            errors += not call.ok
            if call.ok and call.ended_s > since_s:
                firsts.setdefault(call.worker, call.ended_s - since_s)
    print(json.dumps({"firsts_s": sorted(firsts.values()), "errors": errors}), flush=True)


def _live(reporter: WorkerReporter, *, orders: Orders) -> None:
    """Be a worker, after the fork."""
    client = CLIENTS[orders.client](orders.config)
    client.write((reporter.number, 0, 0))
    threading.Thread(target=_work, args=(reporter, client, orders.pause_s), daemon=True).start()
    reporter.ready()


def _work(reporter: WorkerReporter, client: Client, pause_s: float) -> None:
    """Write rows with pauses between them, without end."""
    time.sleep(random.uniform(0, pause_s))
    n = 0
    while True:
        n += 1
        began_s = time.monotonic()
        ok = True
        try:
            client.write((reporter.number, 0, n))
        except Exception:  # any error counts, because a caller has seen it
            ok = False
        reporter.note(0, began_s, time.monotonic(), ok=ok)
        time.sleep(pause_s)


if __name__ == "__main__":
    main()

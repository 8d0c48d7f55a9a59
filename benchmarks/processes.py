"""The cost of monitoring for the database and the host with a growing number of worker processes."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks import hosts
from benchmarks.clients import CLIENTS, Config
from benchmarks.crew import Crew
from benchmarks.footprint import cpu_s, memory_of, parent_of
from benchmarks.result import Column, Plot, Result, Table, Value
from bgpool.lab import Director, Pair, Server, ledger, metadata
from bgpool.lab.pair import ROLE
from bgpool.lab.waiting import wait_until

__all__ = ["QUESTION", "TITLE", "run"]

TITLE = "Many processes"
QUESTION = (
    "What does monitoring a deployment cost the database and the host with 1, 4, 16 and 64 worker processes? Each "
    "worker holds one connection and sends nothing. Both clients that monitor poll at the same intervals. psycopg_pool "
    "monitors nothing: it shows the cost without monitoring."
)

BASELINE: Final = "psycopg_pool"
COMPARED: Final = (BASELINE, "bgpool", "AWS wrapper")

START_TIMEOUT_S: Final = 120.0
SETTLE_TIMEOUT_S: Final = 60.0

#: The servers log every statement, because their transaction counters lag by up to ten seconds in an idle session.
_SETTINGS: Final = {"log_statement": "all", "max_connections": "400"}
_STATEMENT: Final = re.compile(rf" {ROLE}@\S+ .*? LOG:  (?:statement|execute [^:]*): ".encode())


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a measurement.

    Attributes:
        settled_s: The time without a change after which clients count as fully connected.
        noticed_s: The time from SWITCHOVER_INITIATED until every client has seen it.
        window_s: The time during which CPU and statements are measured.
    """

    workers: tuple[int, ...] = (1, 4, 16, 64)
    settled_s: float = 2.0
    noticed_s: float = 2.0
    window_s: float = 4.0


def run(*, quick: bool) -> Result:
    """Measure every client with every number of workers."""
    size = Size((1, 4), 1.0, 0.8, 0.5) if quick else Size()
    missing = hosts.available()
    clients = [name for name in COMPARED if not (missing and CLIENTS[name].needs_names)]
    rows: list[Mapping[str, Value]] = []
    with servers() as director:
        for workers in size.workers:
            measured = {client: measure(director, client, workers, size) for client in clients}
            rows += [_row(client, workers, cost, measured.get(BASELINE)) for client, cost in measured.items()]
    left_out = [name for name in COMPARED if name not in clients]
    notes = (f"{', '.join(left_out)}: left out, {missing}",) if missing else ()
    return Result((_table(rows, notes),), _PLOTS)


# -- one client --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Polling:
    """The rates during one phase, on both servers and of all processes together."""

    statements_per_s: float
    cpu_ms_per_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an idle client. *connections* does not include the one connection of each worker."""

    connections: int
    pss_mb: float
    created: Polling
    prepared: Polling


@contextlib.contextmanager
def servers() -> Iterator[Director]:
    """Yield a pair with a ledger and a deployment, and the director that sets its status."""
    with Pair(settings=_SETTINGS) as pair:
        ledger.create(pair)
        director = Director(pair)
        director.create_deployment()
        yield director


def measure(director: Director, client: str, workers: int, size: Size) -> Cost:
    """Measure a crew at rest, before and after SWITCHOVER_INITIATED."""
    pair = director.pair
    director.publish(metadata.AVAILABLE)
    with _crew(client, pair, workers) as crew:
        crew.wait_writing(START_TIMEOUT_S)
        connections = _settled_connections(pair, size.settled_s) - workers
        # Include the process that the workers are forked from, which has part of their memory.
        pids = (*crew.pids(), *crew.helpers(), parent_of(crew.pids()[0]))
        created = _polling(pair, pids, size.window_s)
        pss_mb = memory_of(pids).pss_mb
        director.publish(metadata.INITIATED)
        time.sleep(size.noticed_s)
        return Cost(connections, pss_mb, created, _polling(pair, pids, size.window_s))


@contextlib.contextmanager
def _crew(client: str, pair: Pair, workers: int) -> Iterator[Crew]:
    """Return workers whose only thread writes one row and then idles."""
    names = hosts.names_of(pair) if not hosts.available() else None
    config = Config.of(pair, names.path if names is not None else None)
    with Crew(client, config, processes=workers, threads=1, pause_s=math.inf) as crew:
        yield crew


def _settled_connections(pair: Pair, settled_s: float) -> int:
    """Return the number of sessions of the application's role on both servers, once it stays the same."""
    count, since_s = -1, 0.0

    def is_settled() -> bool:
        nonlocal count, since_s
        found = sum(server.sessions_of(ROLE, but="never") for server in pair.servers)
        if found != count:
            count, since_s = found, time.monotonic()
        return time.monotonic() - since_s >= settled_s

    wait_until(is_settled, timeout_s=SETTLE_TIMEOUT_S, what="connections to stay the same", poll_s=0.2)
    return count


def _polling(pair: Pair, pids: Sequence[int], window_s: float) -> Polling:
    """Measure for *window_s* seconds. Sleeps that long."""
    logs = {server: server.log_file.stat().st_size for server in pair.servers}
    before_s, began_s = sum(map(cpu_s, pids)), time.monotonic()
    time.sleep(window_s)
    lasted_s, used_s = time.monotonic() - began_s, sum(map(cpu_s, pids)) - before_s
    statements = sum(_statements_since(server, offset) for server, offset in logs.items())
    return Polling(statements / lasted_s, 1000 * used_s / lasted_s)


def _statements_since(server: Server, offset: int) -> int:
    """Count the statements of the application's role, which monitoring uses, too, in the log from *offset* on."""
    with server.log_file.open("rb") as log:
        log.seek(offset)
        return sum(_STATEMENT.search(line) is not None for line in log)


# -- tables ------------------------------------------------------------------------------------------------------------


def _row(client: str, workers: int, cost: Cost, baseline: Cost | None) -> Mapping[str, Value]:
    return {
        "workers": workers,
        "client": client,
        "connections": cost.connections,
        "created_per_s": cost.created.statements_per_s,
        "prepared_per_s": cost.prepared.statements_per_s,
        "created_cpu": cost.created.cpu_ms_per_s,
        "prepared_cpu": cost.prepared.cpu_ms_per_s,
        "pss_mb": cost.pss_mb,
        "extra_mb": cost.pss_mb - baseline.pss_mb if baseline is not None else None,
        "extra_each_mb": (cost.pss_mb - baseline.pss_mb) / workers if baseline is not None else None,
    }


def _table(rows: Sequence[Mapping[str, Value]], notes: tuple[str, ...]) -> Table:
    return Table(
        "processes",
        "The cost of monitoring, by worker processes",
        (
            Column("workers", "Workers", is_key=True),
            Column("client", "Client", is_key=True),
            Column("connections", "Connections beyond the pools'"),
            Column("created_per_s", "Statements/s", 1),
            Column("prepared_per_s", "Statements/s, switchover initiated", 1),
            Column("created_cpu", "CPU (ms/s)", 1),
            Column("prepared_cpu", "CPU, switchover initiated (ms/s)", 1),
            Column("pss_mb", "Memory, PSS (MB)", 1),
            Column("extra_mb", f"More than {BASELINE} (MB)", 1),
            Column("extra_each_mb", "The same for each worker (MB)", 1),
        ),
        tuple(rows),
        ranked_by=("connections", "prepared_per_s"),
        rivals="client",
        notes=(
            "Intervals: 0.5 s while a deployment exists, 0.1 s once a switchover is initiated. Connections and"
            " statements are the sum of blue and green. Statements are counted in the servers' logs.",
            "CPU and memory are the sum of all workers, of the monitor, and of the process that the workers are"
            " forked from, which has imported everything.",
            *notes,
        ),
    )


_PLOTS: Final = (
    Plot(
        "processes-connections", "Connections beyond the pools'", "processes", "lines", "workers", "connections",
        series="client", log="x",
    ),
    Plot(
        "processes-statements", "Statements/s while a switchover is initiated", "processes", "lines", "workers",
        "prepared_per_s", series="client", log="x",
    ),
    Plot("processes-memory", "Memory, PSS (MB)", "processes", "lines", "workers", "pss_mb", series="client", log="x"),
)  # fmt: skip

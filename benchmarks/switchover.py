"""A switchover under each client in turn: who sees errors, and for how long beyond the database's own down time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks import hosts
from benchmarks.aims import Aim, aims
from benchmarks.builds import BEFORE, NOW, builds
from benchmarks.clients import CLIENTS
from benchmarks.machine import measured_on
from benchmarks.result import Column, Plot, Result, Table, Value
from benchmarks.switchover_run import (
    CPU_AFTER_S,
    HEALTHY,
    HIGH_MS,
    QUICK,
    SCENARIOS,
    SETTLE_S,
    Application,
    Run,
    Scenario,
    play,
)

__all__ = ["QUESTION", "TITLE", "run"]

TITLE = "Switchover"
QUESTION = (
    "What do callers see of a switchover? The same application of several processes and threads writes rows through"
    " each client in turn, on a fresh pair of servers, while a probe that knows both addresses measures how long no"
    " server takes a write at all. What a thread goes without beyond that is the client's doing."
)

_QUICK_CLIENTS: Final = ("bgpool", "psycopg_pool", "oracle")
_QUICK_SETTLE_S: Final = CPU_AFTER_S

#: What the longest gap of a thread of the small application may have beyond the down time, by high interval in ms.
_EXCESS_S: Final[Mapping[int | None, float]] = {50: 0.03, 100: 0.035}
#: How much later than the oracle's the first success of the last and of the median thread of a large one may be.
_LAST: Final = 1.15
_MEDIAN: Final = 1.4
_SMALL: Final = Application()
_LARGE: Final = (
    Application(processes=64, threads=1, pause_s=0.25),
    Application(processes=8, threads=8, pause_s=0.25),
)
#: Clients with their interval, one after the other in turn; the oracle, which shows what can be had, does not poll.
_ORACLE: Final = "oracle"
_TARGET_CLIENTS: Final[tuple[tuple[str, int | None], ...]] = (
    (NOW, 50), (BEFORE, 50), (NOW, 100), (BEFORE, 100), (_ORACLE, None)
)  # fmt: skip

_COLUMNS: Final = (
    Column("scenario", "scenario", is_key=True),
    Column("client", "client", is_key=True),
    Column("lost", "rows lost"),
    Column("split", "rows split or doubled"),
    Column("never", "threads not back"),
    Column("errors", "errors"),
    Column("in_flight", "writes in flight at the cut"),
    Column("strayed", "connections left on the wrong side"),
    Column("down_s", "database down (s)", 3),
    Column("gap_s", "longest gap (s)", 3),
    Column("excess_s", "beyond the down time (s)", 3),
    Column("first_median_s", "first success, median thread (s)", 3),
    Column("first_last_s", "first success, last thread (s)", 3),
    Column("cpu_s", "CPU (s)", 2),
)
_TARGET_COLUMNS: Final = (
    Column("size", "processes × threads", is_key=True),
    Column("high_ms", "high interval (ms)", is_key=True),
    Column("client", "client", is_key=True),
    Column("never", "threads not back"),
    Column("errors", "errors"),
    Column("excess_s", "beyond the down time, longest (s)", 3),
    Column("median_excess_s", "the same, median thread (s)", 3),
    Column("first_median_s", "first success, median thread (s)", 3),
    Column("first_last_s", "first success, last thread (s)", 3),
)


def run(*, quick: bool) -> Result:
    """One repetition; *quick* is a healthy switchover with three clients."""
    scenarios, settle_s = ((QUICK,), _QUICK_SETTLE_S) if quick else (SCENARIOS, SETTLE_S)
    reason = hosts.available()
    clients = [
        name
        for name, spec in CLIENTS.items()
        if not (reason and spec.needs_names) and (name in _QUICK_CLIENTS or not quick)
    ]
    rows = [_row(scenario, client, settle_s) for scenario in scenarios for client in clients]
    table = Table(
        "switchover",
        "What callers see of a switchover",
        _COLUMNS,
        tuple(rows),
        ranked_by=("lost", "split", "never", "excess_s", "errors"),
        rivals="client",
        notes=_notes(clients, reason, settle_s),
    )
    plots = (
        Plot(
            "switchover-excess", "Longest gap beyond the down time (s)", "switchover", "bars", "scenario", "excess_s",
            "client", log="y",
        ),
        Plot("switchover-errors", "Errors that callers saw", "switchover", "bars", "scenario", "errors", "client",
             log="y"),
    )  # fmt: skip
    if quick:
        return Result((table,), plots)
    targets = _targets()
    return Result((table, targets, _aims(targets.rows)), plots)


def _row(scenario: Scenario, client: str, settle_s: float) -> dict[str, Value]:
    found = play(scenario, client, Application(), settle_s=settle_s)
    return {
        "scenario": scenario.name,
        "client": client,
        "lost": found.lost,
        "split": found.split,
        "in_flight": found.in_flight,
        "strayed": found.strayed,
        "down_s": found.down_s,
        "gap_s": found.longest_gap_s,
        "cpu_s": found.cpu_s,
        **_common(found),
    }


def _common(found: Run) -> dict[str, Value]:
    return {
        "never": found.never,
        "errors": found.errors,
        "excess_s": found.excess_s,
        "first_median_s": found.first_median_s,
        "first_last_s": found.first_last_s,
    }


def _targets() -> Table:
    rows: list[dict[str, Value]] = []
    with builds() as directories:
        for size in (_SMALL, *_LARGE):
            for client, high_ms in _TARGET_CLIENTS:
                if client == BEFORE and client not in directories:
                    continue
                name = client if client == _ORACLE else NOW
                found = play(HEALTHY, name, size, high_ms=high_ms or HIGH_MS, build=directories.get(client))
                rows.append(
                    {
                        "size": _size(size),
                        "high_ms": high_ms or "–",
                        "client": client,
                        "median_excess_s": found.median_excess_s,
                        **_common(found),
                    }
                )
    return Table(
        "targets",
        "A healthy switchover by size of the application and poll interval",
        _TARGET_COLUMNS,
        tuple(rows),
        notes=(
            f"Threads pause {_SMALL.pause_s * 1000:g} ms between two writes in the small application and"
            f" {_LARGE[0].pause_s * 1000:g} ms in the large ones. A thread that did not want to write at the"
            " very moment that the database went down has a shorter gap than the database: hence numbers below zero.",
        ),
    )


def _size(application: Application) -> str:
    return f"{application.processes} × {application.threads}"


def _aims(rows: Sequence[Mapping[str, Value]]) -> Table:
    """What of the figures is not to be exceeded."""

    def figure(size: Application, client: str, high_ms: int | None, name: str) -> float | None:
        key = (_size(size), client, high_ms or "–")
        found = next((row[name] for row in rows if (row["size"], row["client"], row["high_ms"]) == key), None)
        return found if isinstance(found, float) else None

    judged = [
        Aim(f"{_size(_SMALL)}, {high_ms} ms: beyond the down time (s)", most, figure(_SMALL, NOW, high_ms, "excess_s"))
        for high_ms, most in _EXCESS_S.items()
    ]
    for size in _LARGE:
        for name, which, most in (("first_last_s", "last", _LAST), ("first_median_s", "median", _MEDIAN)):
            ours, floor = figure(size, NOW, HIGH_MS, name), figure(size, _ORACLE, None, name)
            share = ours / floor if ours is not None and floor else None
            judged.append(Aim(f"{_size(size)}: first success, {which} thread, times the oracle's", most, share))
    return aims(*judged)


def _notes(clients: Sequence[str], reason: str, settle_s: float) -> tuple[str, ...]:
    application = Application()
    notes = [
        measured_on(),
        f"{application.processes} processes of {application.threads} threads each, which pause"
        f" {application.pause_s * 1000:g} ms between two writes, also after an error; as many connections as threads.",
        "A gap is from the first attempt after a success to the end of the next success. First success: from the"
        " database's first write after the outage.",
        f"Not back: the thread's last attempt failed or never ended, {settle_s:g} s after the last step. A client of"
        " which a thread is not back has no longest gap.",
        "In flight at the cut: threads with a write under way at some moment between the database's last write and the"
        " end of the step that cuts connections. The wrong side at the end is old blue, and green in a rollback; what"
        " a client keeps open there to monitor counts, bgpool's own monitor's two aside.",
        f"CPU: of all the client's processes, with what polls beside them, from the first step to {CPU_AFTER_S:g} s"
        " after the last.",
        "Who connects by name before DNS has moved comes to old blue, which lets clients in again and is read-only; a"
        " pool that finds nothing wrong with such a connection keeps it.",
    ]
    left_out = [name for name, spec in CLIENTS.items() if reason and spec.needs_names]
    if left_out:
        notes.append(f"Left out, because they need names of the system's: {', '.join(left_out)}. {reason}")
    notes += dict.fromkeys(CLIENTS[name].note for name in clients if CLIENTS[name].note)
    return tuple(notes)

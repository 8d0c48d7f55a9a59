"""A switchover under each client in turn: the errors of callers, and their gaps beyond the database's down time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks import hosts
from benchmarks.clients import CLIENTS
from benchmarks.machine import measured_on
from benchmarks.result import Column, Plot, Result, Table, Value
from benchmarks.switchover_run import (
    CPU_AFTER_S,
    QUICK,
    SCENARIOS,
    SETTLE_S,
    Application,
    Scenario,
    play,
)

__all__ = ["QUESTION", "TITLE", "run"]

TITLE = "Switchover"
QUESTION = (
    "What do callers see of a switchover? The same application of several processes and threads writes rows through"
    " each client in turn, on a fresh pair of servers. A probe that knows both addresses measures how long no server"
    " takes any write. The client causes the time that a thread loses beyond that."
)

_QUICK_CLIENTS: Final = ("bgpool", "psycopg_pool", "oracle")
_QUICK_SETTLE_S: Final = CPU_AFTER_S

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


def run(*, quick: bool) -> Result:
    """Run one repetition. With *quick* it is a healthy switchover with three clients."""
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
    return Result((table,), plots)


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
        "never": found.never,
        "errors": found.errors,
        "excess_s": found.excess_s,
        "first_median_s": found.first_median_s,
        "first_last_s": found.first_last_s,
    }


def _notes(clients: Sequence[str], reason: str, settle_s: float) -> tuple[str, ...]:
    application = Application()
    notes = [
        measured_on(),
        f"{application.processes} processes with {application.threads} threads each. A thread pauses"
        f" {application.pause_s * 1000:g} ms between two writes, also after an error. There are as many connections as"
        " threads.",
        "A gap lasts from the first attempt after a success to the end of the next success. First success: counted from"
        " the database's first write after the outage.",
        f"Not back: the thread's last attempt failed or never ended, {settle_s:g} s after the last step. A client with"
        " a thread that is not back has no longest gap.",
        "In flight at the cut: threads with a write under way at some moment between the database's last write and the"
        " end of the step that cuts connections. The wrong side at the end is old blue, and green in a rollback."
        " Monitoring connections that a client keeps open there count, except the two that bgpool's monitor has.",
        "CPU: the CPU time of all the client's processes, including those that poll, from the first step to"
        f" {CPU_AFTER_S:g} s after the last.",
        "A client that connects by name before DNS has moved reaches old blue, which accepts clients again and is"
        " read-only. A pool that finds no fault with such a connection keeps it.",
    ]
    left_out = [name for name, spec in CLIENTS.items() if reason and spec.needs_names]
    if left_out:
        notes.append(f"Left out, because they need system name resolution: {', '.join(left_out)}. {reason}")
    notes += dict.fromkeys(CLIENTS[name].note for name in clients if CLIENTS[name].note)
    return tuple(notes)

"""A storm of connections after a switchover: the attempts on green, and the time until full throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from benchmarks import hosts
from benchmarks.result import Column, Plot, Result, Table, Value
from benchmarks.storm_figures import BIN_MS, FULL
from benchmarks.storm_run import CASES, CLIENTS, SCHEDULE, Size, measure

__all__ = ["QUESTION", "TITLE", "run"]

TITLE = "A storm of connections"
QUESTION = (
    "How many connections are opened to green once callers are released, with 64 workers whose pools have room for "
    "eight each? How soon is the application's throughput back? Connections are counted in the server's own log, for "
    "the application's role alone."
)


def run(*, quick: bool) -> Result:
    """Run one storm for each case and client."""
    size = Size(4, 100.0, 0.5, replace(SCHEDULE, scale=0.4)) if quick else Size()
    cases = CASES[:1] if quick else CASES
    rows: list[Mapping[str, Value]] = []
    bins: list[Mapping[str, Value]] = []
    missing = hosts.available()
    for case in cases:
        for client in CLIENTS:
            if client.needs_names and missing:
                continue
            storm = measure(case, client, size)
            keys: Mapping[str, Value] = {"case": case.name, "client": client.name}
            rows.append({**keys, **storm.figures()})
            bins += [{**keys, **row} for row in storm.bins()]
    notes = (f"psycopg_pool was left out: {missing}",) if missing else ()
    return Result((_summary(rows, notes), _timeline(bins)), _PLOTS)


_KEYS: Final = (Column("case", "Before", is_key=True), Column("client", "Client", is_key=True))


def _summary(rows: Sequence[Mapping[str, Value]], notes: tuple[str, ...]) -> Table:
    return Table(
        "storm",
        "Connection attempts on green, and the return to full throughput",
        (
            *_KEYS,
            Column("held_before", "Connections held before"),
            Column("most_at_once", "Most being opened at once"),
            Column("busiest", f"Most attempts in {BIN_MS} ms"),
            Column("attempts", "Attempts"),
            Column("refused", "Attempts that failed"),
            Column("errors", "Errors callers saw"),
            Column("first_median_s", "First success, median worker (s)", 3),
            Column("first_last_s", "First success, last worker (s)", 3),
            Column("every_thread_s", "First success, last thread (s)", 3),
            Column("full_s", "Full throughput (s)", 3),
        ),
        tuple(rows),
        ranked_by=("errors", "every_thread_s"),
        rivals="client",
        notes=(
            "Times are counted from the moment at which a client could find green. For bgpool that is the release of"
            " its callers. For psycopg_pool, which uses DNS alone, it is the move of the names a second after green was"
            " open.",
            f"Full throughput: {FULL:.0%} of the earlier successes per {BIN_MS} ms.",
            "With 1 of 8 held, one thread of each worker worked before, and eight wait when callers are released.",
            "Attempts are counted up to the end of the switchover, and until every thread was back.",
            *notes,
        ),
    )


def _timeline(bins: Sequence[Mapping[str, Value]]) -> Table:
    columns = (
        *_KEYS,
        Column("at_ms", "From the release (ms)", is_key=True),
        Column("attempts", f"Attempts per {BIN_MS} ms"),
        Column("at_once", "Being opened at once"),
    )
    return Table("attempts", "Connection attempts on green", columns, tuple(bins), shown=False)


_PLOTS: Final = tuple(
    Plot(
        f"storm-{case.busy}",
        f"Connection attempts per {BIN_MS} ms on green: {case.name} before",
        "attempts",
        "lines",
        "at_ms",
        "attempts",
        series="client",
        where={"case": case.name},
    )
    for case in CASES
)

"""A switchover under small and large applications, compared with the oracle and with the build before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.aims import Aim, aims
from benchmarks.builds import BEFORE, NOW, builds
from benchmarks.machine import measured_on
from benchmarks.result import Column, Result, Table, Value
from benchmarks.switchover_run import HEALTHY, HIGH_MS, Application, play

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "A switchover by size of the application"
QUESTION: Final = (
    "How soon are all threads back, with eight threads and with sixty-four? Measured in a healthy switchover with this "
    "build, with the build before, and with the oracle. The oracle knows both addresses, does not poll, and uses only "
    "libpq."
)

#: The aim for a thread's longest gap beyond the down time, in the small application, by high interval in ms.
_EXCESS_S: Final[Mapping[int | None, float]] = {50: 0.03, 100: 0.035}
#: The aims for the first success of the last and of the median thread in large applications, relative to the oracle's.
_LAST: Final = 1.15
_MEDIAN: Final = 1.4
_SMALL: Final = Application()
_LARGE: Final = (
    Application(processes=64, threads=1, pause_s=0.25),
    Application(processes=8, threads=8, pause_s=0.25),
)
#: The clients with their intervals, in the order of the run. The oracle shows the lower bound and does not poll.
_ORACLE: Final = "oracle"
_CLIENTS: Final[tuple[tuple[str, int | None], ...]] = (
    (NOW, 50), (BEFORE, 50), (NOW, 100), (BEFORE, 100), (_ORACLE, None)
)  # fmt: skip

_COLUMNS: Final = (
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
    """Run one repetition. With *quick* it is the small application alone."""
    table = _table(quick=quick)
    return Result((table, _aims(table.rows)))


def _table(*, quick: bool) -> Table:
    rows: list[dict[str, Value]] = []
    with builds() as directories:
        for size in (_SMALL,) if quick else (_SMALL, *_LARGE):
            for client, high_ms in _CLIENTS:
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
                        "never": found.never,
                        "errors": found.errors,
                        "excess_s": found.excess_s,
                        "first_median_s": found.first_median_s,
                        "first_last_s": found.first_last_s,
                    }
                )
    return Table(
        "sizes",
        "A healthy switchover by size of the application and poll interval",
        _COLUMNS,
        tuple(rows),
        notes=(
            f"Threads pause {_SMALL.pause_s * 1000:g} ms between two writes in the small application and"
            f" {_LARGE[0].pause_s * 1000:g} ms in the large ones. A thread that was not about to write when the"
            " database went down has a shorter gap than the database. This explains numbers below zero.",
            measured_on(),
        ),
    )


def _size(application: Application) -> str:
    return f"{application.processes} × {application.threads}"


def _aims(rows: Sequence[Mapping[str, Value]]) -> Table:
    """Return the aims for the figures."""

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

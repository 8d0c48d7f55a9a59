"""The aims, and whether they are met: shown at the top of the page, and printed at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from benchmarks.result import Column, Result, Table, Value

__all__ = ["Aim", "aims", "as_markdown", "as_text", "verdicts"]

_NAME: Final = "aims"
_COLUMNS: Final = (
    Column("what", "What", is_key=True),
    Column("most", "Aim: at most", 3, is_key=True),
    Column("measured", "Measured", 3),
)


class Aim(NamedTuple):
    """A figure and its upper limit.

    Attributes:
        what: The description of the figure, with its unit.
        most: The aim, in that unit.
        measured: The figure of this repetition; None if nothing could be measured.
    """

    what: str
    most: float
    measured: float | None


def aims(*found: Aim) -> Table:
    """Return the aims of one benchmark as a table of its result. It is not shown with the other tables."""
    rows: tuple[Mapping[str, Value], ...] = tuple(aim._asdict() for aim in found)
    return Table(_NAME, "Aims", _COLUMNS, rows, shown=False)


def verdicts(results: Mapping[str, Result]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield for each aim: benchmark, what, aim, measured, and the share of the aim with a verdict.

    *results* are merged results by name. An aim is met in the median, or in every repetition; the verdict says which.
    """
    for name, result in results.items():
        for table in result.tables:
            if table.name != _NAME:
                continue
            spreads = table.spread or ({},) * len(table.rows)
            for row, spread in zip(table.rows, spreads, strict=True):
                yield (name, *_judge(row, spread.get("measured")))


def _judge(row: Mapping[str, Value], spread: tuple[float, float] | None) -> tuple[str, str, str, str]:
    what, most, measured = str(row["what"]), row["most"], row["measured"]
    assert isinstance(most, (int, float))
    if not isinstance(measured, (int, float)):
        return what, f"{most:g}", "–", "not measured"
    least, greatest = spread or (measured, measured)
    text = f"{measured:.3g}" if least == greatest else f"{measured:.3g} ({least:.3g} to {greatest:.3g})"
    verdict = "met" if greatest <= most else "met in the median" if measured <= most else "missed"
    return what, f"{most:g}", text, f"{measured / most:.2f}, {verdict}" if most else verdict


def as_markdown(results: Mapping[str, Result]) -> str:
    """Return all aims of *results* as one table; empty if there are none."""
    heads = ("Benchmark", "What", "Aim: at most", "Measured", "Share of the aim")
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | ---: | ---: | ---: |"]
    rows = [f"| {name} | {' | '.join(rest)} |" for name, *rest in verdicts(results)]
    return "\n".join([*lines, *rows]) + "\n" if rows else ""


def as_text(results: Mapping[str, Result]) -> str:
    """Return the same for a terminal."""
    rows = [
        f"  {name}: {what}: {measured}, aim {most}: {verdict}"
        for name, what, most, measured, verdict in verdicts(results)
    ]
    return "\n".join(["Aims", *rows]) + "\n" if rows else ""

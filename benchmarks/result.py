"""The results of a benchmark: tables, whose rows are identified by their keys, and pictures of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

__all__ = ["Column", "Plot", "Result", "Table", "Value", "merge"]

#: None stands for a missing value. For example, a client that never came back has no recovery time.
Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        key: The name in the rows.
        label: The heading, including the unit.
        digits: The digits after the decimal point; None for text and counts.
        is_key: True if it identifies rows. All other columns are measured.
    """

    key: str
    label: str
    digits: int | None = None
    is_key: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures of one kind.

    Attributes:
        rows: The rows, by the keys of *columns*.
        spread: The smallest and the largest value of each measured number over the repetitions; empty for a single one.
        ranked_by: The measured columns by which rows are ranked, smallest first. The first column with a difference
            counts. Empty if rows are not ranked.
        rivals: The key column whose values are ranked. Rows that share the other keys are ranked together.
        rankings: The names of each group of rivals, best first, for each repetition; see merge().
        notes: The notes below the table, one line each.
        shown: True if it is printed, False if it is only drawn.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Value], ...]
    spread: tuple[Mapping[str, tuple[float, float]], ...] = ()
    ranked_by: tuple[str, ...] = ()
    rivals: str = ""
    rankings: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    shown: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that identify rows."""
        return tuple(column.key for column in self.columns if column.is_key)

    def key_of(self, row: Mapping[str, Value]) -> tuple[Value, ...]:
        """Return the values that identify *row*."""
        return tuple(row.get(key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of a table: *y* over *x*, with one line or group of bars for each value of *series*."""

    name: str
    title: str
    table: str
    kind: Literal["bars", "lines"]
    x: str
    y: str
    series: str = ""
    log: Literal["", "x", "y", "xy"] = ""
    where: Mapping[str, Value] | None = None
    """The values of the rows that are drawn; empty for all rows."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one benchmark in one repetition, or in several that were merged."""

    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result in a form for json.dumps."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Return the result of as_json()'s form."""
        tables = tuple(
            Table(
                **{
                    **table,
                    "columns": tuple(Column(**column) for column in table["columns"]),
                    "rows": tuple(table["rows"]),
                    "spread": tuple({k: (v[0], v[1]) for k, v in row.items()} for row in table["spread"]),
                    "ranked_by": tuple(table["ranked_by"]),
                    "rankings": tuple({k: tuple(v) for k, v in each.items()} for each in table["rankings"]),
                    "notes": tuple(table["notes"]),
                }
            )
            for table in data["tables"]
        )
        return cls(tables, tuple(Plot(**plot) for plot in data["plots"]))


def merge(results: Sequence[Result]) -> Result:
    """Return the medians of *results*, repetitions of one benchmark, with their spread and their rankings."""
    first = results[0]
    tables = [_merge([next(t for t in result.tables if t.name == table.name) for result in results])
              for table in first.tables]  # fmt: skip
    return Result(tuple(tables), first.plots)


def _merge(tables: Sequence[Table]) -> Table:
    first = tables[0]
    groups: dict[tuple[Value, ...], list[Mapping[str, Value]]] = {}
    for table in tables:
        for row in table.rows:
            groups.setdefault(table.key_of(row), []).append(row)
    rows, spreads = [], []
    for group in groups.values():
        merged: dict[str, Value] = {}
        spread: dict[str, tuple[float, float]] = {}
        for column in first.columns:
            values = [row[column.key] for row in group if row.get(column.key) is not None]
            numbers = [value for value in values if isinstance(value, (int, float))]
            if column.is_key or (values and not numbers):
                merged[column.key] = values[0] if len(set(values)) == 1 else ", ".join(sorted({str(v) for v in values}))
            elif numbers and len(numbers) * 2 > len(group):
                merged[column.key] = statistics.median(numbers)
                spread[column.key] = (min(numbers), max(numbers))
            else:
                # Most values are missing. The few that exist would show only the lucky repetitions.
                merged[column.key] = None
        rows.append(merged)
        spreads.append(spread)
    notes = tuple(dict.fromkeys(note for table in tables for note in table.notes))
    return replace(
        first,
        rows=tuple(rows),
        spread=tuple(spreads),
        rankings=tuple(_ranking(table) for table in tables) if first.ranked_by else (),
        notes=notes,
    )


def _ranking(table: Table) -> dict[str, tuple[str, ...]]:
    """Return the rivals of each group, best first. Rivals that never came back are last."""

    def place(row: Mapping[str, Value]) -> tuple[tuple[bool, float], ...]:
        values = [row.get(key) for key in table.ranked_by]
        return tuple((not isinstance(v, (int, float)), v if isinstance(v, (int, float)) else 0.0) for v in values)

    groups: dict[str, list[Mapping[str, Value]]] = {}
    for row in table.rows:
        others = ", ".join(str(row[key]) for key in table.keys if key != table.rivals)
        groups.setdefault(others, []).append(row)
    return {name: tuple(str(row[table.rivals]) for row in sorted(rows, key=place)) for name, rows in groups.items()}

"""Tables as text for a terminal, and as Markdown for the docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from benchmarks.result import Column, Table, Value

__all__ = ["as_markdown", "as_text", "rankings"]


def as_text(table: Table) -> str:
    """Return *table* with aligned columns, followed by its ranking and its notes."""
    lines = [[column.label for column in table.columns], *_cells(table)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    text = [table.title, *("  " + "  ".join(map(_fit, line, widths, table.columns)).rstrip() for line in lines)]
    return "\n".join([*text, *(f"  {line}" for line in (*rankings(table), *table.notes))]) + "\n"


def as_markdown(table: Table) -> str:
    """Return *table* as Markdown for GitHub and MkDocs."""
    rule = ["---" if column.is_key else "---:" for column in table.columns]
    lines = [[column.label for column in table.columns], rule, *_cells(table)]
    text = [f"**{table.title}**", "", *("| " + " | ".join(line) + " |" for line in lines)]
    below = [f"- {line}" for line in (*rankings(table), *table.notes)]
    return "\n".join([*text, *(["", *below] if below else [])]) + "\n"


def rankings(table: Table) -> Iterator[str]:
    """Yield the ranking of each group of rivals, with ``≈`` between rivals whose order differs between repetitions."""
    if not table.rankings:
        return
    for group in dict.fromkeys(name for ranking in table.rankings for name in ranking):
        orders = [ranking[group] for ranking in table.rankings if group in ranking]
        times = "in all of " * (len(orders) > 1) + f"{len(orders)} repetition" + "s" * (len(orders) > 1)
        yield f"Ranking{f' ({group})' if group else ''}, {times}: {_agreed(orders)}"
    labels = {column.key: column.label for column in table.columns}
    by = ", then ".join(labels[key] for key in table.ranked_by)
    yield f"Ranked by {by}. The smallest value is best; a missing value is last. ≈ joins clients that changed places."


def _agreed(orders: list[tuple[str, ...]]) -> str:
    """Return the rivals by the sum of their places, with ``<`` or ``≈`` between neighbours."""
    names = sorted(orders[0], key=lambda name: sum(order.index(name) for order in orders if name in order))
    text = names[0]
    for before, name in pairwise(names):
        both = [order for order in orders if before in order and name in order]
        text += f" {'<' if all(o.index(before) < o.index(name) for o in both) else '≈'} {name}"
    return text


def _cells(table: Table) -> list[list[str]]:
    spreads = table.spread or ({},) * len(table.rows)
    return [
        [_cell(column, row, spread) for column in table.columns]
        for row, spread in zip(table.rows, spreads, strict=True)
    ]


def _cell(column: Column, row: Mapping[str, Value], spread: Mapping[str, tuple[float, float]]) -> str:
    text = _number(column, row.get(column.key))
    least, most = (_number(column, value) for value in spread.get(column.key, (None, None)))
    return text if least == most else f"{text} ({least} to {most})"


def _number(column: Column, value: Value) -> str:
    if value is None:
        return "–"
    if isinstance(value, (int, float)):
        return f"{value:,.{column.digits or 0}f}" if not column.is_key else str(value)
    return value


def _fit(text: str, width: int, column: Column) -> str:
    return text.ljust(width) if column.is_key else text.rjust(width)

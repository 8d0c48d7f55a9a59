"""Tables as text for a terminal, and as Markdown for the docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from benchmarks.result import Column, Table, Value

__all__ = ["as_markdown", "as_text", "rankings"]


def as_text(table: Table) -> str:
    """*table* in columns of equal width, with its ranking and its notes below."""
    lines = [[column.label for column in table.columns], *_cells(table)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    text = [table.title, *("  " + "  ".join(map(_fit, line, widths, table.columns)).rstrip() for line in lines)]
    return "\n".join([*text, *(f"  {line}" for line in (*rankings(table), *table.notes))]) + "\n"


def as_markdown(table: Table) -> str:
    """*table* as GitHub and MkDocs read it."""
    rule = ["---" if column.is_key else "---:" for column in table.columns]
    lines = [[column.label for column in table.columns], rule, *_cells(table)]
    text = [f"**{table.title}**", "", *("| " + " | ".join(line) + " |" for line in lines)]
    below = [f"- {line}" for line in (*rankings(table), *table.notes)]
    return "\n".join([*text, *(["", *below] if below else [])]) + "\n"


def rankings(table: Table) -> Iterator[str]:
    """Who is before whom, one line for each group of rivals, and who changed places between repetitions."""
    if not table.rankings:
        return
    for group, last in table.rankings[-1].items():
        orders = [ranking[group] for ranking in table.rankings if group in ranking]
        swapped = [
            f"{a} and {b}"
            for a, b in combinations(last, 2)
            if len({order.index(a) < order.index(b) for order in orders if a in order and b in order}) > 1
        ]
        times = f"in {len(orders)} repetitions" if len(orders) > 1 else "in 1 repetition"
        same = f"the same {times}" if not swapped else f"{times}; {', '.join(swapped)} changed places"
        yield f"Ranking{f' ({group})' if group else ''}, {same}: {' < '.join(_typical(orders))}"
    labels = {column.key: column.label for column in table.columns}
    yield f"Ranked by {', then '.join(labels[key] for key in table.ranked_by)}; the least is best, and nothing is last."


def _typical(orders: list[tuple[str, ...]]) -> list[str]:
    """The rivals by the sum of their places."""
    return sorted(orders[0], key=lambda name: sum(order.index(name) for order in orders if name in order))


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

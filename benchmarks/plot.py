"""Draw the pictures of tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.result import Column, Plot, Table, Value

__all__ = ["draw", "picture"]

#: The colours go from dark to light, so that readers who see no colours can distinguish them.
_COLOURS: Final = ("#1b4f72", "#d35400", "#2e8b57", "#8e44ad", "#c0392b", "#5d6d7e", "#b7950b", "#17a589", "#909497")
_SIZE: Final = (9.0, 4.5)
#: The salt gives the same figures the same ids in the SVG. Text stays text.
_STYLE: Final = {"svg.hashsalt": "bgpool", "svg.fonttype": "none", "font.size": 9}


def picture(plot: Plot) -> str:
    """Return the file name of *plot*."""
    return f"bench-{plot.name}.svg"


def draw(plot: Plot, table: Table, path: Path) -> None:
    """Write *plot* of *table* as SVG to *path*. The same figures result in the same file."""
    rows = [row for row in table.rows if all(row.get(key) == value for key, value in (plot.where or {}).items())]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        (_bars if plot.kind == "bars" else _lines)(axes, plot, rows)
        axes.set_title(plot.title)
        axes.set_ylabel(_label(table, plot.y))
        if plot.kind == "lines":
            axes.set_xlabel(_label(table, plot.x))
        if "x" in plot.log:
            axes.set_xscale("log", base=2)
            measured: list[Any] = list(dict.fromkeys(row[plot.x] for row in rows))
            axes.set_xticks(measured, [str(value) for value in measured])
        if "y" in plot.log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, format="svg", metadata={"Date": None})


def _bars(axes: Any, plot: Plot, rows: list[Mapping[str, Value]]) -> None:
    """Draw bars, and a cross for a missing value. No bar at all would look like the best value."""
    places = list(dict.fromkeys(str(row[plot.x]) for row in rows))
    series = _series(plot, rows)
    width = 0.8 / len(series)
    crosses = False
    for number, (name, members) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        offset = (number - (len(series) - 1) / 2) * width
        # The series must be in the legend even if it has no bar.
        axes.plot([], [], "s", label=name or None, color=colour)
        for row in members:
            at, height = places.index(str(row[plot.x])) + offset, row.get(plot.y)
            if not isinstance(height, (int, float)):
                axes.text(at, 0.97, "×", color=colour, ha="center", va="top", transform=axes.get_xaxis_transform())
                crosses = True
            elif height > 0 or "y" not in plot.log:
                axes.bar(at, height, width, color=colour)
            else:
                axes.text(at, 0.01, "≤0", color=colour, fontsize=6, ha="center", transform=axes.get_xaxis_transform())
    axes.set_xticks(range(len(places)), places)
    if crosses:
        axes.set_xlabel("× never came back")
    axes.margins(y=0.15)


def _lines(axes: Any, plot: Plot, rows: list[Mapping[str, Value]]) -> None:
    for number, (name, members) in enumerate(_series(plot, rows).items()):
        points = [(row[plot.x], row[plot.y]) for row in members if isinstance(row.get(plot.y), (int, float))]
        style = {"marker": "o" if len(points) < 20 else "", "color": _COLOURS[number % len(_COLOURS)]}
        axes.plot([x for x, _ in points], [y for _, y in points], label=name or None, **style)


def _series(plot: Plot, rows: list[Mapping[str, Value]]) -> dict[str, list[Mapping[str, Value]]]:
    found: dict[str, list[Mapping[str, Value]]] = {}
    for row in rows:
        found.setdefault(str(row[plot.series]) if plot.series else "", []).append(row)
    return found


def _label(table: Table, key: str) -> str:
    columns: dict[str, Column] = {column.key: column for column in table.columns}
    return columns[key].label

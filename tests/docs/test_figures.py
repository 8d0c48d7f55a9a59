"""The figures of the first pages are those of the benchmarks' page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.once

DOCS = ROOT / "docs"
#: The columns of the benchmarks' table that the page *Why* shows.
COLUMNS = ("beyond the down time (s)", "errors", "threads not back")


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table on *page* whose header row begins with *first*, the header row included."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(first))
    end = next(index for index in range(begin, len(lines)) if not lines[index].startswith("|"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin:end]]
    return [table[0], *table[2:]]


def plain(cell: str) -> str:
    """*cell* without emphasis, units and remarks."""
    return re.sub(r" s$|, plain blocks| \(pool\.run\)", "", cell.replace("**", "").replace("`", ""))


def healthy() -> dict[str, dict[str, str]]:
    """Return the cells of the healthy switchover, by client and column."""
    header, *measured = rows("benchmarks.md", "| scenario | client | rows lost")
    return {row[1]: dict(zip(header, row, strict=True)) for row in measured if row[0] == "healthy"}


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"], ids=lambda page: page.name)
def test_the_first_sentences_have_the_figure_of_the_benchmarks(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    shown = re.findall(r"last of eight threads writes again ([\d.]+) s after the database can \(([^)]*) s\)", text)
    assert [f"{median} ({extent})" for median, extent in shown] == [
        healthy()["bgpool"]["first success, last thread (s)"]
    ]


def test_why_shows_figures_of_the_benchmarks() -> None:
    _, *shown = rows("why.md", "| client | beyond")
    assert len(shown) >= 5
    for row in shown:
        client, *figures = map(plain, row)
        assert figures == [healthy()[client][column] for column in COLUMNS], client

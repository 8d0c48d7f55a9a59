"""Repetitions become tables, rankings and a page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bgpool
from benchmarks import aims, builds, page
from benchmarks.__main__ import NAMES, keep, load, main, merged
from benchmarks.plot import picture
from benchmarks.render import as_markdown, as_text, rankings
from benchmarks.result import Column, Plot, Result, Table, Value, merge

COLUMNS = (
    Column("scenario", "scenario", is_key=True),
    Column("client", "client", is_key=True),
    Column("never", "never"),
    Column("gap_s", "gap, s", 2),
)


def result(**gaps: float | None) -> Result:
    """One repetition: a gap for each client; None for one that never came back."""
    rows: tuple[dict[str, Value], ...] = tuple(
        {"scenario": "healthy", "client": client, "never": int(gap is None), "gap_s": gap}
        for client, gap in gaps.items()
    )
    table = Table("t", "Gaps", COLUMNS, rows, ranked_by=("never", "gap_s"), rivals="client", notes=("A note.",))
    return Result((table,), (Plot("gap", "Gaps", "t", "bars", "scenario", "gap_s", "client"),))


def gaps(table: Table) -> dict[Value, Value]:
    return {row["client"]: row["gap_s"] for row in table.rows}


def test_rows_become_medians_with_their_spread() -> None:
    (table,) = merge([result(a=0.1, b=5.0), result(a=0.3, b=6.0), result(a=0.2, b=7.0)]).tables
    assert gaps(table) == {"a": 0.2, "b": 6.0}
    assert [spread["gap_s"] for spread in table.spread] == [(0.1, 0.3), (5.0, 7.0)]
    assert "0.20 (0.10 to 0.30)" in as_text(table)
    assert "| healthy | b | 0 | 6.00 (5.00 to 7.00) |" in as_markdown(table)


def test_what_was_mostly_not_there_is_not_told_by_the_lucky_ones() -> None:
    (table,) = merge([result(a=None), result(a=None), result(a=0.2)]).tables
    assert gaps(table) == {"a": None}
    (table,) = merge([result(a=None), result(a=0.4), result(a=0.2)]).tables
    assert gaps(table) == {"a": pytest.approx(0.3)}


def test_who_never_came_back_is_last() -> None:
    (table,) = merge([result(never=None, slow=9.0, fast=0.1)]).tables
    assert list(rankings(table)) == [
        "Ranking (healthy), 1 repetition: fast < slow < never",
        "Ranked by never, then gap, s. The smallest value is best; a missing value is last. "
        "≈ joins clients that changed places.",
    ]


def test_changed_ranks_are_reported() -> None:
    same = merge([result(a=0.1, b=0.2), result(a=0.2, b=0.3)])
    assert next(rankings(same.tables[0])) == "Ranking (healthy), in all of 2 repetitions: a < b"
    other = merge([result(a=0.1, b=0.2, c=1.0), result(a=0.3, b=0.2, c=1.0), result(a=0.1, b=0.2, c=1.0)])
    assert next(rankings(other.tables[0])) == "Ranking (healthy), in all of 3 repetitions: a ≈ b < c"


def test_a_result_survives_json() -> None:
    for found in (result(a=0.1), merge([result(a=0.1), result(a=None)])):
        assert Result.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_results_are_kept_by_name_and_machine(tmp_path: Path) -> None:
    one = {"at": "2026-01-01T00:00:00+00:00", "took_s": 1.0, "load_before": 0.1, "result": result(a=0.1).as_json()}
    keep(tmp_path, {"storm": [one]}, quick=False)
    keep(tmp_path, {"status": [one, one]}, quick=False)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert {name: len(runs) for name, runs in kept["runs"].items()} == {"storm": 1, "status": 2}
    assert {"processor", "cores", "memory", "system"} == set(kept["machine"])
    assert {"Python", "bgpool", "psycopg", "PostgreSQL"} <= set(kept["versions"])
    # Figures of a quick run are not put next to others.
    keep(tmp_path, {"status": [one]}, quick=True)
    assert list(json.loads((tmp_path / "results.json").read_text())["runs"]) == ["status"]


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_asks(name: str) -> None:
    assert load(name).TITLE
    assert load(name).QUESTION.endswith((".", "?"))


def test_names_and_counts_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in ((["strom"], "no benchmark 'strom'"), (["--repeat", "0"], "from 1 to 20, not 0")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert told in capsys.readouterr().err


class TestPage:
    """No figure of the page is typed by hand."""

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(page.RESULTS.read_text(encoding="utf-8"))
        return found

    def test_it_says_what_was_measured(self) -> None:
        text = page.PAGE.read_text(encoding="utf-8")
        assert page.fill(text, self.results()) == text

    def test_all_was_measured_three_times(self) -> None:
        results = self.results()
        assert not results["quick"]
        assert {name: len(runs) for name, runs in results["runs"].items()} == dict.fromkeys(NAMES, 3)

    def test_its_pictures_are_there(self) -> None:
        for runs in self.results()["runs"].values():
            for plot in merged(runs).plots:
                assert (page.IMAGES / picture(plot)).exists()

    def test_what_is_typed_has_no_figures(self) -> None:
        text = page.PAGE.read_text(encoding="utf-8")
        typed = re.sub(r"<!-- figures: \w+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
        assert re.findall(r"\d[\d.,]*\s?(?:ns|µs|ms|s|%|MiB|MB|times)\b", typed) == []

    def test_a_block_for_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="blocks for"):
            page.fill("<!-- figures: nothing -->\n<!-- end -->", self.results())


class TestAims:
    """The figures show whether an aim was met."""

    def results(self, *measured: float | None) -> dict[str, Result]:
        found = [Result((aims.aims(aims.Aim("excess, s", 0.03, value)),)) for value in measured]
        return {"switchover": merge([Result.from_json(json.loads(json.dumps(each.as_json()))) for each in found])}

    @pytest.mark.parametrize(
        ("measured", "told"),
        [
            ((0.02, 0.03, 0.01), "0.67, met"),
            ((0.02, 0.04, 0.01), "0.67, met in the median"),
            ((0.02, 0.04, 0.06), "1.33, missed"),
            ((None, None, 0.01), "not measured"),
        ],
    )
    def test_every_repetition_counts(self, measured: tuple[float | None, ...], told: str) -> None:
        ((name, what, aim, _, verdict),) = aims.verdicts(self.results(*measured))
        assert (name, what, aim, verdict) == ("switchover", "excess, s", "0.03", told)
        assert aims.as_markdown(self.results(*measured)).endswith(f" | {told} |\n")
        assert told in aims.as_text(self.results(*measured))

    def test_no_aims_no_table(self) -> None:
        assert aims.as_markdown({"a": result(a=0.1)}) == aims.as_text({"a": result(a=0.1)}) == ""


def test_the_build_before_is_another_one() -> None:
    with builds.builds() as found:
        ours = Path(bgpool.__file__).parent
        assert (found[builds.NOW] / "bgpool" / "__init__.py").exists()
        for name, build in found.items():
            code = "import bgpool; print(bgpool.__file__)"
            told = subprocess.run(
                [sys.executable, "-c", code],
                env=builds.environment(build, dict(os.environ)),
                cwd="/",
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            assert Path(told.strip()).parent == build / "bgpool", name
            assert name == builds.NOW or build / "bgpool" != ours

"""Texts of servers, drivers and files stay text in every command's output: no markup, and no terminal control."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bgpool
from bgpool.cli import demo, doctor, lab, rehearse
from bgpool.cli.view import draw, make_console
from bgpool.doctor import Finding, Result
from bgpool.lab.rehearsal import Rehearsed
from bgpool.report import Event
from tests.cli.screens import READY, SWITCHING

#: An error of a pool begins like the first part; the second ends a style that has not begun; the last clears a
#: screen.
FOREIGN = "[bg_id: 'ledger'] cut; [/x] :warning: \x1b[2J"
SHOWN = "[bg_id: 'ledger'] cut; [/x] :warning: \N{REPLACEMENT CHARACTER}[2J"


def test_there_is_one_kind_of_console() -> None:
    made = [
        path.name
        for path in Path(bgpool.__file__).parent.rglob("*.py")
        if re.search(r"\bConsole\(|rich import print|print_json", path.read_text(encoding="utf-8"))
    ]
    assert made == ["view.py"]


def test_the_demos_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen: the bg_id was missing from the errors on it, and ``[/x]`` in one ended the demo."""
    verdict = SimpleNamespace(acknowledged=1, lost=0, split=0, doubled=0)
    figures = dict.fromkeys(("errors", "down_s", "longest_gap_s", "excess_s", "monitoring_connections", "missing"), 0)
    report: Any = SimpleNamespace(verdict=verdict, snapshot=None, error_examples=[FOREIGN], clean=False, **figures)
    demo._show(make_console(), report, 4)
    assert SHOWN in capsys.readouterr().out


def test_the_doctors_findings(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._show([Finding("blue", "login", "Is the login accepted?", Result.FAILED, FOREIGN, FOREIGN)])
    assert capsys.readouterr().out.count(SHOWN) == 2


def test_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    lab._show(make_console(), {"name": "rds", "findings": [FOREIGN]}, 1.0)
    assert SHOWN in capsys.readouterr().out


def test_a_rehearsal(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event("2026-11-25T14:12:24.500Z", 0, "IN_PROGRESS", FOREIGN)
    report = Rehearsed(**{**dict.fromkeys(Rehearsed.__dataclass_fields__), **_REHEARSED, "events": (event,)})
    make_console().print(rehearse.draw(report))
    assert capsys.readouterr().out.count(SHOWN) == 2


_REHEARSED: dict[str, Any] = {
    "processes": (),
    "findings": (FOREIGN,),
    "down_s": 0.0,
    "monitoring_connections": 2,
    "killed": False,
    "ended_by_itself": False,
}


def test_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event("2026-11-25T14:12:24.500Z", 0, "IN_PROGRESS", FOREIGN)
    hostile = replace(SWITCHING, bg_id=FOREIGN, run_dir=FOREIGN, missing=(FOREIGN,), events=(event,))
    make_console().print(draw(hostile))
    assert capsys.readouterr().out.count(SHOWN) == 4
    make_console().print(draw(READY))

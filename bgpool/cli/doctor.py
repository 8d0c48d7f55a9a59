"""``bgpool doctor``: print the findings, as lines or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Final

import typer
from rich.text import Text

from bgpool.cli.view import make_console, plain
from bgpool.doctor import Case, Finding, Result, examine, exit_code
from bgpool.errors import ConfigurationError

__all__ = ["report_findings", "run", "tell"]

_COLOURS: Final = {
    Result.OK: "green",
    Result.WARNING: "yellow",
    Result.FAILED: "bold red",
    Result.NOT_CHECKED: "dim",
}
#: Findings that need action come first; within a result, the order of the examination.
_ORDER: Final = (Result.FAILED, Result.WARNING, Result.NOT_CHECKED, Result.OK)


def run(
    dsn: str,
    *,
    bg_id: str | None,
    processes: int | None,
    max_size: int | None,
    busy_limit_s: float | None,
    as_json: bool,
) -> int:
    """Examine *dsn* and print the findings. Return the exit status: 0, 1 if a check failed, 2 for an invalid DSN."""
    try:
        case = Case(dsn, bg_id=bg_id, processes=processes, max_size=max_size, busy_limit_s=busy_limit_s)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        return 2
    return tell(case, as_json=as_json)


def tell(case: Case, *, as_json: bool) -> int:
    """Examine *case* and print the findings. Return the exit status: 0, or 1 if a check failed."""
    findings = examine(case)
    report_findings(case, findings, as_json=as_json)
    return exit_code(findings)


def report_findings(case: Case, findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print the findings of *case*, those that need action first."""
    findings = sorted(findings, key=lambda finding: _ORDER.index(finding.result))
    if as_json:
        typer.echo(json.dumps(report(case, findings)))
    else:
        _show(findings)


def report(case: Case, findings: Sequence[Finding]) -> dict[str, object]:
    """Return the findings for JSON."""
    counts = Counter(finding.result for finding in findings)
    return {
        "bg_id": case.settings.bg_id,
        "engine": case.dsn.engine.value,
        "endpoint": case.alias.endpoint,
        "counts": {result.value: counts[result] for result in Result},
        "findings": [
            {
                "where": finding.where,
                "check": finding.check,
                "question": finding.question,
                "result": finding.result.value,
                "finding": finding.text,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def _show(findings: Sequence[Finding]) -> None:
    console = make_console(soft_wrap=True)
    for where, found in groupby(findings, key=lambda finding: finding.where):
        console.print(Text(where, style="bold"))
        for finding in found:
            result = Text(f"{finding.result.value:11}", style=_COLOURS[finding.result])
            console.print(Text("  ").append_text(result).append(f"  {finding.check:13}  {plain(finding.text)}"))
            if finding.remedy:
                console.print(f"{'':30}do: {plain(finding.remedy)}")
    counts = Counter(finding.result for finding in findings)
    console.print(Text(", ".join(f"{counts[result]} {result.value}" for result in Result)))

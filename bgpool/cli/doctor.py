"""``bgpool doctor``: the findings, as lines or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Final

import typer

from bgpool.doctor import Case, Finding, Result, examine, exit_code
from bgpool.errors import ConfigurationError

__all__ = ["run"]

_COLOURS: Final = {
    Result.OK: typer.colors.GREEN,
    Result.WARNING: typer.colors.YELLOW,
    Result.FAILED: typer.colors.RED,
    Result.NOT_CHECKED: typer.colors.BRIGHT_BLACK,
}


def run(dsn: str, *, bg_id: str | None, processes: int | None, max_size: int, as_json: bool) -> int:
    """Examine *dsn* and print what was found; the exit status: 0, 1 if a check failed, 2 if the DSN cannot be used."""
    try:
        case = Case(dsn, bg_id=bg_id, processes=processes, max_size=max_size)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        return 2
    findings = examine(case)
    if as_json:
        typer.echo(json.dumps(report(case, findings)))
    else:
        _show(findings)
    return exit_code(findings)


def report(case: Case, findings: Sequence[Finding]) -> dict[str, object]:
    """The findings as JSON has them."""
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
    for where, found in groupby(findings, key=lambda finding: finding.where):
        typer.secho(where, bold=True)
        for finding in found:
            result = typer.style(f"{finding.result.value:11}", fg=_COLOURS[finding.result])
            typer.echo(f"  {result}  {finding.check:13}  {finding.text}")
            if finding.remedy:
                typer.echo(f"  {'':11}  {'':13}  do: {finding.remedy}")
    counts = Counter(finding.result for finding in findings)
    typer.echo(", ".join(f"{counts[result]} {result.value}" for result in Result))

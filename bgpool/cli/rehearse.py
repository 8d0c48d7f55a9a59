"""``bgpool rehearse``: run an application of the user through a switchover, and report the results."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bgpool.cli.view import make_console, plain
from bgpool.lab.errors import LabError, ProgramsError
from bgpool.lab.rehearsal import NotRehearsedError, Plan, Rehearsed, Requests, UnusablePlanError, rehearse
from bgpool.lab.rehearsal.report import how
from bgpool.report import Event

__all__ = ["FAILED", "NO_LAB", "WENT_THROUGH", "WRONG_CALL", "draw", "run"]

WENT_THROUGH, FAILED, WRONG_CALL, NO_LAB = 0, 1, 2, 3


def run(plan: Plan, log: Path | None, *, as_json: bool) -> int:
    """Execute *plan* and print the result; return the exit status.

    The command's output goes to *log*, or, like everything except the report, to standard error.
    """
    began_s = time.monotonic()
    progress = make_console(stderr=True, soft_wrap=True)

    def tell(line: str) -> None:
        progress.print(Text(plain(f"{time.monotonic() - began_s:6.2f} s  {line}"), "dim"))

    try:
        with _output(log) as output:
            report = rehearse(plan, output=output, tell=tell)
    except UnusablePlanError as error:
        return _fail(error, WRONG_CALL)
    except NotRehearsedError as error:
        return _fail(error, FAILED)
    except ProgramsError as error:
        return _fail(error.advise("--programs DIR"), NO_LAB if plan.programs is None else WRONG_CALL)
    except LabError as error:
        return _fail(f"the lab failed: {error}", NO_LAB)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        make_console().print(draw(report))
    return WENT_THROUGH if report.went_through else FAILED


def draw(report: Rehearsed) -> Group:
    """Print *report*."""
    parts: list[RenderableType] = [_facts(report), Text(""), _events(report.events)]
    if report.processes:
        parts += [Text(""), _processes(report)]
    parts.append(Text(""))
    parts += [Text(plain(f"NOT WELL: {finding}"), "bold red") for finding in report.findings]
    if report.went_through:
        parts.append(Text("WENT THROUGH", "bold green"))
    return Group(*parts)


def _facts(report: Rehearsed) -> Table:
    facts = Table.grid(padding=(0, 2), pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("outcome", f"{report.outcome} ({report.scenario}, {report.flavour}, {report.servers})")
    facts.add_row("database down", f"{report.down_s:.3f} s, for a client that knows both addresses")
    if report.requests is not None:
        for label, text in _requests(report.requests):
            facts.add_row(label, text)
    blue, green = ("?" if n is None else str(n) for n in (report.connections_on_blue, report.connections_on_green))
    facts.add_row(
        "connections",
        f"{green} on green, {blue} on old blue at the end"
        if report.outcome == "completed"
        else f"{blue} on blue, {green} on green at the end",
    )
    facts.add_row("monitoring", f"{report.monitoring_connections} connections")
    facts.add_row("command", _command(report))
    return facts


def _requests(requests: Requests) -> Iterator[tuple[str, Text]]:
    yield "requests", Text(f"{requests.answered} answered, {requests.failed} failed  ({plain(requests.url)})")
    for example in requests.examples:
        yield "", Text(plain(example), "red")
    yield "longest gap", Text(f"{requests.longest_gap_s:.3f} s, {requests.excess_s:.3f} s more than the database's")


def _command(report: Rehearsed) -> str:
    if report.killed:
        return "did not end after SIGTERM, and was killed"
    when = "ended by itself" if report.ended_by_itself else "ended after SIGTERM"
    return when if report.exit_status is None else f"{when}, {how(report.exit_status)}"


def _events(events: tuple[Event, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("offset", justify="right", min_width=9)
    table.add_column("event")
    table.add_column("told by")
    for event in events:
        table.add_row(f"{event.offset_ms / 1000:+.3f} s", plain(event.event), plain(event.evidence))
    return table


def _processes(report: Rehearsed) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("pid", "held", "for", "drained", "cut", "connections", "checkouts"):
        table.add_column(title, justify="right", min_width=7)
    table.add_column("")
    for process in report.processes:
        fate = "" if process.fate == "there" else process.fate
        table.add_row(
            str(process.pid),
            str(process.most_held),
            f"{process.held_s:.2f} s",
            str(process.drained),
            str(process.cut),
            str(process.connections),
            str(process.checkouts),
            Text(fate, "bold red" if fate == "gone" else "yellow"),
        )
    return table


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[IO[bytes] | int]:
    if log is None:
        yield sys.stderr.fileno()
        return
    try:
        file = log.open("wb")
    except OSError as error:
        raise UnusablePlanError(f"{log} cannot be written: {error.strerror}") from None
    with file:
        yield file


def _fail(why: object, status: int) -> int:
    print(plain(str(why)), file=sys.stderr)
    return status

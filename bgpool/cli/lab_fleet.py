"""``bgpool lab fleet``: the monitors of many hosts, one switchover, and their queries to the database."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bgpool.cli.view import make_console, plain
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab.errors import LabError, ProgramsError
from bgpool.lab.fleet import BUS_FAULTS, PHASES, Fault, Plan, Result, findings_of, heard_findings, play
from bgpool.lab.server_factories import find_servers

__all__ = ["fault_of", "play_fleet"]


def fault_of(kill_leader: str | None, stop_leader: str | None, bus_fault: tuple[str, str] | None) -> Fault | None:
    """Return the fault from the options; None for none.

    Raises:
        ValueError: An unknown phase or fault, or two faults at once.
    """
    wanted = []
    if kill_leader is not None:
        wanted.append(Fault("kill leader", _phase(kill_leader)))
    if stop_leader is not None:
        wanted.append(Fault("stop leader", _phase(stop_leader)))
    if bus_fault is not None:
        what, phase = bus_fault
        if what not in BUS_FAULTS:
            raise ValueError(f"--bus-fault {what}: {', '.join(BUS_FAULTS)} are allowed")
        wanted.append(Fault(f"bus {what}", _phase(phase)))
    if len(wanted) > 1:
        raise ValueError("one of --kill-leader, --stop-leader and --bus-fault is allowed")
    return wanted[0] if wanted else None


def play_fleet(plan: Plan, count: int, *, as_json: bool) -> bool:
    """Run one host alone, then *plan* *count* times; print the results. Return whether all were clean.

    Args:
        plan: The plan.
        count: The number of runs.
        as_json: True to print JSON.

    Raises:
        ProgramsError: The servers' programs, or those of the bus, are missing or cannot be used.
    """
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    console = make_console(stderr=as_json)
    servers = find_servers(Engine.POSTGRESQL, plan.pair_options.get("programs"), "minor")
    console.print(plain(f"on {servers}"))
    results: list[Result] = []
    findings: list[list[str]] = []
    one: Result | None = None
    try:
        if plan.fleet:
            alone = Plan(1, fleet=False, pair_options=plan.pair_options, pool_options=plan.pool_options)
            one = _play(alone, console, "one host alone")
        for number in range(1, count + 1):
            fleet = f"a fleet of {plan.hosts} hosts" if plan.fleet else f"{plan.hosts} hosts, each for itself"
            results.append(_play(plan, console, f"{fleet}, {number} of {count}"))
            findings.append(findings_of(results[-1], one))
            _show(console, results[-1], one, findings[-1])
    except ProgramsError:
        raise
    except LabError as error:
        findings.append([f"the lab failed: {error}"])
        _tell_findings(console, findings[-1])
    more = heard_findings(results)
    if more:
        console.print(Text("BROKEN", "bold red").append(f", all {len(results)} together", "default"))
        _tell_findings(console, more)
    if as_json:
        played = [{**result.to_json(), "findings": found} for result, found in zip(results, findings, strict=False)]
        failed = findings[len(results) :]
        alone_json = one.to_json() if one is not None else None
        print(json.dumps({"servers": servers, "alone": alone_json, "played": played, "findings": sum(failed, more)}))
    return not any(findings) and not more


def _play(plan: Plan, console: Console, title: str) -> Result:
    console.print(plain(title))
    began = time.monotonic()

    def tell(line: str) -> None:
        console.print(f"{time.monotonic() - began:8.2f}  {plain(line)}")

    return play(plan, tell)


def _show(console: Console, result: Result, one: Result | None, findings: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    columns = ["one host", "all", "leaders", "refused", "connections", "busiest"]
    for column in columns if one is not None else columns[1:]:
        table.add_column(column, justify="right")
    for phase in PHASES:
        load = result.loads[phase.name]
        alone = [f"{one.loads[phase.name].per_s:.1f}/s"] if one is not None else []
        table.add_row(
            phase.name, *alone, f"{load.per_s:.1f}/s", f"{load.of_leaders_per_s:.1f}/s", str(load.refused),
            str(load.connections), f"{load.busiest_per_s:.0f}/s",
        )  # fmt: skip
    console.print(table)
    facts: dict[str, Any] = {
        "fault": result.fault or "none",
        "leaders": ", ".join(f"host {host}" for host in result.leaders) or "none",
        "rows": f"{result.rows}; {result.lost} lost, {result.doubled} doubled, {result.split} split, "
        f"{result.half} in half; {result.errors} errors",
        "IN_PROGRESS heard": f"by the last host {_ms(result.heard_s)} after the first",
        "release heard": f"by the last host {_ms(result.heard_release_s)} after the first",
        "released": f"the last host {_ms(result.release_s)} after green took writes",
        "outage": f"{result.down_s:.2f} s, and {result.excess_s:.2f} s more for the last caller",
    }
    for name, value in facts.items():
        console.print(f"{name:20} {plain(str(value))}", soft_wrap=True)
    colour, word = ("bold red", "BROKEN") if findings else ("green", "clean")
    console.print(Text(word, colour))
    _tell_findings(console, findings)


def _tell_findings(console: Console, findings: Sequence[str]) -> None:
    for finding in findings:
        console.print(f"         {plain(finding)}", soft_wrap=True)


def _ms(seconds: float | None) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds is not None else "never"


def _phase(name: str) -> Phase:
    wanted = name.upper().replace("-", "_")
    if wanted not in {phase.name for phase in PHASES}:
        raise ValueError(f"phase {name!r}: {', '.join(phase.name for phase in PHASES)} are allowed")
    return Phase[wanted]

"""``bgpool lab``: the catalogue of switchovers on real servers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bgpool.cli.view import make_console, plain
from bgpool.core.engine import Engine
from bgpool.lab import simulation
from bgpool.lab.chaos import Chaos
from bgpool.lab.errors import LabError, ProgramsError
from bgpool.lab.scenarios import CATALOGUE, Outcome, Scenario, play
from bgpool.lab.server_factories import find_servers

__all__ = [
    "list_scenarios",
    "play_scenarios",
    "run_chaos",
    "simulate",
    "simulate_fleets",
    "trace_fleet",
    "trace_simulation",
]

PROGRESS_EVERY = 1000


def list_scenarios(*, as_json: bool) -> None:
    """Print the catalogue."""
    if as_json:
        print(json.dumps([_description(scenario) for scenario in CATALOGUE.values()]))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("scenario", no_wrap=True)
    table.add_column("what happens")
    for scenario in CATALOGUE.values():
        table.add_row(scenario.name, scenario.description)
    make_console().print(table)


def _description(scenario: Scenario) -> dict[str, Any]:
    engines = [engine.value for engine in scenario.engines]
    return {
        "name": scenario.name,
        "story": scenario.story,
        "evidence": scenario.evidence,
        "engines": engines,
        "pairs": list(scenario.upgrades),
    }


def play_scenarios(scenarios: Sequence[Scenario], engine: Engine, options: Mapping[str, Any], *, as_json: bool) -> bool:
    """Run *scenarios* one after the other and print the results. Return whether all were clean.

    Args:
        scenarios: The scenarios.
        engine: The database engine.
        options: Keywords for `Pair`, including ``programs`` and ``upgrade``.
        as_json: True to print JSON.

    Raises:
        ProgramsError: The servers' programs are missing or cannot be used.
    """
    _quiet_driver()
    console = make_console(stderr=as_json)
    servers = find_servers(engine, options["programs"], options["upgrade"])
    console.print(f"on {plain(servers)}")
    results = []
    for scenario in scenarios:
        began = time.monotonic()
        try:
            result = _summary(play(scenario, engine, options))
        except ProgramsError:
            raise
        except LabError as error:
            result = {"name": scenario.name, "findings": [f"the lab failed: {error}"]}
        results.append({**result, "servers": servers})
        _show(console, result, time.monotonic() - began)
    if as_json:
        print(json.dumps(results))
    return not any(result["findings"] for result in results)


def _summary(outcome: Outcome) -> dict[str, Any]:
    report = outcome.report
    return {
        "name": outcome.scenario.name,
        "findings": list(outcome.findings),
        "rows": report.verdict.acknowledged,
        "lost": report.verdict.lost,
        "doubled": report.verdict.doubled,
        "split": report.verdict.split,
        "half": report.verdict.half,
        "undecided": report.undecided,
        "errors": report.errors,
        "evidence": report.evidence,
        "release_s": report.release_s,
        "resume_s": report.resume_s,
        "down_s": report.down_s,
        "longest_gap_s": report.longest_gap_s,
        "longest_call_s": report.longest_call_s,
        "monitoring_connections": report.monitoring_connections,
    }


def _show(console: Console, result: dict[str, Any], took_s: float) -> None:
    colour, word = ("bold red", "BROKEN") if result["findings"] else ("green", "clean")
    line = Text.assemble((f"{word:6}", colour), f" {result['name']:30} {took_s:5.1f} s")
    if "rows" in result:
        line.append(f"  {result['rows']:6} rows, {result['errors']} errors, down {result['down_s']:.2f} s")
    if result.get("release_s") is not None and result["evidence"]:
        line.append(f", released after {result['release_s'] * 1000:.0f} ms by {result['evidence']}")
    console.print(line, soft_wrap=True)
    for finding in result["findings"]:
        console.print(f"         {plain(finding)}", soft_wrap=True)


def simulate(count: int, first_seed: int, processes: int) -> bool:
    """Simulate *count* switchovers and print those that broke a promise. Return whether there were none."""
    console = make_console()
    began, broken, rows, unknown = time.monotonic(), 0, 0, 0
    for number, outcome in enumerate(simulation.simulate_many(count, first_seed, processes=processes), 1):
        rows += outcome.acknowledged
        unknown += outcome.unknown
        broken += _complain(console, outcome)
        if number % PROGRESS_EVERY == 0 or number == count:
            rate = 60 * number / (time.monotonic() - began)
            console.print(
                f"{number} switchovers, {rows} units, {unknown} unknown, {broken} broken, {rate:.0f} a minute"
            )
    return not broken


def _complain(console: Console, outcome: simulation.Outcome | simulation.FleetOutcome) -> bool:
    """Print the broken promises of one simulated switchover; return whether there were any."""
    if outcome.violations:
        console.print(Text.assemble((f"seed {outcome.seed}", "bold red"), f": {outcome.story}"), soft_wrap=True)
        for violation in outcome.violations:
            console.print(f"    {violation}", soft_wrap=True)
    return bool(outcome.violations)


def trace_simulation(seed: int) -> bool:
    """Print the events of a simulated switchover, in seconds from IN_PROGRESS. Return whether it kept all promises."""
    outcome = simulation.simulate(seed, trace=print)
    print(f"seed {seed}: {outcome.story}")
    return not outcome.violations


def simulate_fleets(count: int, first_seed: int, hosts: int, processes: int) -> bool:
    """Simulate fleets of *hosts* hosts in the same way."""
    console = make_console()
    began, broken, fallbacks, worst_s = time.monotonic(), 0, 0, 0.0
    outcomes = simulation.simulate_fleets(count, hosts, first_seed, processes=processes)
    for number, outcome in enumerate(outcomes, 1):
        fallbacks += outcome.fallbacks
        worst_s = max(worst_s, outcome.lag_s or 0.0)
        broken += _complain(console, outcome)
        if number % PROGRESS_EVERY == 0 or number == count:
            rate = 60 * number / (time.monotonic() - began)
            console.print(
                f"{number} fleets, {fallbacks} fallbacks, last release {worst_s:.3f} s after a host alone at worst, "
                f"{broken} broken, {rate:.0f} a minute"
            )
    return not broken


def trace_fleet(seed: int, hosts: int) -> bool:
    """Print the events of one simulated fleet of *hosts* hosts."""
    outcome = simulation.simulate_fleet(seed, hosts, trace=print)
    print(f"seed {seed}: {outcome.story}")
    return not outcome.violations


def _quiet_driver() -> None:
    """Suppress the driver's log lines about connections that are cut on purpose."""
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


def run_chaos(engine: Engine, options: Mapping[str, Any], seed: int, seconds: float, *, as_json: bool) -> bool:
    """Run chaos and print the result. Return whether it was clean. *options* are those of `play_scenarios`.

    Raises:
        ProgramsError: The servers' programs are missing or cannot be used.
    """
    _quiet_driver()
    console = make_console(stderr=as_json)
    servers = find_servers(engine, options["programs"], options["upgrade"])
    began = time.monotonic()

    def tell(line: str) -> None:
        console.print(f"{time.monotonic() - began:8.2f}  {plain(line)}")

    try:
        report = Chaos(seed, seconds, tell, engine, options).run()
    except LabError as error:
        console.print(Text.assemble(("BROKEN", "bold red"), f" seed {seed}: {error}"), soft_wrap=True)
        return False
    result = {
        "servers": servers,
        "seed": seed,
        "switchovers": report.switchovers,
        "blows": dict(report.blows),
        "rows": report.verdict.acknowledged,
        "lost": report.verdict.lost,
        "doubled": report.verdict.doubled,
        "split": report.verdict.split + report.split,
        "half": report.verdict.half,
        "errors": len(report.errors),
        "longest_call_s": report.longest_call_s,
        "descriptors_grown": report.descriptors_grown,
        "resident_grown_kib": report.resident_grown_kib,
        "findings": report.findings,
    }
    if as_json:
        print(json.dumps(result))
    for name, value in result.items():
        console.print(f"{name:20} {value}", soft_wrap=True)
    return not report.findings

"""``bgpool lab once``: many switchovers or failovers with COMMITs in flight, each applied exactly once."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bgpool.cli.view import make_console, plain
from bgpool.core.engine import Engine
from bgpool.lab.mysql.mariadb import MariaDB
from bgpool.lab.once import Journal, Part, Result, Run, play_all
from bgpool.lab.program_paths import unusable
from bgpool.lab.server_factories import find_servers

__all__ = ["play_once"]


def play_once(run: Run, journal: Path | None, options: Sequence[str], *, as_json: bool) -> bool:
    """Execute *run*, print the results and the sums. Return whether all were clean.

    Args:
        run: The run.
        journal: The file of earlier runs; None for none.
        options: The command's own options, to repeat one seed.
        as_json: True to print JSON.

    Raises:
        ProgramsError: The servers' programs are missing or cannot be used.
        ValueError: The file is not a journal.
        OSError: It cannot be read or written.
    """
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    console = make_console(stderr=as_json)
    upgrade = run.pair_options.get("upgrade", "minor")
    servers = find_servers(run.engine, run.pair_options.get("programs"), upgrade)
    if run.failover and run.engine is Engine.MYSQL and not servers.startswith(MariaDB.name):
        need = "a failover needs semi-synchronous replication, which the lab has of MariaDB alone"
        raise unusable(Engine.MYSQL, f"{need}, not of {servers}")
    run = replace(run, title=f"{servers}, {'failovers' if run.failover else 'switchovers'}")
    console.print(plain(f"on {run.title}"))
    known = 0

    def tell(result: Result, is_known: bool) -> None:
        nonlocal known
        known += is_known
        if is_known and not result.findings:
            return
        colour, word = ("bold red", "BROKEN") if result.findings else ("green", "clean")
        line = Text.assemble((f"{word:6}", colour), f" seed {result.seed:<5} {result.took_s:5.1f} s")
        line.append(f"  {result.story}, {result.hold or 'no'} hold: {result.open_commits} COMMITs open,")
        line.append(f" {result.receipts.unknown} and {result.without.unknown} unknown")
        console.print(line, soft_wrap=True)
        for finding in result.findings:
            console.print(f"         {plain(finding)}", soft_wrap=True)
        if result.findings:
            again = ["bgpool", "lab", "once", *options, "--seed", str(result.seed), "--count", "1"]
            console.print(f"         again: {plain(shlex.join(again))}", soft_wrap=True)

    results = list(play_all(run, Journal(journal), tell))
    if known:
        console.print(f"{known} of them are the journal's")
    broken = [result.seed for result in results if result.findings]
    sums = _sums(results)
    if as_json:
        print(json.dumps({"title": run.title, **sums, "broken": broken}))
    else:
        console.print(_table(sums))
    return not broken


def _sums(results: Sequence[Result]) -> dict[str, Any]:
    names = ("open_commits", "kills", "rows", "lost", "doubled", "split", "half", "abandoned")
    receipts = sum((result.receipts for result in results), Part())
    without = sum((result.without for result in results), Part())
    return {
        "played": len(results),
        **{name: sum(getattr(result, name) for result in results) for name in names},
        **{
            name: {key: getattr(part, key) for key in ("units", "errors", "unknown", "again", "already")}
            for name, part in (("receipts", receipts), ("without", without))
        },
    }


def _table(sums: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    labels = {
        "played": "played",
        "open_commits": "COMMITs open when they were cut",
        "kills": "workers and monitors killed",
        "rows": "units acknowledged",
        "lost": "lost",
        "doubled": "doubled",
        "split": "split",
        "half": "half",
        "abandoned": "lost by replication",
    }
    for name, label in labels.items():
        table.add_row(label, str(sums[name]))
    for name, label in (("receipts", "with receipts"), ("without", "without")):
        part = sums[name]
        text = f"{part['units']} units, {part['errors']} errors, {part['unknown']} unknown"
        if name == "receipts":
            text += f"; tasks run again: {part['again']} applied then, {part['already']} before"
        table.add_row(label, text)
    return table

"""``bgpool status``: print this host's status of its deployments, without any connection."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from bgpool.base_errors import Error
from bgpool.report import Status, find, switched_off
from bgpool.segment.paths import look_in

__all__ = ["SUMMARY", "absent", "main"]

SUMMARY = "What this host knows of its deployments: phase, monitor, endpoints, workers. Connects to nothing."

_EXIT = "Exit status: 0; 1 if --bg-id names none that this host knows, or with --ready the host may not be switched \
over; 2 for a wrong call or a run directory that is not to be trusted."


def main(arguments: Sequence[str]) -> int:
    """Print the status of one bg_id, or of every bg_id in the run directory; return the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        found = find(asked.bg_id, asked.run_dir)
    except Error as error:
        print(error, file=sys.stderr)
        return 2
    statuses = [deployment.status() for deployment in found]
    known = [deployment for deployment in found if deployment.is_known()]
    if asked.json:
        print(json.dumps([status.as_dict() for status in statuses], indent=1))
    elif asked.ready:
        _say_ready(statuses)
    elif known:
        _draw(statuses)
    unknown = asked.bg_id is not None and not known
    if not known and (unknown or not asked.json):
        print(absent(asked.bg_id, asked.run_dir), file=sys.stderr if asked.json else sys.stdout)
    ready = bool(statuses) and all(status.ready for status in statuses)
    return 1 if unknown or (asked.ready and not ready) else 0


def absent(bg_id: str | None, run_dir: Path | str | None) -> str:
    """Return a text about a bg_id without files: where and as which user bgpool looked, what exists, what to try."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        # In a container the user often has no name.
        user = str(uid)
    where = look_in(Path(run_dir) if run_dir is not None else None)
    others = [deployment.status().bg_id for deployment in find(None, run_dir)] if bg_id is not None else []
    text = (
        f"bg_id {bg_id!r} is not known in run directory {where} (user {user}); known: {', '.join(map(repr, others))}"
        if others
        else f"no process on this host has used a pool with run directory {where} (user {user}); run this as the "
        "application's user, or name its directory with --run-dir or $BGPOOL_RUN_DIR"
    )
    return "\n".join((text, *switched_off()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bgpool status", description=SUMMARY, epilog=_EXIT, allow_abbrev=False)
    parser.add_argument("--bg-id", metavar="ID", help="which Blue/Green Deployment; default: all in the run directory")
    parser.add_argument("--run-dir", metavar="DIR", help="as bg_run_dir; default: where pools look, too")
    parser.add_argument("--ready", action="store_true", help="say whether this host may be switched over, or why not")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _say_ready(statuses: Sequence[Status]) -> None:
    for status in statuses:
        # In the form of the logs; a name from a file may contain terminal control sequences.
        name = f"{status.host}: bg_id {status.bg_id!r}"
        if status.ready:
            print(f"{name} is ready for a switchover: {_count(status, 'worker', 'workers')}")
            print(f"{name}: {_reconnections(status)}")
        for reason in status.missing:
            print(f"{name} is not ready: {reason}")
        for note in status.notes:
            print(f"{name}: {note}")


def _count(status: Status, one: str, many: str) -> str:
    number = len(status.workers)
    return f"{number} {one if number == 1 else many}"


def _reconnections(status: Status) -> str:
    """Return a line about the connections that this host's pools may open to green at the release."""
    processes, green = _count(status, "process", "processes"), status.green_max_connections
    if all(worker.max_size for worker in status.workers):
        most = status.totals.max_size
        pools = " or ".join(map(str, sorted({worker.max_size for worker in status.workers})))
        text = f"at the release {processes} (max_size {pools}) may open up to {most} connections to green"
    else:
        # Django and others keep connections themselves, without a known maximum.
        most = sum(worker.max_size or worker.in_use + worker.idle for worker in status.workers)
        text = f"at the release {processes}, not all of them with a max_size, may open {most} connections to green"
        text += ", or more"
    if green is None:
        return f"{text}; how many it takes is not known yet"
    text += f"; its max_connections is {green}, for all hosts"
    if most <= green:
        return text
    return f"WARNING: {text}. Callers may time out: lower max_size or the number of processes, or raise max_connections"


def _draw(statuses: Sequence[Status]) -> None:
    # Imported here, because the import takes longer than the rest of the command.
    from bgpool.cli.view import draw, make_console

    console = make_console()
    for number, status in enumerate(statuses):
        if number:
            console.print()
        console.print(draw(status))

"""A mount namespace without /proc or /dev/shm, as in a chroot or a container without them.

Run as a program there, it plays a whole switchover: ``python -m tests.processes.hidden``. The servers are
MariaDB's: the programs of PostgreSQL's wheel find their libraries through /proc.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.processes.sandbox import play

if TYPE_CHECKING:
    from bgpool.lab import Pair

#: The shell commands that hide each place, in this order. A /dev that contains only the devices has no /dev/shm.
HIDE: Final = {
    "/dev/shm": """
        dev=$(mktemp -d) && mount -t tmpfs none "$dev" && ln -s /proc/self/fd "$dev/fd"
        for name in null zero random urandom; do touch "$dev/$name" && mount --bind "/dev/$name" "$dev/$name"; done
        mount --rbind "$dev" /dev
    """,
    "/proc": "mount -t tmpfs none /proc",
}


def without(places: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command that runs *command* in a namespace without *places*. The user stays the same."""
    # In its own /dev/shm the default run directory has no other process.
    own = [] if "/dev/shm" in places else ["mount -t tmpfs -o mode=1777 none /dev/shm"]
    script = "\n".join(["set -e", *own, *(HIDE[place] for place in HIDE if place in places)])
    if os.geteuid() == 0:
        return ["unshare", "--mount", "sh", "-c", f'{script}\nexec "$@"', "sh", *command]
    again = f"unshare --user --map-user={os.geteuid()} --map-group={os.getegid()}"
    start = ["unshare", "--user", "--map-root-user", "--mount"]
    return [*start, "sh", "-c", f'{script}\nexec {again} "$@"', "sh", *command]


class _Events(logging.Handler):
    """Collects the event and text of each WARNING, and of the line that names the run directory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", ""))
        if record.levelno >= logging.WARNING or event == "run_dir_created":
            self.seen.append((event, record.getMessage()))


def _use_the_default_run_dir(pair: Pair) -> dict[str, object]:
    """Use two deployments without bg_run_dir; return the logged events and the lines of the reports."""
    import bgpool
    from bgpool.doctor import Case
    from bgpool.doctor.host_checks import host_checks
    from tests.waiting import wait_until

    def is_watched(bg_id: str) -> bool:
        return bgpool.status(bg_id).monitor.state == "alive"

    events = _Events()
    logging.getLogger("bgpool").addHandler(events)
    logging.getLogger("bgpool").setLevel(logging.INFO)
    with contextlib.ExitStack() as stack:
        for bg_id in ("one", "two"):
            options: dict[str, Any] = {
                "bg_id": bg_id,
                "bg_resolver": pair.resolver,
                "bg_fleet": None,
                "min_size": 1,
                "max_size": 1,
            }
            pool = bgpool.get_pool(pair.dsn, **options)
            with stack.enter_context(pool).connection() as conn:
                conn.cursor().execute("SELECT 1")
            wait_until(partial(is_watched, bg_id))
        found = [bgpool.status(bg_id) for bg_id in ("one", "two")]
        findings = host_checks.run(Case(pair.dsn), "this host")
    return {
        "there": [place for place in HIDE if Path(place, "self" if place == "/proc" else "").exists()],
        "run_dir": found[0].run_dir,
        "monitor_processes": len({one.monitor.pid for one in found}),
        "log": events.seen,
        "host": {one.check: [one.result.value, one.text, one.remedy] for one in findings},
    }


if __name__ == "__main__":
    json.dump(play("mysql", _use_the_default_run_dir), sys.stdout)

"""The screens in docs/status.md: ``python -m tests.cli.screens`` draws the picture again."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bgpool.cli.view import draw
from bgpool.core.phase import Phase
from bgpool.report import Endpoint, Event, LastSwitchover, Monitor, Status, Worker

__all__ = ["PICTURE", "READY", "SWITCHING", "as_text"]

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "watch.svg"

_ZONE = "c0abcdefghij.eu-west-1.rds.amazonaws.com"

READY = Status(
    bg_id="ledger",
    host="web-1",
    run_dir="/dev/shm/bgpool-1000",
    phase=Phase.CREATED,
    sequence=7,
    missing=(),
    monitor=Monitor("alive", 2101, 3, 0.1, f"app@ledger.{_ZONE}:5432/ledger"),
    timer_ms=None,
    offset_ms=None,
    endpoints=(Endpoint(f"ledger.{_ZONE}", 5432, ("10.0.1.17",), f"ledger-green-x1y2z3.{_ZONE}", ("10.0.2.41",)),),
    green_max_connections=100,
    workers=tuple(
        Worker(2088 + n, 0, 0, in_use, 4 - in_use, 0, 0, 0, 0, 0, 4, 1, 0, 0.2, False)
        for n, in_use in enumerate((3, 1, 2, 4))
    ),
    events=(),
    last_switchover=LastSwitchover("2026-10-02T21:04:11.480Z", "rolled back", 4130, None, ""),
)

SWITCHING = replace(
    READY,
    phase=Phase.IN_PROGRESS,
    sequence=11,
    missing=(
        "a switchover is under way: IN_PROGRESS",
        "the newest snapshot is not applied by 1 of 4 workers: pid 2091",
        "1 of 4 workers have not reported for 5.2 s: pid 2091",
    ),
    timer_ms=174_800,
    offset_ms=1420,
    workers=(
        Worker(2088, 0, 6, 0, 0, 0, 5, 1, 0, 1420, 5, 1, 0, 0.1, False),
        Worker(2089, 0, 4, 0, 0, 0, 4, 0, 2, 1380, 5, 1, 0, 0.1, False),
        Worker(2090, 0, 5, 1, 0, 0, 4, 0, 0, 1410, 5, 1, 0, 0.1, False),
        Worker(2091, 1, 0, 2, 2, 0, 0, 0, 0, 0, 5, 1, 0, 5.2, True),
    ),
    events=(
        Event("2026-11-25T14:12:18.123Z", -3790, "PREPARATION", ""),
        Event("2026-11-25T14:12:21.913Z", 0, "IN_PROGRESS", ""),
    ),
)


def as_text(status: Status) -> str:
    """Return the screen as in a file, 80 columns wide."""
    console = Console(file=io.StringIO(), width=80, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(draw(status))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def draw_picture() -> None:
    """Write PICTURE."""
    console = Console(file=io.StringIO(), width=80, highlight=False, record=True, force_terminal=True)
    console.print(draw(SWITCHING))
    svg = console.export_svg(title="bgpool watch", unique_id="watch")
    # The docs must not load a font from another site.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    PICTURE.write_text(re.sub(r"[ \t]+$|^\s*\n", "", svg, flags=re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    draw_picture()

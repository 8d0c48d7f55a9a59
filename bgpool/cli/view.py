"""Rendering of a status on a terminal or in a text file, 80 columns wide."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bgpool.core.fleet import FleetRole
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.timeline import TIMER
from bgpool.report import Endpoint, Fleet, LastSwitchover, Monitor, Status, Worker

__all__ = ["LABEL_COLUMNS", "draw", "make_console", "plain"]

_COLOURS: Final = {
    Phase.CREATED: "bold cyan",
    Phase.PREPARATION: "bold yellow",
    Phase.IN_PROGRESS: "bold red",
    Phase.POST: "bold green",
    Phase.COMPLETED: "green",
}
#: The width of a pipe, which has none: names and reasons should not be broken there unless they are very long.
_PIPE_COLUMNS: Final = 160
_EVENTS: Final = 8
#: Columns at an edge. Their texts are padded: rich before 14.3 adds the table's padding to their min_width.
LABEL_COLUMNS: Final = 9
_AGE_COLUMNS: Final = 6


def make_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Return a console for standard output or standard error; without a terminal it is wide enough for every line.

    Every command prints through one of these. Markup and emoji codes are off, because texts come from servers, drivers
    and files, and ``[bg_id: 'ledger']`` or ``[/x]`` in them is plain text. Styles are passed separately.
    """
    known = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    width = None if known else _PIPE_COLUMNS
    return Console(stderr=stderr, soft_wrap=soft_wrap, width=width, highlight=False, markup=False, emoji=False)


def draw(status: Status, *, events: bool = False, most_workers: int | None = None) -> Group:
    """Return the rendered *status*.

    Args:
        status: The status.
        events: True to include the events of a switchover that is over.
        most_workers: The maximum of worker rows; workers that need attention come first. None for all.
    """
    facts = Table.grid(padding=(0, 2), pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for label, text in _facts(status, events=events or status.phase in SWITCHING):
        facts.add_row(label.ljust(LABEL_COLUMNS), text)
    title = _title(status)
    return Group(title, facts, "", _workers(status, most_workers)) if status.workers else Group(title, facts)


def _title(status: Status) -> Text:
    text = Text(plain(status.bg_id), "bold")
    if status.phase is not None:
        text.append(f"  {status.phase.name}", _COLOURS.get(status.phase, ""))
    else:
        text.append("  no snapshot", "bold yellow")
    if status.by_timer:
        text.append(" by the timer", "bold red")
    if status.offset_ms is not None:
        text.append(f"  {_seconds(status.offset_ms)}")
    if status.ready:
        text.append("  ready for a switchover", "bold green")
    elif status.phase is Phase.CREATED:
        text.append("  not ready", "bold yellow")
    return text


def _facts(status: Status, *, events: bool) -> Iterator[tuple[str, Text]]:
    yield "run dir", Text(plain(status.run_dir))
    yield "monitor", _monitor(status.monitor)
    if status.monitor.parameters:
        told = f": {status.monitor.visibility}" if status.monitor.visibility else ""
        yield "as", Text(plain(f"{status.monitor.parameters}{told}"), "yellow" if told else "")
    if status.fleet is not None:
        yield "fleet", _fleet(status.fleet)
    for number, text in enumerate(status.blind):
        yield "" if number else "tried", Text(plain(text))
    for number, reason in enumerate(status.missing):
        yield "" if number else "missing", Text(plain(reason), "yellow")
    if status.by_hand is not None:
        left = f"{status.by_hand.order} until {status.by_hand.until}, {status.by_hand.left_ms / 1000:.0f} s left"
        yield "by hand", Text(left, "bold yellow")
    for number, text in enumerate(status.notes if status.phase not in SWITCHING else ()):
        yield "" if number else "note", Text(plain(text))
    if status.timer_ms is not None:
        yield "timer", Text(_timer(status.timer_ms / 1000))
    for number, endpoint in enumerate(status.endpoints):
        yield "" if number else "endpoints", _endpoint(endpoint)
    for number, event in enumerate(status.events[-_EVENTS:] if events else ()):
        evidence = f" ({event.evidence})" if event.evidence else ""
        yield "" if number else "events", Text(plain(f"{_seconds(event.offset_ms):>9}  {event.event}{evidence}"))
    if status.last_switchover is not None:
        yield "last", Text(plain(_last(status.last_switchover)))


def _monitor(monitor: Monitor) -> Text:
    if monitor.state == "none":
        return Text("none", "yellow")
    seen = f"{monitor.age_s:.1f} s ago" if monitor.age_s is not None else "before this boot"
    style = "" if monitor.state == "alive" else "bold red"
    return Text(f"{monitor.state}, pid {monitor.pid}, term {monitor.term}, last heartbeat {seen}", style)


def _fleet(fleet: Fleet) -> Text:
    follows = fleet.standing == FleetRole.FOLLOWER.value
    told = [f"{fleet.standing} of {fleet.leader}" if follows else fleet.standing]
    if fleet.hosts is not None:
        told.append(f"{fleet.hosts} {'host' if fleet.hosts == 1 else 'hosts'}")
    told.append(f"last message {fleet.age_s:.1f} s ago" if fleet.age_s is not None else "no message yet")
    if fleet.fallbacks:
        told.append(f"{fleet.fallbacks} {'fallback' if fleet.fallbacks == 1 else 'fallbacks'}")
    reason = f": {fleet.reason}" if fleet.reason else ""
    return Text(plain(f"{', '.join(told)}{reason}"), "yellow" if fleet.standing == FleetRole.DIRECT.value else "")


def _timer(left_s: float) -> str:
    return f"{left_s:.0f} s left" if left_s > 0 else f"ran out {-left_s:.0f} s ago: the switchover counts as COMPLETED"


def _endpoint(endpoint: Endpoint) -> Text:
    text = Text(plain(f"{endpoint.blue}:{endpoint.port}  {_addresses(endpoint.blue_addresses)}\n"))
    if not endpoint.green:
        return text.append("→ no counterpart", "yellow")
    text.append(plain(f"→ {endpoint.green}"), "green")
    return text.append(plain(f"  {_addresses(endpoint.green_addresses)}"))


def _last(last: LastSwitchover) -> str:
    evidence = "the timer: nothing showed that green was promoted" if last.evidence == TIMER else last.evidence
    released = (
        f", released at {_seconds(last.released_ms)} by {evidence or 'its phase'}"
        if last.released_ms is not None
        else ""
    )
    return f"{last.at}  {last.outcome} in {last.duration_ms / 1000:.1f} s{released}"


def _workers(status: Status, most: int | None) -> Table:
    shown: Sequence[Worker] = status.workers
    if most is not None and len(shown) > most:
        shown = sorted(shown, key=_interest, reverse=True)[: max(0, most - 1)]
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
        show_footer=len(status.workers) > 1,
        footer_style="dim",
    )
    totals = status.totals
    table.add_column("pid", f"{totals.workers} in all", justify="right", min_width=8)
    table.add_column("snapshot", f"{totals.behind} behind" if totals.behind else "", justify="right", min_width=9)
    for name in ("held", "in_use", "idle", "waiting", "drained", "cut", "failed"):
        table.add_column(name.replace("_", " "), str(getattr(totals, name)), justify="right", min_width=4)
    table.add_column("longest", _hold(totals.longest_hold_ms), justify="right", min_width=7)
    table.add_column("age".rjust(_AGE_COLUMNS), justify="right")
    for worker in shown:
        table.add_row(
            str(worker.pid),
            Text(f"{worker.behind} behind", "yellow") if worker.behind else "newest",
            Text(str(worker.held), "bold yellow" if worker.held else ""),
            *(str(figure) for figure in (worker.in_use, worker.idle, worker.waiting, worker.drained, worker.cut)),
            str(worker.failed),
            _hold(worker.longest_hold_ms),
            Text(f"{worker.age_s:.1f} s", "bold red" if worker.stale else ""),
        )
    if len(shown) < len(status.workers):
        table.add_row("...", f"{len(status.workers) - len(shown)} more")
    return table


def _hold(ms: int) -> str:
    """Return the longest hold as text; empty without a hold."""
    return f"{ms / 1000:.1f} s" if ms else ""


def _interest(worker: Worker) -> tuple[bool, bool, int, int, int]:
    return worker.stale, worker.behind > 0, worker.held, worker.waiting, worker.in_use


def _seconds(ms: int) -> str:
    return f"{ms / 1000:+.2f} s" if ms else "0 s"


def _addresses(addresses: Sequence[str]) -> str:
    return ", ".join(addresses) or "no address"


def plain(text: str) -> str:
    """Return *text* without terminal control sequences: it comes from files and from a server's metadata."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

"""``bgpool watch``: show the status live through a switchover; redrawn on a terminal, elsewhere a line per change."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from bgpool.base_errors import ConfigurationError
from bgpool.cli.advice import COMPLETED, COMPLETED_BY_TIMER, INTERRUPTED, ROLLED_BACK, TIME_IS_UP, advice
from bgpool.cli.status import absent
from bgpool.core.limits import WATCH_INTERVAL_S
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.timeline import CREATED_AGAIN
from bgpool.report import Deployment, Event, Status, find
from bgpool.segment.reader import Reader

__all__ = ["Moment", "moments", "run", "the_one"]


#: The interval of reads of the workers while nothing is published, in seconds; in a switchover at their own interval.
_QUIET_S: Final = 1.0

#: The pause before reading the workers after a publication: they apply a snapshot within milliseconds, and would all
#: seem to be behind if they were read immediately.
_SETTLE_S: Final = 0.05

#: Shows one status; None while there is none.
_Show = Callable[[Status | None], None]


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of the log, written at a change.

    Attributes:
        at: UTC, ISO 8601 with milliseconds.
        event: The new row of the summary table; empty for any other change.
        evidence: The evidence of the event; mostly empty.
        offset_ms: The offset of *at* from IN_PROGRESS, before it from PREPARATION; None without a switchover in
            progress.
        fleet: The host's role in its fleet; None without bg_fleet.
        workers: The number of workers; the following figures are their sums. *behind* counts those that are not up to
            date.
    """

    at: str
    bg_id: str
    phase: str | None
    event: str
    evidence: str
    offset_ms: int | None
    ready: bool
    missing: tuple[str, ...]
    monitor: str
    fleet: str | None
    workers: int
    behind: int
    held: int
    in_use: int
    idle: int
    waiting: int
    drained: int
    cut: int
    failed: int
    longest_hold_ms: int
    max_size: int
    taking_part: int
    outside: int

    def __str__(self) -> str:
        fields = {**dataclasses.asdict(self), "missing": "; ".join(self.missing)}
        del fields["at"]
        told = {name: value for name, value in fields.items() if value not in ("", None)}
        return " ".join((self.at, *(f"{name}={_quoted(value)}" for name, value in told.items())))


def run(bg_id: str | None, run_dir: Path | None, *, as_json: bool, until_done: bool, timeout_s: float | None) -> int:
    """Watch until interrupted, until the time limit, or with *until_done* until a switchover has ended.

    Returns:
        The exit status: COMPLETED, COMPLETED_BY_TIMER, ROLLED_BACK, TIME_IS_UP or INTERRUPTED.

    Raises:
        ConfigurationError, SegmentError: The call is invalid, or the run directory cannot be trusted.
    """
    follower = _Follower(bg_id, run_dir)
    waiting = f"waiting: {absent(bg_id, run_dir)}"
    if bg_id is not None and not find(bg_id, run_dir)[0].is_known():
        # The bg_id may appear later, or may be mistyped.
        print(waiting, file=sys.stderr, flush=True)
    try:
        code = _watch(follower, waiting, as_json=as_json, until_done=until_done, timeout_s=timeout_s)
    except KeyboardInterrupt:
        code = INTERRUPTED
    # On standard error, because programs read the lines on standard output.
    print(advice(code, follower.last), file=sys.stderr)
    return code


def _watch(follower: _Follower, waiting: str, *, as_json: bool, until_done: bool, timeout_s: float | None) -> int:
    deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
    with _lines(waiting, as_json=as_json) if as_json or not sys.stdout.isatty() else _screen(waiting) as show:
        first = status = follower.look()
        while True:
            show(status)
            if until_done and status is not None and (outcome := _outcome(first, status)) is not None:
                return outcome
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return TIME_IS_UP
            switching = status is not None and status.phase in SWITCHING
            follower.wait(min(left_s, WATCH_INTERVAL_S if switching else _QUIET_S))
            status = follower.look()


def _outcome(first: Status | None, now: Status) -> int | None:
    """Return how the switchover ended; None if it has not. A rollback before the start of the watch is ignored."""
    if now.phase is Phase.COMPLETED:
        return COMPLETED_BY_TIMER if now.by_timer else COMPLETED
    before = first.events if first is not None else ()
    new = _new_events(before, now.events)
    return ROLLED_BACK if any(event.event == CREATED_AGAIN for event in new) else None


def the_one(found: Sequence[Deployment]) -> Deployment:
    """Return the deployment if none is named: one in use takes precedence over others that have left files.

    Raises:
        ConfigurationError: There is more than one.
    """
    statuses = [deployment.status() for deployment in found]
    used = [
        deployment
        for deployment, status in zip(found, statuses, strict=True)
        if status.monitor.state == "alive" or status.workers
    ]
    for choice in (found, used):
        if len(choice) == 1:
            return choice[0]
    names = ", ".join(repr(status.bg_id) for status in statuses)
    raise ConfigurationError(f"there are several: choose one with --bg-id; there are {names}")


class _Follower:
    """Reads one deployment, and sleeps in the kernel until its monitor publishes."""

    def __init__(self, bg_id: str | None, run_dir: Path | None) -> None:
        self._bg_id: Final = bg_id
        self._run_dir: Final = run_dir
        self._deployment: Deployment | None = None
        self._reader: Reader | None = None
        self.last: Status | None = None

    def look(self) -> Status | None:
        """Return the current status; None if there is none."""
        if self._deployment is None or self._reader is None:
            found = find(self._bg_id, self._run_dir)
            if not found:
                return None
            self._deployment = the_one(found)
            self._reader = Reader(self._deployment.files)
        # Before the read, so that a publication after it ends the next wait immediately.
        self._reader.check_path()
        self._reading = self._reader.refresh()
        self.last = self._deployment.status()
        return self.last

    def wait(self, timeout_s: float) -> None:
        """Wait until the next publication, at most *timeout_s* seconds."""
        if self._reader is None:
            time.sleep(timeout_s)
        elif self._reading.wait_changed(timeout_s):
            time.sleep(_SETTLE_S)


# -- output -----------------------------------------------------------------------------------------------------


def moments(before: Status | None, now: Status) -> Iterator[Moment]:
    """Return the lines for the changes from *before* to *now*."""
    new = _new_events(before.events, now.events) if before is not None else ()
    for event in new:
        yield _moment(now, event)
    if not new and (before is None or _gist(before) != _gist(now)):
        yield _moment(now)


def _moment(status: Status, event: Event | None = None) -> Moment:
    now = datetime.now(tz=timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Moment(
        at=event.at if event is not None else now,
        bg_id=status.bg_id,
        phase=status.phase.name if status.phase is not None else None,
        event=event.event if event is not None else "",
        evidence=event.evidence if event is not None else "",
        offset_ms=event.offset_ms if event is not None else status.offset_ms,
        ready=status.ready,
        missing=status.missing,
        monitor=status.monitor.state,
        fleet=_standing(status),
        **dataclasses.asdict(status.totals),
    )


def _new_events(before: tuple[Event, ...], now: tuple[Event, ...]) -> tuple[Event, ...]:
    # Compare by time and event: offsets change when IN_PROGRESS becomes time zero.
    known = {(event.at, event.event) for event in before}
    return tuple(event for event in now if (event.at, event.event) not in known)


def _gist(status: Status) -> tuple[object, ...]:
    """Return the values whose change is worth a line; numbers of connections change all the time."""
    monitor, totals = status.monitor, status.totals
    stale = sum(worker.stale for worker in status.workers)
    told = (
        totals.workers,
        totals.behind,
        totals.held,
        totals.drained,
        totals.cut,
        totals.failed,
        totals.outside,
        stale,
    )
    # Without the texts of reasons, which contain ages.
    return status.phase, len(status.missing), monitor.state, monitor.pid, monitor.term, _standing(status), *told


def _standing(status: Status) -> str | None:
    return status.fleet.standing if status.fleet is not None else None


@contextlib.contextmanager
def _lines(waiting: str, *, as_json: bool) -> Iterator[_Show]:
    """Print a line per change immediately; print once what is waited for."""
    last: Status | None = None
    told = False

    def show(status: Status | None) -> None:
        nonlocal last, told
        if status is None:
            if not told:
                print(waiting, file=sys.stderr, flush=True)
            told = True
            return
        for moment in moments(last, status):
            print(json.dumps(dataclasses.asdict(moment)) if as_json else moment, flush=True)
        last = status

    yield show


@contextlib.contextmanager
def _screen(waiting: str) -> Iterator[_Show]:
    """Redraw in place, never higher than the terminal; the last status stays at the end."""
    from rich.live import Live

    from bgpool.cli.view import draw, make_console, plain

    console = make_console()
    with Live(console=console, auto_refresh=False) as live:

        def show(status: Status | None) -> None:
            if status is None:
                live.update(plain(waiting), refresh=True)
                return
            bare = draw(status, events=True, most_workers=0)
            room = console.height - len(console.render_lines(bare)) - 1
            live.update(draw(status, events=True, most_workers=max(1, room)), refresh=True)

        yield show


def _quoted(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text)

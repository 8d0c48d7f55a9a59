"""``bgpool watch``: the status, live, through a switchover; on a terminal redrawn, elsewhere a line per change."""

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


#: Between two looks at the workers while nothing is published, in seconds; in a switchover as often as they speak.
_QUIET_S: Final = 1.0

#: Workers act on a snapshot, and say so, within milliseconds: to look at once would find all of them behind.
_SETTLE_S: Final = 0.05

#: What is shown of one look; None while there is nothing to look at.
_Show = Callable[[Status | None], None]


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of the log: something has changed.

    Attributes:
        at: UTC, ISO 8601 with milliseconds.
        event: The row of the summary table that was added; empty if something else has changed.
        evidence: What told of it; mostly empty.
        offset_ms: Of *at* from IN_PROGRESS, before it from PREPARATION; None while no switchover is under way.
        fleet: The host's standing in its fleet; None without bg_fleet.
        workers: How many; the figures that follow are their sums. *behind* counts those that have not caught up.
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
    """Watch until interrupted, until the time is up, or with *until_done* until a switchover has ended.

    Returns:
        The exit status: COMPLETED, COMPLETED_BY_TIMER, ROLLED_BACK, TIME_IS_UP or INTERRUPTED.

    Raises:
        ConfigurationError, SegmentError: The call is wrong, or the run directory not to be trusted.
    """
    follower = _Follower(bg_id, run_dir)
    waiting = f"waiting: {absent(bg_id, run_dir)}"
    if bg_id is not None and not find(bg_id, run_dir)[0].is_known():
        # It may come yet; and it may be mistyped.
        print(waiting, file=sys.stderr, flush=True)
    try:
        code = _watch(follower, waiting, as_json=as_json, until_done=until_done, timeout_s=timeout_s)
    except KeyboardInterrupt:
        code = INTERRUPTED
    # Not among the lines, which programs read.
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
    """How the switchover ended; None while it has not. A rollback of before we came is another attempt's."""
    if now.phase is Phase.COMPLETED:
        return COMPLETED_BY_TIMER if now.by_timer else COMPLETED
    before = first.events if first is not None else ()
    new = _new_events(before, now.events)
    return ROLLED_BACK if any(event.event == CREATED_AGAIN for event in new) else None


def the_one(found: Sequence[Deployment]) -> Deployment:
    """The deployment that is meant where none is named: what is in use comes before what others have left behind.

    Raises:
        ConfigurationError: There are several.
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
    """Looks at one deployment, and sleeps in the kernel until its monitor publishes something."""

    def __init__(self, bg_id: str | None, run_dir: Path | None) -> None:
        self._bg_id: Final = bg_id
        self._run_dir: Final = run_dir
        self._deployment: Deployment | None = None
        self._reader: Reader | None = None
        self.last: Status | None = None

    def look(self) -> Status | None:
        """The status now; None while there is none to be told of."""
        if self._deployment is None or self._reader is None:
            found = find(self._bg_id, self._run_dir)
            if not found:
                return None
            self._deployment = the_one(found)
            self._reader = Reader(self._deployment.files)
        # Before the look: what is published after it ends the next wait at once.
        self._reader.check_path()
        self._reading = self._reader.refresh()
        self.last = self._deployment.status()
        return self.last

    def wait(self, timeout_s: float) -> None:
        """Until something is published, at most *timeout_s* seconds."""
        if self._reader is None:
            time.sleep(timeout_s)
        elif self._reading.wait_changed(timeout_s):
            time.sleep(_SETTLE_S)


# -- what is shown -----------------------------------------------------------------------------------------------


def moments(before: Status | None, now: Status) -> Iterator[Moment]:
    """What there is to say of *now* to somebody who knows *before*."""
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
    # Their offsets move when IN_PROGRESS becomes time zero.
    known = {(event.at, event.event) for event in before}
    return tuple(event for event in now if (event.at, event.event) not in known)


def _gist(status: Status) -> tuple[object, ...]:
    """What is worth a line when it changes. Connections come and go all the time."""
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
    # Reasons tell ages, too.
    return status.phase, len(status.missing), monitor.state, monitor.pid, monitor.term, _standing(status), *told


def _standing(status: Status) -> str | None:
    return status.fleet.standing if status.fleet is not None else None


@contextlib.contextmanager
def _lines(waiting: str, *, as_json: bool) -> Iterator[_Show]:
    """A line per change, written at once; beside them, once, what is waited for."""
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
    """Redraw in place, never higher than the terminal; what was seen last stays there when all is over."""
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

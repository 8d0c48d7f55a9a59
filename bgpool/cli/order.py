"""``bgpool hold`` and ``bgpool release``: send an operator's order to this host's monitor, and print the result."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final, NamedTuple

from bgpool.base_errors import ConfigurationError, Error
from bgpool.cli.status import absent
from bgpool.cli.watch import the_one
from bgpool.core.events import Instant, Order, Tick
from bgpool.core.limits import ORDER_S, ORDER_WAIT_S, WATCH_INTERVAL_S
from bgpool.core.machine import Rules, step
from bgpool.core.orders import refusal
from bgpool.core.snapshot import Snapshot
from bgpool.report import Deployment, Status, find
from bgpool.segment.orders import pack, unpack
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import workers
from bgpool.segment.reader import Reader
from bgpool.segment.table import Table

__all__ = ["Answer", "NotTaken", "give", "read_duration"]

#: The time in which workers apply the order before the command prints how many have, in seconds. Each does so within
#: milliseconds, and writes that into its row.
_SETTLE_S: Final = 2.0

_DURATION: Final = re.compile(r"([0-9]{1,5})(s|m|h)?")
_UNITS: Final = {None: 1, "s": 1, "m": 60, "h": 3600}


class NotTaken(Error):
    """No monitor has accepted the order."""


class Answer(NamedTuple):
    """The result of an order that a monitor could accept.

    Attributes:
        done: True if the ordered state is in force, now or already before.
        text: The text for the operator.
    """

    done: bool
    text: str


def read_duration(text: str) -> int:
    """Return the seconds in *text*: a whole number, optionally followed by s, m or h.

    Raises:
        ConfigurationError: It is not valid, or not between 1 s and ORDER_S.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = int(match[1]) * _UNITS[match[2]] if match is not None else 0
    if not 1 <= seconds <= ORDER_S:
        raise ConfigurationError(
            f"--for {text!r}: 1 to {ORDER_S} seconds are allowed, as a whole number of seconds or as 90s, 5m or 1h"
        )
    return seconds


def give(order: Order, bg_id: str | None, run_dir: Path | None, seconds: int = 0) -> Answer:
    """Send *order* to the monitor of this host, and wait until it is obeyed.

    Args:
        order: The order.
        bg_id: The deployment; None for the only one in use.
        run_dir: The parameter bg_run_dir; None for the default.
        seconds: The duration of a hold.

    Raises:
        NotTaken: The bg_id is not known, no monitor is alive, or none has obeyed within ORDER_WAIT_S.
        ConfigurationError, SegmentError: The call is invalid, or the run directory cannot be trusted.
    """
    deployment = _deployment(bg_id, run_dir)
    reader = Reader(deployment.files)
    reader.check_path()
    before, name = _now(reader), f"bg_id {deployment.status().bg_id!r}"
    if before is None or reader.monitor_is_silent():
        raise NotTaken(f"{name}: no monitor lives on this host, and only a monitor takes orders; see bgpool status")
    why_not = refusal(before, order)
    if not why_not:
        after = _tell(deployment, reader, order, seconds)
        why_not = refusal(after, order) if order is Order.HOLD else ""
    if why_not:
        return Answer(order is Order.RELEASE, f"{name}: {why_not}; nothing was changed")
    text = _result(before, order, _settled(deployment))
    return Answer(True, f"{name}: {text}{_patience(deployment.files, seconds)}")


def _deployment(bg_id: str | None, run_dir: Path | None) -> Deployment:
    found = [deployment for deployment in find(bg_id, run_dir) if deployment.is_known()]
    if not found:
        raise NotTaken(absent(bg_id, run_dir))
    return the_one(found)


def _tell(deployment: Deployment, reader: Reader, order: Order, seconds: int) -> Snapshot:
    """Send the order, and wait until it is obeyed or has become pointless. Return the resulting snapshot.

    Raises:
        NotTaken: Neither happened in time; the order was withdrawn.
    """
    deadline = time.monotonic() + ORDER_WAIT_S
    table = Table(deployment.files)
    word = pack(order, seconds, time.monotonic_ns())
    given = unpack(word)
    try:
        table.order[0] = word
        table.ring(time.monotonic_ns())
        while True:
            # Before the read, so that a publication after it ends the wait immediately.
            reader.check_path()
            reading, now = reader.refresh(), _now(reader)
            if now is not None and (refusal(now, order) or (given and now.hold_until_ns == given.until_ns)):
                return now
            if time.monotonic() > deadline:
                raise NotTaken(f"no monitor has taken the order within {ORDER_WAIT_S:.0f} s, and it was taken back")
            reading.wait_changed(WATCH_INTERVAL_S)
    finally:
        # Withdraw it: it must not be obeyed twice, or after it was reported as not taken.
        if table.order[0] == word:
            table.order[0] = 0


def _now(reader: Reader) -> Snapshot | None:
    """Return the current state by the newest snapshot and this process's clock."""
    snapshot = reader.refresh().snapshot
    at = Instant(time.monotonic_ns(), time.time_ns())
    return step(snapshot, Tick(at), Rules()) if snapshot is not None else None


def _settled(deployment: Deployment) -> Status:
    """Return the status once every worker has applied the order, or at the end of the time limit."""
    deadline = time.monotonic() + _SETTLE_S
    while (status := deployment.status()).totals.behind and time.monotonic() < deadline:
        time.sleep(0.02)
    return status


def _result(before: Snapshot, order: Order, status: Status) -> str:
    crowd = f"{len(status.workers) - status.totals.behind} of {len(status.workers)} workers have acted on it"
    if order is Order.HOLD:
        until = status.by_hand.until if status.by_hand is not None else "now"
        return f"every checkout on this host waits until {until}; bgpool release ends it; {crowd}"
    if before.hold_until_ns:
        return f"the hold is over; {crowd}"
    if status.by_hand is None:
        # The switchover ended before the order was applied.
        return f"no caller is held any more ({status.phase.name if status.phase is not None else 'unknown'}); {crowd}"
    return f"blue's callers are not held any more and connect by name until the switchover is over; {crowd}"


def _patience(files: RunFiles, seconds: int) -> str:
    """Return a text if callers give up before a hold of *seconds* is over; otherwise empty."""
    limits = [row.usage.hold_limit_ms / 1000 for row in workers(files) if row.usage.hold_limit_ms]
    shortest_s = min(limits, default=float("inf"))
    if shortest_s >= seconds:
        return ""
    return f"; a caller gives up after {shortest_s:g} s (bg_connect_timeout_ms, or the pool's timeout), with an error"

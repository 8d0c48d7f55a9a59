"""Orders of the operator: hold every caller for a while, or release the callers that a switchover holds.

Both expire. The expiry is a time on the clock, so that every reader detects it without a running monitor.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from bgpool.core.events import Instant, Order, Ordered
from bgpool.core.limits import ORDER_S
from bgpool.core.phase import SWITCHING, Role
from bgpool.core.records import add_entry, add_notice
from bgpool.core.routing import Action, Purpose, decide
from bgpool.core.snapshot import EPOCH_OF_DECISION, Snapshot
from bgpool.core.timeline import HELD_BY_HAND, HOLD_OVER, RELEASED_BY_HAND

__all__ = ["drain_released", "expire", "holds_anybody", "obey", "refusal"]

_ORDER_NS: Final = ORDER_S * 1_000_000_000


def holds_anybody(snapshot: Snapshot) -> bool:
    """Return whether checkouts are held: all of them by the operator, or those of blue endpoints by the switchover."""
    blue = snapshot.hosts_of(Role.SOURCE)
    return bool(snapshot.hold_until_ns) or any(
        decide(snapshot, host.name, Purpose.CHECKOUT).action is Action.HOLD for host in blue
    )


def refusal(snapshot: Snapshot, order: Order) -> str:
    """Return the reason for which *order* would have no effect now; empty if it would have one."""
    phase = snapshot.phase.name
    if order is Order.HOLD:
        return f"a switchover is under way ({phase}), which decides itself who waits" if _is_switching(snapshot) else ""
    if holds_anybody(snapshot):
        return ""
    return f"no caller is held ({phase}{', released by hand already' if snapshot.release_until_ns else ''})"


def obey(snapshot: Snapshot, event: Ordered) -> Snapshot:
    """Return the snapshot after an operator's order; the same object if it has no effect."""
    until_ns = min(event.until_ns, event.at.mono_ns + _ORDER_NS)
    if until_ns <= event.at.mono_ns or refusal(snapshot, event.order):
        return snapshot
    if event.order is Order.HOLD:
        return _hold(snapshot, event.at, until_ns)
    if snapshot.hold_until_ns:
        return _end_hold(snapshot, event.at, "bgpool release")
    return _release(snapshot, event.at, until_ns)


def drain_released(before: Snapshot, after: Snapshot) -> Snapshot:
    """Return *after* with a higher epoch if released callers now connect elsewhere than *before*, within one phase.

    They connected by name, which may have resolved to old blue until now. Each change of phase under a release raises
    the epoch as well, see machine.py.
    """
    if not (before.release_until_ns and after.release_until_ns) or before.phase is not after.phase:
        return after
    if (before.hosts, before.pinned, before.blue_moved) == (after.hosts, after.pinned, after.blue_moved):
        return after
    return replace(after, epoch=after.epoch + EPOCH_OF_DECISION)


def expire(snapshot: Snapshot, at: Instant) -> Snapshot:
    """End the operator's orders that have expired. The start of a switchover ends a hold, its end ends a release."""
    if snapshot.hold_until_ns and _is_switching(snapshot):
        snapshot = _end_hold(snapshot, at, "a switchover begins")
    elif snapshot.hold_until_ns and at.mono_ns >= snapshot.hold_until_ns:
        snapshot = _end_hold(snapshot, at, "time is up")
    if not snapshot.release_until_ns:
        return snapshot
    if not _is_switching(snapshot):
        return replace(snapshot, release_until_ns=0)
    if at.mono_ns >= snapshot.release_until_ns:
        text = "the release by hand has ended (time is up): callers are held again as the phase requires"
        return _say(replace(snapshot, release_until_ns=0), logging.WARNING, "release_by_hand_ended", text)
    return snapshot


def _hold(snapshot: Snapshot, at: Instant, until_ns: int) -> Snapshot:
    if until_ns == snapshot.hold_until_ns:
        return snapshot
    seconds = f"{(until_ns - at.mono_ns) / 1e9:.0f} s"
    text = f"held by hand (bgpool hold): every checkout waits for the next {seconds}; bgpool release ends the hold"
    # Earlier holds are in the log. An operator who holds every night must not fill the next switchover's timeline.
    kept = tuple(entry for entry in snapshot.timeline if entry.event not in (HELD_BY_HAND, HOLD_OVER))
    snapshot = replace(snapshot, hold_until_ns=until_ns, timeline=kept)
    return _say(add_entry(snapshot, at, HELD_BY_HAND, seconds), logging.WARNING, "held_by_hand", text)


def _end_hold(snapshot: Snapshot, at: Instant, why: str) -> Snapshot:
    snapshot = add_entry(replace(snapshot, hold_until_ns=0), at, HOLD_OVER, why)
    return _say(snapshot, logging.INFO, "hold_by_hand_ended", f"the hold by hand has ended ({why})")


def _release(snapshot: Snapshot, at: Instant, until_ns: int) -> Snapshot:
    # Connections that were opened before are not handed out any longer: they may lead to old blue.
    snapshot = replace(snapshot, release_until_ns=until_ns, epoch=snapshot.epoch + EPOCH_OF_DECISION)
    text = (
        f"released by hand in {snapshot.phase.name} (bgpool release): callers of blue are no longer held and connect "
        "by name, wherever it leads, until the switchover is over"
    )
    return _say(add_entry(snapshot, at, RELEASED_BY_HAND, "an operator"), logging.WARNING, "released_by_hand", text)


def _is_switching(snapshot: Snapshot) -> bool:
    return snapshot.phase in SWITCHING


def _say(snapshot: Snapshot, level: int, event: str, text: str) -> Snapshot:
    return add_notice(snapshot, level, "switchover", event, text, once=False)

"""The suspicion that a switchover has begun: a worker's connection was cut between two polls of the monitor.

A suspicion holds callers in PREPARATION and changes no phase. The monitor queries the servers immediately. A reading of
IN_PROGRESS confirms the suspicion and holds the callers as well. An answer of a blue that accepts writes ends it within
milliseconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bgpool.core.events import Event, MetadataAbsent, MetadataFailed, Nudged, StatusRead
from bgpool.core.limits import SUSPICION_S
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Snapshot

__all__ = ["allay", "suspect"]

_SUSPICION_NS: Final = int(SUSPICION_S * 1e9)


def suspect(snapshot: Snapshot, event: Nudged) -> Snapshot:
    """Hold callers for a bounded time after *event*. In CREATED, which may last for weeks, a cut does not hold them."""
    if snapshot.phase is not Phase.PREPARATION or snapshot.suspected_until_ns:
        return snapshot
    return replace(snapshot, suspected_until_ns=event.at.mono_ns + _SUSPICION_NS)


def allay(snapshot: Snapshot, event: Event) -> Snapshot:
    """End the suspicion if *event* confirms or refutes it, or if it is too old."""
    until_ns = snapshot.suspected_until_ns
    if not until_ns:
        return snapshot
    confirmed = snapshot.phase is not Phase.PREPARATION
    if confirmed or event.at.mono_ns >= until_ns or _is_refuted(snapshot, event):
        return replace(snapshot, suspected_until_ns=0)
    return snapshot


def _is_refuted(snapshot: Snapshot, event: Event) -> bool:
    """Return whether blue has answered since the suspicion began, and accepts writes."""
    answered = isinstance(event, (StatusRead, MetadataAbsent, MetadataFailed)) and event.role is Role.SOURCE
    since_ns = snapshot.suspected_until_ns - _SUSPICION_NS
    return answered and snapshot.source_read_only is False and event.at.mono_ns > since_ns

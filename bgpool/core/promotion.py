"""Detection of green's promotion from the servers' own answers, independent of the metadata."""

from __future__ import annotations

from dataclasses import replace

from bgpool.core.events import Answered
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Snapshot

__all__ = ["follows_blue", "green_took_over", "note_answer", "note_silence"]


def note_answer(snapshot: Snapshot, event: Answered) -> Snapshot:
    """Return *snapshot* with a server's answer about itself."""
    if event.role is Role.SOURCE:
        snapshot = _note_blue(snapshot, event)
        return _changed(snapshot, source_read_only=_takes_no_writes(snapshot, event))
    read_only = _takes_no_writes(snapshot, event)
    snapshot = _changed(snapshot, target_read_only=read_only, target_subscribes=event.subscribes)
    if event.max_connections not in (0, snapshot.target_max_connections):
        snapshot = replace(snapshot, target_max_connections=event.max_connections)
    return _note_green(snapshot, event, read_only=read_only)


def note_silence(snapshot: Snapshot, role: Role) -> Snapshot:
    """Return *snapshot* after the server of *role* did not answer."""
    if role is Role.SOURCE:
        return _changed(snapshot, source_read_only=None)
    return _changed(snapshot, target_read_only=None)


def green_took_over(snapshot: Snapshot) -> bool:
    """Return whether green was read-only and now accepts writes, while blue does not.

    Source: behaviour.md §3, "Early release".
    """
    took_none = snapshot.green_was_read_only is True
    return took_none and snapshot.target_read_only is False and snapshot.source_read_only is not False


def follows_blue(snapshot: Snapshot) -> bool:
    """Return whether green, a logical replica, still has a subscription: then its sequences may not be set yet.

    The subscriptions of a physical green are copies of blue's, which belong to the application.
    """
    return snapshot.target_subscribes and not snapshot.green_was_replica


def _takes_no_writes(snapshot: Snapshot, event: Answered) -> bool:
    """Return whether the application cannot write on this server.

    Read-only settings of its role or database count only if blue had none before the switchover. Green is a copy of
    blue, so that a reporting role is read-only on both, permanently.
    """
    return event.read_only or (event.role_read_only and snapshot.blue_role_read_only is False)


def _note_blue(snapshot: Snapshot, event: Answered) -> Snapshot:
    """Record whether the application's role was read-only on blue before the switchover."""
    unknown = snapshot.blue_role_read_only is None
    if snapshot.phase <= Phase.CREATED or (snapshot.phase is Phase.PREPARATION and unknown):
        return _changed(snapshot, blue_role_read_only=event.role_read_only)
    return snapshot


def _note_green(snapshot: Snapshot, event: Answered, *, read_only: bool) -> Snapshot:
    """Record the state of green before the switchover. If it accepted writes then, later writes are no evidence.

    In IN_PROGRESS AWS stops writes on both sides, and allows them again in a rollback. So a green that is first seen in
    IN_PROGRESS counts as read-only before only if it is a replica.
    """
    known = snapshot.green_was_read_only is not None
    telling = event.replica or (read_only and snapshot.phase is Phase.PREPARATION)
    if snapshot.phase <= Phase.CREATED or (snapshot.phase <= Phase.IN_PROGRESS and telling and not known):
        return _changed(snapshot, green_was_read_only=read_only, green_was_replica=event.replica)
    return snapshot


def _changed(snapshot: Snapshot, **changes: bool | None) -> Snapshot:
    """Return *snapshot* with *changes*; the same object if they change nothing."""
    same = all(getattr(snapshot, name) is value for name, value in changes.items())
    return snapshot if same else replace(snapshot, **changes)  # type: ignore[arg-type]  # fields that are flags

"""Derive the status of a deployment from its files. The content of the files is validated."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from bgpool.base_errors import SegmentError
from bgpool.core.events import Order
from bgpool.core.limits import HEARTBEAT_STALE_S, ROW_STALE_S
from bgpool.core.observations import BLIND
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import CREATED_AGAIN, RELEASED_BY_HAND, zero_ns
from bgpool.report.model import ByHand, Endpoint, Event, Fleet, LastSwitchover, Monitor, Status, Worker
from bgpool.report.reasons import degraded, left_alone, notes, proxies, reasons, receipts, switched_off
from bgpool.segment import history
from bgpool.segment.kernel_features import LACKS
from bgpool.segment.layout import SUPERSEDED
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import WorkerRow, workers
from bgpool.segment.reader import SegmentMap

__all__ = ["events_of", "read_status", "utc"]


def read_status(files: RunFiles, bg_id: str = "") -> Status:
    """Return the status of the deployment with *files*.

    Args:
        files: The files; none of them needs to exist.
        bg_id: The bg_id to use if the files do not contain it.
    """
    refused: list[str] = []
    disabled = switched_off()
    mapped, sequence, snapshot = _segment(files, refused)
    snapshot = _timely(snapshot)
    rows = _rows(files, refused)
    crowd = tuple(_worker(row, sequence) for row in rows)
    past, problem = history.look(files)
    last_switchover = _last_switchover(past)
    if past and last_switchover is None:
        problem = problem or f"the history is damaged: its last record cannot be read: {files.history}"
    monitor = _monitor(mapped, snapshot)
    timer_ms, offset_ms = _clocks(snapshot)
    return Status(
        bg_id=bg_id or _name(files, snapshot, past),
        host=os.uname().nodename,
        run_dir=str(files.directory),
        phase=snapshot.phase if snapshot is not None else None,
        sequence=sequence,
        missing=(*disabled, *(tuple(refused) or reasons(snapshot, monitor, crowd))),
        monitor=monitor,
        timer_ms=timer_ms,
        offset_ms=offset_ms,
        endpoints=_endpoints(snapshot) if snapshot is not None else (),
        green_max_connections=(snapshot.target_max_connections or None) if snapshot is not None else None,
        workers=crowd,
        events=events_of(snapshot) if snapshot is not None else (),
        last_switchover=last_switchover,
        disabled=bool(disabled),
        blind=_blind(snapshot) if snapshot is not None else (),
        by_hand=_by_hand(snapshot),
        notes=(
            *notes(row.usage for row in rows),
            *proxies(crowd),
            *receipts(crowd),
            *degraded(crowd),
            *left_alone(snapshot, monitor),
            *filter(None, [problem]),
        ),
        fleet=_fleet(mapped, snapshot),
    )


def _segment(files: RunFiles, refused: list[str]) -> tuple[SegmentMap | None, int, Snapshot | None]:
    """Return the segment, the newest snapshot's sequence and the snapshot; add refused files to *refused*."""
    mapped = None
    try:
        # Another monitor may replace the file that was just opened.
        for _ in range(3):
            mapped = SegmentMap(files)
            if (found := mapped.read()) is not None:
                return mapped, found[0], _checked(files, found[1])
    except FileNotFoundError:
        pass
    except SegmentError as error:
        refused.append(f"the segment is refused: {error}")
    return mapped, 0, None


def _checked(files: RunFiles, snapshot: Snapshot) -> Snapshot:
    if RunFiles.of(files.directory, snapshot.bg_id) != files:
        raise SegmentError(f"{files.segment} belongs to bg_id {snapshot.bg_id!r}")
    return snapshot


def _timely(snapshot: Snapshot | None) -> Snapshot | None:
    """Return *snapshot* without expired orders: there may be no monitor that has ended them."""
    if snapshot is None:
        return None
    now_ns = time.monotonic_ns()

    def still(end_ns: int) -> int:
        return end_ns if end_ns > now_ns else 0

    return replace(
        snapshot, hold_until_ns=still(snapshot.hold_until_ns), release_until_ns=still(snapshot.release_until_ns)
    )


def _by_hand(snapshot: Snapshot | None) -> ByHand | None:
    if snapshot is None or not (snapshot.hold_until_ns or snapshot.release_until_ns):
        return None
    order = Order.HOLD if snapshot.hold_until_ns else Order.RELEASE
    left_ns = (snapshot.hold_until_ns or snapshot.release_until_ns) - time.monotonic_ns()
    return ByHand(order.value, utc(time.time_ns() + left_ns), _ms(left_ns))


def _fleet(mapped: SegmentMap | None, snapshot: Snapshot | None) -> Fleet | None:
    if mapped is None or snapshot is None or snapshot.fleet is None:
        return None
    view, age_s = snapshot.fleet, mapped.bus_age_s()
    return Fleet(
        view.standing.value,
        view.leader,
        round(age_s, 3) if age_s is not None else None,
        view.hosts or None,
        view.fallbacks,
        view.reason,
    )


def _rows(files: RunFiles, refused: list[str]) -> tuple[WorkerRow, ...]:
    try:
        return workers(files)
    except SegmentError as error:
        refused.append(f"the table of workers is refused: {error}")
        return ()


def _worker(row: WorkerRow, sequence: int) -> Worker:
    usage, age_s = row.usage, round(row.age_s, 3)
    applied = usage.sequence if usage.sequence != SUPERSEDED else 0
    return Worker(
        pid=row.pid,
        # A worker that is ahead has applied a snapshot that was published since the segment was read.
        behind=max(0, sequence - applied),
        held=usage.held,
        in_use=usage.in_use,
        idle=usage.idle,
        waiting=usage.waiting,
        drained=usage.drained,
        cut=usage.cut,
        failed=usage.failed,
        longest_hold_ms=usage.longest_hold_ms,
        max_size=usage.max_size,
        taking_part=usage.taking_part,
        outside=usage.outside,
        stuck_passwords=usage.stuck_passwords,
        behind_proxy=usage.behind_proxy,
        locked_out=usage.locked_out,
        no_receipts=usage.no_receipts,
        age_s=age_s,
        stale=age_s > ROW_STALE_S,
        lacks=tuple(lack.name for bit, lack in LACKS.items() if row.lacks & bit),
    )


def _monitor(mapped: SegmentMap | None, snapshot: Snapshot | None) -> Monitor:
    if mapped is None:
        return Monitor("none")
    age_s = mapped.heartbeat_age_s()
    state = "alive" if age_s <= HEARTBEAT_STALE_S else "silent"
    mine = snapshot.observations[-1] if snapshot is not None and snapshot.observations else None
    return Monitor(
        state,
        mapped.header.pid,
        mapped.header.term,
        # A heartbeat in the future is invalid.
        round(age_s, 3) if age_s != float("inf") else None,
        str(mine.parameters) if mine is not None else "",
        mine.visibility.text if mine is not None and mine.visibility in BLIND else "",
    )


def _blind(snapshot: Snapshot) -> tuple[str, ...]:
    """Return parameters, other than the monitor's own, that showed no deployment."""
    return tuple(f"{s.parameters}: {s.visibility.text}" for s in snapshot.observations[:-1] if s.visibility in BLIND)


def _name(files: RunFiles, snapshot: Snapshot | None, past: Sequence[Mapping[str, Any]]) -> str:
    """Return the bg_id; the digest in the file names if no file contains it."""
    if snapshot is not None:
        return snapshot.bg_id
    told = past[-1].get("bg_id") if past else None
    return told if isinstance(told, str) and RunFiles.of(files.directory, told) == files else files.stem


def _clocks(snapshot: Snapshot | None) -> tuple[int | None, int | None]:
    """Return the time until the timer of a switchover in progress runs out, and the time since its time zero, in ms."""
    if snapshot is None or snapshot.phase not in SWITCHING:
        return None, None
    now_ns = time.monotonic_ns()
    offset_ms = _ms(now_ns - zero_ns(snapshot.timeline)) if snapshot.timeline else None
    return _ms(snapshot.deadline_ns - now_ns) if snapshot.deadline_ns else None, offset_ms


def _endpoints(snapshot: Snapshot) -> tuple[Endpoint, ...]:
    found = []
    for host in snapshot.hosts_of(Role.SOURCE):
        twin = snapshot.twin(host.name)
        green, addresses = (twin.name, twin.addresses) if twin is not None else ("", ())
        found.append(Endpoint(host.name, host.port, host.addresses, green, addresses))
    return tuple(found)


def events_of(snapshot: Snapshot) -> tuple[Event, ...]:
    """Return the events of the switchover in *snapshot*; empty if there was none."""
    if not snapshot.timeline:
        return ()
    zero = zero_ns(snapshot.timeline)
    return tuple(Event(utc(e.wall_ns), _ms(e.mono_ns - zero), e.event, e.evidence) for e in snapshot.timeline)


def _last_switchover(past: Sequence[Mapping[str, Any]]) -> LastSwitchover | None:
    try:
        record = past[-1]
        told = (*Phase.__members__, CREATED_AGAIN, RELEASED_BY_HAND)
        phases = {e["event"]: e for e in record["events"] if e["event"] in told}
        first = next(phases[name] for name in ("PREPARATION", "IN_PROGRESS", "POST") if name in phases)
        last = phases[CREATED_AGAIN] if CREATED_AGAIN in phases else phases["COMPLETED"]
        # A timer that ran out released the held callers, too.
        release = phases.get(RELEASED_BY_HAND, phases.get("POST", phases.get("COMPLETED")))
        zero = phases.get("IN_PROGRESS", first)
        return LastSwitchover(
            at=utc(int(first["at_unix_ns"])),
            outcome=str(record["outcome"]),
            duration_ms=round(last["offset_ms"] - first["offset_ms"]),
            released_ms=round(release["offset_ms"] - zero["offset_ms"]) if release is not None else None,
            evidence=str(release["evidence"]) if release is not None else "",
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError, StopIteration):
        # No record, or one of another version, or not written by bgpool.
        return None


def utc(unix_ns: int) -> str:
    """Return the time in UTC, ISO 8601 with milliseconds."""
    moment = datetime.fromtimestamp(unix_ns // 1_000_000 / 1000, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(ns: int) -> int:
    return round(ns / 1e6)

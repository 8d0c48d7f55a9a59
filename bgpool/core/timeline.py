"""The summary of a switchover, in the format of the AWS wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final

from bgpool.core.phase import Phase
from bgpool.core.snapshot import TimelineEntry

__all__ = [
    "CREATED_AGAIN",
    "DNS",
    "HEARD",
    "HELD_BY_HAND",
    "HOLD_OVER",
    "METADATA",
    "RELEASED_BY_HAND",
    "TIMER",
    "describe",
    "summary_table",
    "zero_ns",
]

#: The last event of a switchover that was rolled back.
CREATED_AGAIN = f"{Phase.CREATED.name} (rollback)"

#: The usual evidence of a switchover.
METADATA: Final = "metadata"
DNS: Final = "DNS"
#: The evidence of a switchover that counts as over because its timer ran out, without evidence of a promotion.
TIMER: Final = "timer"

#: An operator's orders, and the end of a hold. The evidence of a hold is its duration, that of its end is the reason.
HELD_BY_HAND: Final = "Held by hand"
HOLD_OVER: Final = "Hold over"
RELEASED_BY_HAND: Final = "Released by hand"

#: A phase was entered because of a reading of another host of the fleet; once in each switchover.
HEARD: Final = "Heard from the fleet"

_RULE = "-" * 82


def describe(entry: TimelineEntry) -> str:
    """Return the event, with its evidence if that was not the metadata or DNS: ``POST (green promoted)``."""
    told_otherwise = entry.evidence not in ("", METADATA, DNS)
    return f"{entry.event} ({entry.evidence})" if told_otherwise else entry.event


def zero_ns(timeline: Sequence[TimelineEntry]) -> int:
    """Return the time that offsets are relative to, on the monotonic clock; *timeline* is not empty."""
    rolled_back = any(entry.event == CREATED_AGAIN for entry in timeline)
    order = (Phase.PREPARATION.name,) if rolled_back else (Phase.IN_PROGRESS.name, Phase.PREPARATION.name)
    return next((e.mono_ns for name in order for e in timeline if e.event == name), timeline[0].mono_ns)


def summary_table(timeline: Sequence[TimelineEntry]) -> str:
    """Return the events as a table: timestamp (UTC), offset in ms, event.

    Time zero is IN_PROGRESS. In a rollback, or if IN_PROGRESS was never seen, it is PREPARATION, and without that the
    first event. Offsets come from the monotonic clock, so that a step of the wall clock affects only the timestamps.

    Source: the summary table of the AWS wrapper's Blue/Green page.
    """
    if not timeline:
        return ""
    zero = zero_ns(timeline)
    rows = [_RULE, f"{'timestamp (UTC)':<26}{'time offset (ms)':>24}{'event':>32}", _RULE]
    for entry in timeline:
        stamp = datetime.fromtimestamp(entry.wall_ns / 1e9, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
        offset = f"{round((entry.mono_ns - zero) / 1e6)} ms"
        rows.append(f"{stamp:>26}{offset:>24}{describe(entry):>32}")
    rows.append(_RULE)
    return "\n".join(rows)

"""A switchover that cuts connections between two polls: the first worker that is cut stops all other workers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.trial import Trial
from tests.waiting import quickest

pytestmark = [pytest.mark.lab, pytest.mark.slow]

#: Blue refuses writes 20 ms after IN_PROGRESS and cuts 30 ms later; the monitor polls twice a second.
HASTY = replace(FAST, initiated_s=-1.2, writes_stopped_s=0.02, connections_dropped_s=0.05)
POLLS = {"bg_interval_high_ms": 500, "bg_interval_increased_ms": 500}


def test_each_thread_is_cut_at_most_once_or_twice() -> None:
    """In plain ``with`` blocks, each cut is an error. Without the nudge, IN_PROGRESS is never observed."""
    # Observed long before the next poll, which would have found blue gone.
    assert quickest(switch_over, 0.3, tries=4) < 0.3


def switch_over() -> float:
    """Return the time from IN_PROGRESS to its observation, in seconds."""
    with Trial(workers=4, threads=2, job="write", schedule=HASTY, settle_s=0.5, pool_options=POLLS) as trial:
        report = trial.run()
    assert report.verdict.clean, report.verdict
    assert report.snapshot is not None
    events = {entry.event: entry.mono_ns for entry in report.snapshot.timeline}
    if "IN_PROGRESS" not in events or report.errors > 2 * 8:
        print(sorted(events), report.error_examples)
        return math.inf
    return events["IN_PROGRESS"] / 1e9 - trial.director.event("in_progress").monotonic_s

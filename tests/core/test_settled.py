"""An answer that has changed nothing changes nothing when it is repeated, so it need not be passed on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpool.core.events import Answered, Event, Nudged, StatusRead, Tick
from bgpool.core.machine import Rules, is_settled, step
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Snapshot
from tests.core.test_machine import answers, at, events, ready, rows

RULES = Rules(switchover_timeout_ms=180_000)


def take(snapshot: Snapshot, *said: Event) -> Snapshot:
    for event in said:
        snapshot = step(snapshot, event, RULES)
    return snapshot


@pytest.mark.once
@settings(max_examples=300, print_blob=True)
@given(st.data())
def test_an_answer_is_no_news_twice(data: st.DataObject) -> None:
    snapshot, seconds = Snapshot("1"), 1.0
    for _ in range(data.draw(st.integers(0, 20))):
        seconds += data.draw(st.sampled_from([0.1, 1.0, 100.0]))
        snapshot = take(snapshot, data.draw(st.one_of(events(at(seconds)), st.just(Nudged(at(seconds))))))
    said = data.draw(answers(at(seconds)))
    settled = take(snapshot, *said)
    for _ in range(8):
        before, settled = settled, take(settled, *said)
        if settled is before:
            break
    assert settled is before, "a repeated answer must change nothing eventually"
    if not is_settled(before, settled):
        return
    later = at(seconds + data.draw(st.sampled_from([0.001, 0.1, 1.0, 100.0, 1000.0])))
    # Time passes in between.
    due = sorted(end for end in settled.timers if end <= later.mono_ns)
    expected = take(settled, *(Tick(replace(later, mono_ns=end)) for end in due), Tick(later))
    if expected is settled:
        assert take(settled, *(replace(event, at=later) for event in said)) is settled


def test_an_answer_that_refutes_a_suspicion_counts_again() -> None:
    """The answer may be older than the nudge, and the next one says the same."""
    said = (
        Answered(at(9), Role.SOURCE, read_only=False),
        StatusRead(at(9), Role.SOURCE, rows("SWITCHOVER_INITIATED")),
    )
    snapshot = take(ready(Phase.PREPARATION), *said)
    assert is_settled(snapshot, take(snapshot, *said))
    suspecting = take(snapshot, Nudged(at(10)))
    assert suspecting.suspected_until_ns
    unmoved = take(suspecting, *said)
    assert unmoved is suspecting
    assert not is_settled(suspecting, unmoved)
    assert not take(unmoved, *(replace(event, at=at(10.1)) for event in said)).suspected_until_ns

"""The events of the main loop: those that repeat a known state without effect are dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from bgpool.core.events import Instant, Nudged, Resolved
from bgpool.core.fleet import AnyEvent
from bgpool.monitor.inbox import EventBatch, Inbox
from tests.waiting import wait_until

AT = Instant(1, 1)
Found = dict[str, tuple[str, ...]]
HERE: Found = {"ledger": ("10.0.0.1",)}
THERE: Found = {"ledger": ("10.0.0.2",)}


def resolved(found: Found) -> tuple[AnyEvent, ...]:
    return (Resolved(AT, found),)


def received_while_awaited(inbox: Inbox, tell: Callable[[], object]) -> EventBatch | None:
    """Return the events that a waiting reader receives from *tell*."""
    letters: list[EventBatch | None] = []
    reader = threading.Thread(target=lambda: letters.append(inbox.get(30.0)))
    reader.start()
    wait_until(lambda: inbox._is_awaited)
    tell()
    # All events of *tell* have been delivered by now; this ends the wait if there were none.
    inbox.put(Nudged(AT))
    reader.join()
    return letters[0]


def test_an_event_without_effect_is_delivered_once() -> None:
    inbox = Inbox()
    inbox.tell("dns", HERE, resolved)
    first = inbox.get(0)
    assert first == EventBatch((Resolved(AT, HERE),), "dns", HERE)
    assert inbox.get(0) is None
    inbox.settle(first)
    nudge = EventBatch((Nudged(AT),))
    assert received_while_awaited(inbox, lambda: inbox.tell("dns", dict(HERE), resolved)) == nudge
    for who, what in (("dns", THERE), ("another", HERE)):
        letter = received_while_awaited(inbox, lambda who=who, what=what: inbox.tell(who, what, resolved))  # type: ignore[misc]
        assert letter == EventBatch((Resolved(AT, what),), who, what)
        assert inbox.get(0) == nudge
    inbox.unsettle()
    again = received_while_awaited(inbox, lambda: inbox.tell("dns", HERE, resolved))
    assert again == first


def test_a_reader_that_does_not_wait_gets_every_event() -> None:
    """An event that is being processed, or is still queued, may change the meaning of the repeated one."""
    inbox = Inbox()
    inbox.tell("dns", HERE, resolved)
    letter = inbox.get(0)
    assert letter is not None
    inbox.settle(letter)
    inbox.tell("dns", HERE, resolved)
    assert inbox.get(0) == letter
    inbox.put(Nudged(AT))
    inbox.tell("dns", HERE, resolved)
    assert (inbox.get(0), inbox.get(0)) == (EventBatch((Nudged(AT),)), letter)


def test_an_event_without_a_source_is_never_settled() -> None:
    inbox = Inbox()
    for _ in range(2):
        inbox.put(Nudged(AT))
        letter = inbox.get(0)
        assert letter == EventBatch((Nudged(AT),))
        inbox.settle(letter)

"""Look-ups go on side by side: a name that stalls keeps no other waiting, and is heard of when it comes."""

from __future__ import annotations

import threading
import time

import pytest

from bgpool.core.events import Resolved
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.lookup import Lookup
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


class Resolver:
    """Knows fast names, and one that takes until it is told."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.failing = False
        self.failures = 0

    def resolve(self, name: str) -> tuple[str, ...]:
        if name == "stalled":
            self.release.wait(60.0)
        if self.failing:
            self.failures += 1
            raise OSError("no server")
        return (f"address of {name}",)


def heard(inbox: Inbox) -> dict[str, tuple[str, ...]]:
    letter = inbox.get(30.0)
    assert letter is not None
    (event,) = letter.events
    assert isinstance(event, Resolved)
    return dict(event.addresses)


def test_a_stalled_name_keeps_no_other_waiting() -> None:
    resolver, inbox = Resolver(), Inbox()
    lookup = Lookup(resolver, inbox)
    lookup.assign(("one", "stalled", "two"), interval_ms=100)
    began = time.monotonic()
    lookup.start()
    assert heard(inbox) == {"one": ("address of one",), "two": ("address of two",)}
    assert time.monotonic() - began < 20.0
    resolver.release.set()
    while "stalled" not in (found := heard(inbox)):
        assert time.monotonic() - began < 50.0
    assert set(found) == {"one", "stalled", "two"}
    lookup.stop()
    lookup.join(30.0)


def test_names_that_stand_behind_a_stalled_one_do_not_wait_for_it() -> None:
    """One thread does for all where there is time, until one stalls."""
    resolver, inbox = Resolver(), Inbox()
    lookup = Lookup(resolver, inbox)
    lookup.assign(("stalled", "one"), interval_ms=500)
    lookup.start()
    assert heard(inbox) == {"one": ("address of one",)}
    resolver.release.set()
    while "stalled" not in heard(inbox):
        pass
    lookup.stop()
    lookup.join(30.0)


def test_with_a_long_interval_the_others_are_told_while_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.monitor.lookup.RESOLVE_TIMEOUT_S", 1.0)
    resolver, inbox = Resolver(), Inbox()
    lookup = Lookup(resolver, inbox)
    lookup.assign(("one", "stalled"), interval_ms=60_000)
    lookup.start()
    assert heard(inbox) == {"one": ("address of one",)}
    resolver.release.set()
    lookup.stop()
    lookup.join(30.0)


def test_a_failure_is_not_an_answer() -> None:
    resolver, inbox = Resolver(), Inbox()
    lookup = Lookup(resolver, inbox)
    lookup.assign(("one",), interval_ms=100)
    lookup.start()
    assert heard(inbox) == {"one": ("address of one",)}
    resolver.failing = True
    # Whatever was found before has been told by then.
    wait_until(lambda: resolver.failures >= 2)
    while inbox.get(0) is not None:
        pass
    assert inbox.get(0.5) is None
    lookup.stop()
    lookup.join(30.0)

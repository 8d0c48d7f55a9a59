"""Names are resolved concurrently: a stalled name delays no other name, and its result is delivered when it arrives."""

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
    """Resolves all names at once, except for "stalled", which blocks until it is released."""

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


def test_a_stalled_name_delays_no_other() -> None:
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


def test_names_queued_behind_a_stalled_one_do_not_wait_for_it() -> None:
    """One thread resolves all names if there is time, until a name stalls."""
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


def test_with_a_long_interval_the_other_results_are_delivered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.monitor.lookup.RESOLVE_TIMEOUT_S", 1.0)
    resolver, inbox = Resolver(), Inbox()
    lookup = Lookup(resolver, inbox)
    lookup.assign(("one", "stalled"), interval_ms=60_000)
    lookup.start()
    assert heard(inbox) == {"one": ("address of one",)}
    resolver.release.set()
    lookup.stop()
    lookup.join(30.0)


def test_a_failure_is_not_delivered() -> None:
    resolver, inbox = Resolver(), Inbox()
    lookup = Lookup(resolver, inbox)
    lookup.assign(("one",), interval_ms=100)
    lookup.start()
    assert heard(inbox) == {"one": ("address of one",)}
    resolver.failing = True
    # By then, all earlier results have been delivered.
    wait_until(lambda: resolver.failures >= 2)
    while inbox.get(0) is not None:
        pass
    assert inbox.get(0.5) is None
    lookup.stop()
    lookup.join(30.0)

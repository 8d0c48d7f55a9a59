"""Look-ups go on side by side: a name that stalls keeps no other waiting, and is heard of when it comes."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from bgpool.core.events import Resolved
from bgpool.core.fleet import AnyEvent
from bgpool.monitor.lookup import Lookup

pytestmark = pytest.mark.slow


class Resolver:
    """Knows fast names, and one that takes until it is told."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.failing = False

    def resolve(self, name: str) -> tuple[str, ...]:
        if name == "stalled":
            self.release.wait(10.0)
        if self.failing:
            raise OSError("no server")
        return (f"address of {name}",)


def heard(events: queue.Queue[AnyEvent]) -> dict[str, tuple[str, ...]]:
    event = events.get(timeout=10.0)
    assert isinstance(event, Resolved)
    return dict(event.addresses)


def test_a_stalled_name_keeps_no_other_waiting() -> None:
    resolver, events = Resolver(), queue.Queue[AnyEvent]()
    lookup = Lookup(resolver, events)
    lookup.assign(("one", "stalled", "two"), interval_ms=100)
    began = time.monotonic()
    lookup.start()
    assert heard(events) == {"one": ("address of one",), "two": ("address of two",)}
    assert time.monotonic() - began < 2.0
    resolver.release.set()
    while "stalled" not in (found := heard(events)):
        assert time.monotonic() - began < 10.0
    assert set(found) == {"one", "stalled", "two"}


def test_a_failure_is_not_an_answer() -> None:
    resolver, events = Resolver(), queue.Queue[AnyEvent]()
    lookup = Lookup(resolver, events)
    lookup.assign(("one",), interval_ms=100)
    lookup.start()
    assert heard(events) == {"one": ("address of one",)}
    resolver.failing = True
    time.sleep(0.5)
    while not events.empty():
        events.get()
    with pytest.raises(queue.Empty):
        events.get(timeout=0.5)

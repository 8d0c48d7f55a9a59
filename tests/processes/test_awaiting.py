"""A probe that waits at a server for its promotion: the times of its queries, and its handling of an ended wait."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from bgpool.core.events import Answered, ProbeFailed
from bgpool.core.phase import Role
from bgpool.core.plan import Target
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.probe import Probe
from bgpool.monitor.session import Answer, SessionError

LONG_S: Final = 20.0
LONG_MS: Final = int(1000 * LONG_S)


class Server:
    """A server that reports its promotion, if it supports the wait."""

    def __init__(self, *, waits: bool = True) -> None:
        self.waits = waits
        self.promoted = threading.Event()
        self.waited: queue.Queue[float] = queue.Queue()
        self.fails = False
        self.opened = 0
        self.ends = socket.socketpair()

    def open(self, _target: Target) -> Server:
        """Open a session."""
        self.opened += 1
        return self

    @property
    def socket(self) -> int:
        return self.ends[0].fileno()

    def ask(self) -> Answer:
        return Answer(not self.promoted.is_set(), not self.promoted.is_set())

    def await_promotion(self, seconds: float) -> bool:
        if not self.waits or self.promoted.is_set():
            return False
        self.waited.put(seconds)
        self.promoted.wait(seconds)
        if self.fails:
            self.fails = False
            raise SessionError("cut")
        return True

    def close(self) -> None:
        pass


Start = Callable[..., tuple[Probe, Inbox]]


@pytest.fixture
def start() -> Iterator[Start]:
    begun: list[tuple[Probe, Server]] = []

    def go(server: Server, **assigned: int) -> tuple[Probe, Inbox]:
        events = Inbox()
        probe = Probe(Role.TARGET, server.open, events)
        probe.assign(Target("green", 1), **{"interval_ms": LONG_MS, "retry_ms": LONG_MS, **assigned})
        probe.start()
        begun.append((probe, server))
        return probe, events

    yield go
    for probe, server in begun:
        server.promoted.set()
        probe.stop()
        probe.join(LONG_S)
        for end in server.ends:
            end.close()


def answers(events: Inbox, count: int) -> list[Answered]:
    """Return the next *count* answers; check that no query fails until then."""
    found: list[Answered] = []
    while len(found) < count:
        letter = events.get(LONG_S / 2)
        assert letter is not None
        assert not any(isinstance(event, ProbeFailed) for event in letter.events)
        found += [event for event in letter.events if isinstance(event, Answered)]
    return found


def test_a_query_follows_the_promotion_at_once(start: Start) -> None:
    server = Server()
    _, events = start(server, await_ms=LONG_MS)
    assert answers(events, 1)[0].read_only
    assert server.waited.get(timeout=LONG_S / 2) == LONG_S
    server.promoted.set()
    assert not answers(events, 1)[0].read_only


def test_a_wait_does_not_count_as_unanswered(start: Start) -> None:
    server = Server()
    probe, events = start(server, await_ms=LONG_MS)
    answers(events, 1)
    server.waited.get(timeout=LONG_S / 2)
    time.sleep(0.05)
    assert probe.unanswered_s() == 0.0


@pytest.mark.parametrize("await_ms", [0, LONG_MS], ids=["no wait wanted", "no wait supported"])
def test_the_probe_pauses_if_it_does_not_wait(start: Start, await_ms: int) -> None:
    server = Server(waits=not await_ms)
    _, events = start(server, interval_ms=10, await_ms=await_ms)
    answers(events, 3)
    assert server.waited.empty()


def test_a_wait_that_is_cut_is_followed_by_a_new_connection(start: Start) -> None:
    server = Server()
    server.fails = True
    _, events = start(server, interval_ms=10, await_ms=10)
    answers(events, 3)
    assert server.opened == 2

"""The model of a fleet's bus: streams with rising ids, and servers that stop, restart, lose data or are unreachable.

Source: the observed behavior of Redis 7.0 and Valkey 9.1; docs/fleet.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from bgpool.core.fleet import FleetOrder, Message, Report
from bgpool.core.limits import FLEET_ENTRIES, FLEET_HOSTS, FLEET_TIMEOUT_S
from bgpool.lab.simulation.clock import MS, SECOND, Clock

__all__ = ["FAILED", "MISSING", "OK", "REFUSED", "WALL_NS", "Bus", "Listener", "Node", "Place"]

#: The wall clock, where it is right, at the beginning of a run.
WALL_NS: Final = 1_800_000_000 * SECOND

#: The outcomes of a write.
OK: Final = "written"
REFUSED: Final = "not above the top"
MISSING: Final = "no such key"
FAILED: Final = "the bus does not answer"

#: Entries are trimmed in groups: approximately so many are kept.
_MOST: Final = 2 * FLEET_ENTRIES - 7
_REPORTS: Final = 4 * FLEET_HOSTS
_TIMEOUT_NS: Final = int(FLEET_TIMEOUT_S * SECOND)

Id = tuple[int, int]


class Place:
    """The place of a host, with its conditions, which apply to each of its monitors.

    Attributes:
        off_ns: The offset of its wall clock; positive if it is ahead.
        cut: The reason for which each role's server is unreachable: ``silent``, ``refused``, or empty if it is
            reachable.
        bus_cut: True if the bus is unreachable without an error.
        stopped: True if its processes are stopped.
        foreign: True if its database is another one: two deployments have the same bg_id by mistake.
    """

    __slots__ = (
        "_waiting",
        "application",
        "bus_cut",
        "bus_latency_ns",
        "clock",
        "cut",
        "dns_latency_ns",
        "dns_works",
        "foreign",
        "number",
        "off_ns",
        "stopped",
    )

    def __init__(self, clock: Clock, number: int, bus_latency_ns: int) -> None:
        self.clock: Final = clock
        self.number: Final = number
        self.application = "app"
        self.off_ns = 0
        self.cut = ["", ""]
        self.bus_cut = False
        self.bus_latency_ns = bus_latency_ns
        self.dns_works = True
        self.dns_latency_ns = MS
        self.stopped = self.foreign = False
        self._waiting: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    @property
    def wall_ns(self) -> int:
        """The time on the host's clock."""
        return WALL_NS + self.clock.now + self.off_ns

    def park(self, call: Callable[..., object], *args: Any) -> None:
        """Call *call* once the processes continue."""
        self._waiting.append((call, args))

    def go_on(self) -> None:
        """Continue the stopped processes with everything that has arrived in the meantime."""
        self.stopped = False
        waiting, self._waiting = self._waiting, []
        for call, args in waiting:
            self.clock.after(0, call, *args)


class Listener(Protocol):
    """A reader of a stream."""

    @property
    def place(self) -> Place:
        """The reader's place."""

    def notice(self) -> None:
        """Handle new entries."""

    def hang_up(self) -> None:
        """Handle the server's close of the connection."""

    def wait_in_vain(self) -> None:
        """Handle a connection on which nothing arrives any longer, without an error."""


class Node:
    """One server, with the leaders' stream and the hosts'.

    Attributes:
        entries: The ids and their messages, in order.
        last: The highest id that the stream has had; it outlives the entries, and ends with the key.
        exists: True if there is a key.
        reports: The hosts' stream, each with the ms of its arrival; those before *trimmed* are gone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self.entries: list[tuple[Id, Message]] = []
        self.last: Id = (0, 0)
        self.exists = False
        self.reports: list[tuple[int, Report | FleetOrder]] = []
        self.trimmed = 0
        self.down = self.stalled = False
        self.listeners: dict[Listener, None] = {}
        self._sent: list[Callable[[], object]] = []

    def add(self, message: Message) -> str:
        """XADD of *message*, with NOMKSTREAM unless it is a claim."""
        place = (message.term, message.seq)
        if not self.exists and message.seq:
            return MISSING
        if place <= self.last:
            return REFUSED
        self.exists, self.last = True, place
        self.entries.append((place, message))
        if len(self.entries) > _MOST:
            del self.entries[:-FLEET_ENTRIES]
        for listener in list(self.listeners):
            listener.notice()
        return OK

    def top(self) -> Message | None:
        """Return the newest entry."""
        return self.entries[-1][1] if self.entries else None

    def after(self, place: Id) -> list[tuple[Id, Message]]:
        """Return the entries above *place*."""
        entries = self.entries
        first = len(entries)
        while first and entries[first - 1][0] > place:
            first -= 1
        return entries[first:]

    def report(self, report: Report | FleetOrder) -> str:
        """XADD to the hosts' stream."""
        self.reports.append(((WALL_NS + self._clock.now) // MS, report))
        if len(self.reports) > 2 * _REPORTS:
            cut = len(self.reports) - _REPORTS
            del self.reports[:cut]
            self.trimmed += cut
        for listener in list(self.listeners):
            if getattr(listener, "counts", False):
                listener.notice()
        return OK

    def delete(self, *, reports: bool) -> None:
        """DEL; waiting readers are not notified."""
        self.exists, self.last, self.entries = False, (0, 0), []
        if reports:
            self.trimmed += len(self.reports)
            self.reports = []

    def copy(self, lost_entries: int) -> Node:
        """Return a replica, which lacks the last *lost_entries*."""
        node = Node(self._clock)
        node.entries = self.entries[: len(self.entries) - lost_entries]
        node.exists = bool(node.entries) or (self.exists and not lost_entries)
        node.last = self.last if not lost_entries else node.entries[-1][0] if node.entries else (0, 0)
        node.reports, node.trimmed = list(self.reports), self.trimmed
        return node

    def later(self, call: Callable[[], object]) -> None:
        """Run *call* when the server continues; its sender has disconnected by then."""
        self._sent.append(call)

    def stop(self) -> None:
        """SIGSTOP."""
        self.stalled = True
        for listener in list(self.listeners):
            listener.wait_in_vain()

    def go_on(self) -> None:
        """SIGCONT."""
        self.stalled = False
        sent, self._sent = self._sent, []
        for call in sent:
            call()
        for listener in list(self.listeners):
            listener.notice()

    def end(self) -> None:
        """Close every connection."""
        for listener in list(self.listeners):
            del self.listeners[listener]
            listener.hang_up()


class Bus:
    """The bus: a name that leads to the primary, but for some hosts temporarily to another server.

    Attributes:
        node: The primary.
        old: The former primary, which the hosts *stayed* still use.
        slow_ns: The additional latency.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock: Final = clock
        self._rng: Final = rng
        self.node = Node(clock)
        self.old: Node | None = None
        self.stayed: frozenset[int] = frozenset()
        self.slow_ns = 0

    def node_of(self, place: Place) -> Node:
        """Return the server to which *place* connects."""
        return self.old if self.old is not None and place.number in self.stayed else self.node

    def reach(self, place: Place) -> str:
        """Return the reachability of the server from *place*: OK, REFUSED, or FAILED for no answer."""
        node = self.node_of(place)
        if place.bus_cut or node.stalled:
            return FAILED
        return REFUSED if node.down else OK

    def latency_ns(self, place: Place) -> int:
        """Return the latency in one direction."""
        return place.bus_latency_ns + self.slow_ns

    def call(self, place: Place, work: Callable[[Node], Any], done: Callable[[Any], object]) -> None:
        """Run *work* on the server of *place*, and call *done* with its result, or with FAILED."""
        clock, node, how = self._clock, self.node_of(place), self.reach(place)
        if how is REFUSED:
            clock.after(MS, done, FAILED)
            return
        latency_ns = self.latency_ns(place)
        if how is FAILED:
            clock.after(_TIMEOUT_NS, done, FAILED)
            if self._rng.random() < 0.5:
                # It was sent, or is in the server's buffers: the sender cannot distinguish that from a lost one.
                if node.stalled:
                    node.later(lambda: work(node))
                else:
                    clock.after(latency_ns, work, node)
            return
        clock.after(latency_ns, self._arrive, place, node, work, done, clock.now + _TIMEOUT_NS)

    def _arrive(
        self, place: Place, node: Node, work: Callable[[Node], Any], done: Callable[[Any], object], until_ns: int
    ) -> None:
        clock = self._clock
        if node.down:
            clock.after(MS, done, FAILED)
        elif node.stalled:
            node.later(lambda: work(node))
            clock.at(until_ns, done, FAILED)
        else:
            found, latency_ns = work(node), self.latency_ns(place)
            late = clock.now + latency_ns > until_ns or place.bus_cut
            clock.at(until_ns if late else clock.now + latency_ns, done, FAILED if late else found)

    # -- faults ----------------------------------------------------------------------------------------------

    def cut_off(self, place: Place, listeners: list[Listener]) -> None:
        """Cut *place* off from the bus."""
        place.bus_cut = True
        for listener in listeners:
            listener.wait_in_vain()

    def let_in(self, place: Place, listeners: list[Listener]) -> None:
        """Undo the cut; data that TCP has kept arrive."""
        place.bus_cut = False
        for listener in listeners:
            listener.notice()

    def break_down(self) -> None:
        """End the server."""
        self.node.down = True
        self.node.end()

    def restart(self, lost_entries: int | None) -> None:
        """Restart the server, without its last *lost_entries*, or for None without any data."""
        self.node.end()
        node = self.node.copy(lost_entries) if lost_entries is not None else Node(self._clock)
        self.node = node

    def fail_over(self, lost_entries: int, stayed: frozenset[int]) -> None:
        """Promote a replica; the hosts *stayed* continue with the old primary, which does not notice."""
        old, self.node = self.node, self.node.copy(min(lost_entries, len(self.node.entries)))
        self.stayed = stayed
        self.old = old if stayed else None
        for listener in list(old.listeners):
            if listener.place.number not in stayed:
                del old.listeners[listener]
                listener.hang_up()

    def demote(self) -> None:
        """Demote the old primary, which is a copy of the new one from then on."""
        old, self.old, self.stayed = self.old, None, frozenset()
        if old is not None:
            old.end()

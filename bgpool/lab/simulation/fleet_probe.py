"""The queries of the model's hosts: to servers, over kept connections, and to DNS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from bgpool.core.events import (
    Answered,
    Event,
    Instant,
    MetadataAbsent,
    MetadataFailed,
    ProbeFailed,
    StatusRead,
    StatusRow,
)
from bgpool.core.fleet import PLACES
from bgpool.core.limits import MONITOR_STATEMENT_TIMEOUT_S, RESOLVE_INTERVAL_S, SILENCE_S
from bgpool.core.phase import Role
from bgpool.core.plan import Target
from bgpool.lab.simulation.clock import MS, SECOND, Clock
from bgpool.lab.simulation.fleet_bus import Place
from bgpool.lab.simulation.world import Link, Server, World

__all__ = ["Asker", "Lookup", "Probe"]

_SILENCE_NS: Final = int(SILENCE_S * SECOND)
_RESOLVE_NS: Final = int(RESOLVE_INTERVAL_S * SECOND)
_AGAIN_NS: Final = 200 * MS


class Asker(Protocol):
    """The owner of the queries."""

    alive: bool

    @property
    def place(self) -> Place:
        """Its place."""

    def now(self) -> Instant:
        """Return the current time on its clocks."""

    def take(self, event: Event) -> None:
        """Handle the result of a query."""

    def note_question(self, role: Role) -> None:
        """Count a query to the server of *role*."""

    def note_silence(self, role: Role, asked_ns: int) -> None:
        """Handle a query that has been unanswered for a while."""


class Probe:
    """The model of bgpool/monitor/probe.py, a thread that queries the server of one role."""

    def __init__(self, asker: Asker, world: World, role: Role) -> None:
        self._asker: Final = asker
        self._world: Final = world
        self._clock: Final[Clock] = world.clock
        self._role: Final = role
        self._target: Target | None = None
        self._interval_ns = self._retry_ns = SECOND
        self._least_ns = 0
        self._link: Link | None = None
        self._opened: Target | None = None
        self._begun_ns = -SECOND
        self._number = 0
        self._asking = self._woken = False
        self._ticket = 0

    def assign(self, target: Target | None, interval_ms: int, retry_ms: int, least_ms: int) -> None:
        """Set the target and the interval; a change that makes a query due sooner applies at once."""
        sooner = interval_ms * MS < self._interval_ns or target != self._target or least_ms * MS < self._least_ns
        self._target, self._interval_ns, self._retry_ns = target, interval_ms * MS, retry_ms * MS
        self._least_ns = least_ms * MS
        if sooner:
            self.wake()

    def wake(self) -> None:
        """Query at once, or as soon as allowed."""
        if self._asking:
            self._woken = True
        else:
            self._ask_at(self._clock.now)

    def close(self) -> None:
        """Disconnect."""
        link, self._link = self._link, None
        if link is not None:
            link.server.end(link)

    def _ask_at(self, moment_ns: int) -> None:
        self._ticket += 1
        self._clock.at(max(moment_ns, self._begun_ns + self._least_ns), self._ask, self._ticket)

    def _ask(self, ticket: int) -> None:
        asker = self._asker
        if ticket != self._ticket or self._asking or not asker.alive:
            return
        if asker.place.stopped:
            asker.place.park(self._ask, ticket)
            return
        target = self._target
        if target is None:
            self.close()
            return
        if self._link is not None and target.supersedes(self._opened):
            self.close()
        self._asking, self._woken = True, False
        self._number += 1
        self._begun_ns = self._clock.now
        asker.note_question(self._role)
        number, cut = self._number, asker.place.cut[PLACES[self._role]]
        link = self._link
        if cut == "refused":
            self._clock.after(MS, self._fail, number, "refused on the way")
        elif link is not None:
            self._go(number, cut, link.server, self._read, link)
        else:
            addresses = target.addresses or ((self._world.resolve(target.host) or ()) if asker.place.dns_works else ())
            if not addresses:
                self._clock.after(MS, self._fail, number, "no such name")
                return
            self._opened = target
            self._go(number, cut, self._world.server_at(addresses[0]), self._connect, None)

    def _go(
        self, number: int, cut: str, server: Server, then: Callable[[int, Server, Link | None], None], link: Link | None
    ) -> None:
        if cut or server.gone:
            self._wait_in_vain(number)
        else:
            self._clock.after(server.latency_ns, self._arrive, number, server, then, link)

    def _arrive(
        self, number: int, server: Server, then: Callable[[int, Server, Link | None], None], link: Link | None
    ) -> None:
        """Handle the query's arrival at the server."""
        if server.frozen:
            server.park(lambda: then(number, server, link))
            self._wait_in_vain(number)
        else:
            then(number, server, link)

    def _connect(self, number: int, server: Server, _: Link | None) -> None:
        if server.refuses or server.refuses_monitor:
            self._clock.after(server.latency_ns, self._fail, number, "refused")
        elif number == self._number and self._asking:
            link = Link(server)
            server.links[link] = None
            self._link = link
            self._clock.after(2 * server.latency_ns, self._arrive, number, server, self._read, link)

    def _read(self, number: int, server: Server, link: Link | None) -> None:
        if link is None or link.ended:
            self._clock.after(server.latency_ns, self._fail, number, "cut")
        else:
            self._clock.after(server.latency_ns, self._answer, number, *_state(server, self._role))

    def _answer(self, number: int, answered: Answered, status: StatusRead | MetadataAbsent | MetadataFailed) -> None:
        asker = self._asker
        if asker.place.stopped:
            asker.place.park(self._answer, number, answered, status)
            return
        if number != self._number or not self._asking or not asker.alive:
            return
        if asker.place.cut[PLACES[self._role]]:
            self._wait_in_vain(number)
            return
        self._end(self._interval_ns)
        at, role = asker.now(), self._role
        asker.take(
            Answered(
                at,
                role,
                answered.read_only,
                answered.replica,
                role_read_only=answered.role_read_only,
                subscribes=answered.subscribes,
            )
        )
        if isinstance(status, StatusRead):
            asker.take(StatusRead(at, role, _foreign(status.rows) if asker.place.foreign else status.rows))
        elif isinstance(status, MetadataAbsent):
            asker.take(MetadataAbsent(at, role, status.remedy))
        else:
            asker.take(MetadataFailed(at, role, status.error))

    def _fail(self, number: int, text: str) -> None:
        asker = self._asker
        if asker.place.stopped:
            asker.place.park(self._fail, number, text)
            return
        if number != self._number or not self._asking or not asker.alive:
            return
        self.close()
        self._end(self._retry_ns)
        asker.take(ProbeFailed(asker.now(), self._role, text))

    def _end(self, pause_ns: int) -> None:
        self._asking = False
        self._ask_at(self._clock.now if self._woken else self._clock.now + pause_ns)

    def _wait_in_vain(self, number: int) -> None:
        """Leave the query unanswered until the server is thawed."""
        target = self._target
        limit_s = target.timeout_s if target is not None and target.timeout_s else MONITOR_STATEMENT_TIMEOUT_S
        self._clock.at(self._begun_ns + limit_s * SECOND, self._fail, number, "no answer")
        self._clock.at(self._begun_ns + _SILENCE_NS, self._note_silence, number)

    def _note_silence(self, number: int) -> None:
        asker = self._asker
        if number != self._number or not self._asking or not asker.alive:
            return
        if not asker.place.stopped:
            asker.note_silence(self._role, self._begun_ns)
        self._clock.after(_AGAIN_NS, self._note_silence, number)


class Lookup:
    """The look-up of names, by the resolver of the place."""

    def __init__(self, asker: Asker, world: World, found: Callable[[dict[str, tuple[str, ...]]], None]) -> None:
        self._asker: Final = asker
        self._world: Final = world
        self._clock: Final[Clock] = world.clock
        self._found: Final = found
        self._names: tuple[str, ...] = ()
        self._interval_ns = SECOND
        self._ticket = 0
        self._told: dict[str, tuple[str, ...]] = {}

    def assign(self, names: tuple[str, ...], interval_ms: int) -> None:
        """Set the names and the interval; a change applies at once."""
        interval_ns = max(interval_ms * MS, _RESOLVE_NS)
        sooner = names != self._names or interval_ns < self._interval_ns
        self._names, self._interval_ns = names, interval_ns
        if sooner:
            self._ticket += 1
            self._look(self._ticket)

    def _look(self, ticket: int) -> None:
        asker, world = self._asker, self._world
        if ticket != self._ticket or not asker.alive or not self._names:
            return
        place = asker.place
        if place.stopped:
            place.park(self._look, ticket)
            return
        if place.dns_works and world.dns_works:
            found = {name: world.resolve(name) or () for name in self._names}
            latency_ns = place.dns_latency_ns + world.dns_latency_ns
            self._clock.after(latency_ns, self._tell, found)
        self._clock.after(self._interval_ns, self._look, ticket)

    def _tell(self, found: dict[str, tuple[str, ...]]) -> None:
        if self._asker.place.stopped:
            self._asker.place.park(self._tell, found)
        elif self._asker.alive:
            self._found(found)


@functools.lru_cache(maxsize=64)
def _foreign(rows: tuple[StatusRow, ...]) -> tuple[StatusRow, ...]:
    """Return the same of another deployment."""
    return tuple(replace(row, endpoint=row.endpoint.replace("db", "other", 1)) for row in rows)


def _state(server: Server, role: Role) -> tuple[Answered, StatusRead | MetadataAbsent | MetadataFailed]:
    """Return the server's answer at the time of the call."""
    answered = Answered(
        _NEVER,
        role,
        server.takes_no_writes,
        server.replica,
        role_read_only=server.role_read_only,
        subscribes=server.subscribes,
    )
    if server.metadata == "rows":
        return answered, StatusRead(_NEVER, role, server.status_rows)
    if server.metadata == "empty":
        return answered, StatusRead(_NEVER, role, ())
    if server.metadata == "absent":
        return answered, MetadataAbsent(_NEVER, role, "nothing to be seen")
    return answered, MetadataFailed(_NEVER, role, "broken")


_NEVER: Final = Instant(0, 0)

"""A simulated switchover with a fleet of monitors, compared with the knowledge of hosts that query for themselves."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

from bgpool.core.events import Event, Resolved, StatusRead
from bgpool.core.fleet import PLACES, FleetRole
from bgpool.core.limits import (
    FLEET_BUDGET_PER_S,
    FLEET_CLOCK_ERROR_S,
    FLEET_SILENCE_SWITCHING_S,
    FLEET_TURN_S,
    GREEN_WAIT_S,
)
from bgpool.core.machine import Rules
from bgpool.core.member import Member
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.plan import Intervals
from bgpool.core.routing import Purpose, decide
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import METADATA
from bgpool.lab.simulation.clock import MS, SECOND, Clock
from bgpool.lab.simulation.fleet_bus import Bus, Place
from bgpool.lab.simulation.fleet_host import Host
from bgpool.lab.simulation.fleet_script import LEADER, Faults, draw_faults
from bgpool.lab.simulation.script import UNHURRIED_MS, Script, draw
from bgpool.lab.simulation.world import World

__all__ = ["FleetOutcome", "simulate_fleet", "simulate_fleets"]

#: The number of monitors that query for themselves, without a fleet and without faults of their own, for comparison.
SHADOWS: Final = 2
CALM_NS: Final = 6 * SECOND
#: The allowed delay of a host's knowledge, compared with that from queries of its own.
LATE_NS: Final = SECOND
CHUNK: Final = 20
_CUTS: Final = frozenset({"connections dropped", "blue's connections dropped", "blue crashes", "writes stopped"})


@dataclass(frozen=True, slots=True)
class FleetOutcome:
    """The result of a seed.

    Attributes:
        story: The description of the drawn events.
        faults: The number of faults of the fleet itself.
        lag_s: The delay of the last host's release, compared with queries of its own; None without a release.
        asked: The queries of all hosts, and of one that queries for itself.
        fallbacks: The number of fallbacks of all hosts.
        violations: The broken promises.
    """

    seed: int
    story: str
    faults: int
    lag_s: float | None
    asked: tuple[int, int]
    fallbacks: int
    violations: tuple[str, ...]


def simulate_fleet(seed: int, hosts: int = 20, *, trace: Callable[[str], None] | None = None) -> FleetOutcome:
    """Draw a switchover and a fleet of *hosts* hosts from *seed*; the same for the same seed, on every machine.

    Args:
        seed: Any whole number.
        hosts: At least 2.
        trace: A callable that receives a line for each event.
    """
    return _Run(seed, hosts, trace).run()


def simulate_fleets(count: int, hosts: int = 20, first_seed: int = 0, *, processes: int = 1) -> Iterator[FleetOutcome]:
    """Yield the outcomes of *count* seeds from *first_seed* on, in order; in *processes* processes if more than one."""
    seeds = range(first_seed, first_seed + count)
    if processes <= 1:
        yield from (simulate_fleet(seed, hosts) for seed in seeds)
        return
    with ProcessPoolExecutor(processes) as executor:
        yield from executor.map(simulate_fleet, seeds, [hosts] * count, chunksize=CHUNK)


class _Life:
    """The history of one host's place: of its monitors with a fleet, or without.

    Attributes:
        released_ns: The time of its first release; None for never.
        held_ns: The time of its first hold, or of a release without one.
        over_ns: The time at which a switchover that had begun ended for it, in any way.
        in_progress_ns: The end of its time in IN_PROGRESS.
    """

    def __init__(self, run: _Run, place: Place, name: str) -> None:
        self._run: Final = run
        self.traces = run.traces
        self.name: Final = name
        self.place: Final = place
        self.host: Host | None = None
        self.snapshot = Snapshot("sim")
        self.released_ns: int | None = None
        self.held_ns: int | None = None
        self.over_ns: int | None = None
        self.in_progress_ns: int | None = None
        self.fallbacks = 0
        # The names and addresses that it received itself, and the rows of its last query.
        self.names: set[str] = set()
        self.addresses: dict[str, set[str]] = {}
        self._rows: object = None

    def tell(self, event: Event) -> None:
        """Record the answer to its own query, of a server or of DNS."""
        if isinstance(event, StatusRead) and event.rows is not self._rows:
            self._rows = event.rows
            self.names |= {row.endpoint for row in event.rows}
        elif isinstance(event, Resolved):
            for name, addresses in event.addresses.items():
                self.addresses.setdefault(name, set()).update(addresses)

    def see(self, before: Snapshot, after: Snapshot) -> None:
        """Record a change of its snapshot."""
        self.snapshot = after
        self._run.see(self, before, after)

    def count(self, host: Host, role: Role) -> None:
        """Count a query to the server of *role*."""
        self._run.count(host, role)

    def trace(self, text: str) -> None:
        """Trace an event."""
        self._run.note(f"{self.name}: {text}")


class _Run:
    def __init__(self, seed: int, hosts: int, trace: Callable[[str], None] | None) -> None:
        self._seed: Final = seed
        self._trace: Final = trace
        self.traces: Final = trace is not None
        self._rng: Final = random.Random(seed)
        self._clock: Final = Clock()
        self._world: Final = World(self._clock, random.Random(seed))
        self._script: Final[Script] = draw(self._rng)
        # Not all begin at the same time, and with more hosts it takes longer until all are calm.
        self._spread_ns: Final = 2 * SECOND
        self._settle_ns: Final = CALM_NS + max(4 * SECOND, hosts * SECOND // 50)
        self._script.prepare(self._world)
        self._faults: Final[Faults] = draw_faults(self._rng, hosts)
        self._rules: Final = Rules(self._script.timeout_ms, self._script.release_on_dns)
        self._intervals: Final = Intervals(1000 if hosts <= 100 else 10_000, 1000, 100)
        # For each role: True if a monitor that queries for itself once got no answer.
        self._was_silent = [False, False]
        # The time since which all hosts are in the fleet.
        self._joined_ns: int | None = None
        self.bus: Final = Bus(self._clock, random.Random(seed + 1))
        rng = self._rng
        self._lives: Final[list[_Life]] = []
        for number in range(hosts):
            place = Place(self._clock, number, rng.randrange(200_000, 3 * MS))
            place.off_ns = self._faults.off_ns[number]
            if number in self._faults.applications:
                place.application = "other"
            self._lives.append(_Life(self, place, f"host {number}"))
        self._generic: Final = [
            _Life(self, Place(self._clock, -1 - number, MS), f"alone {number}") for number in range(SHADOWS)
        ]
        self._shadows: Final[dict[int, _Life]] = {}
        self._violations: Final[dict[str, None]] = {}
        self._promoted_ns: int | None = None
        self._rolled_back = False
        self._told_of: dict[str, int] = {}
        # The times of queries to each role, by the kind of host: one that knows the number of hosts and does not lead;
        # the leader; one that knows of no deployment; and one that queries for itself.
        self._asked: Final[dict[str, tuple[list[int], list[int]]]] = {
            word: ([], []) for word in ("paced", "leader", "unpaced", "new", "alone")
        }

    # -- the targets of faults -------------------------------------------------------------------------------------

    def find(self, number: int) -> int:
        """Return the number of the host *number*, or of the leader."""
        if number != LEADER:
            return number
        leading = [life.place.number for life in self._lives if life.host is not None and life.host.leads]
        return leading[0] if leading else 0

    def place(self, number: int) -> Place:
        """Return the place of the host *number*, which a fault also makes unreachable for its shadow."""
        self._shadow(number)
        return self._lives[number].place

    def kill(self, number: int, away_ns: int) -> None:
        """End the monitor of the host *number*; the next one begins *away_ns* later."""
        for life, fleet in ((self._lives[number], True), (self._shadow(number), False)):
            if life.host is None or not life.host.alive:
                continue
            if life.host.member is not None:
                life.fallbacks += life.host.member.fallbacks
            life.host.kill()
            self._clock.after(away_ns, self._begin, life, fleet)

    def stop(self, number: int, for_ns: int) -> None:
        """Stop its processes for a while."""
        self._shadow(number)
        place = self._lives[number].place
        place.stopped = True
        self._clock.after(for_ns, place.go_on)

    def cut_off(self, numbers: list[int], for_ns: int) -> None:
        """Cut *numbers* off from the bus."""
        for number in numbers:
            life = self._lives[number]
            if life.host is not None:
                self.bus.cut_off(life.place, life.host.listeners)
                self._clock.after(for_ns, self._let_in, life)

    def _let_in(self, life: _Life) -> None:
        self.bus.let_in(life.place, life.host.listeners if life.host is not None else [])

    def cut_database(self, number: int, roles: tuple[int, ...], how: str, for_ns: int) -> None:
        """Cut the host off from servers."""
        place = self.place(number)
        for role in roles:
            place.cut[role] = how
        self._clock.after(for_ns, place.cut.__setitem__, slice(None), ["", ""])

    def after(self, delay_ns: int, call: Callable[[], object]) -> None:
        """Schedule *call*."""
        self._clock.after(delay_ns, call)

    # -- events ----------------------------------------------------------------------------------------------------

    def run(self) -> FleetOutcome:
        script, clock, faults = self._script, self._clock, self._faults
        zero_ns = script.zero_ns
        for life in self._generic:
            clock.after(self._rng.randrange(0, SECOND), self._begin, life, False)
        for number, life in enumerate(self._lives):
            late_s = faults.late.get(number)
            begin_ns = self._rng.randrange(0, self._spread_ns) if late_s is None else zero_ns + int(late_s * SECOND)
            clock.at(begin_ns, self._begin, life, True)
            if late_s is not None:
                shadow = self._shadows[number] = _Life(self, life.place, f"shadow of {number}")
                clock.at(begin_ns, self._begin, shadow, False)
        script.stage(self._world, self.note)
        for at_s, word, act in faults.steps:
            clock.at(max(0, zero_ns + int(at_s * SECOND)), self._fault, word, act)
        clock.at(script.calm_ns, self._world.calm_down)
        clock.after(self._spread_ns, self._look_for_joined)
        end_ns = max(script.calm_ns, zero_ns + int(faults.end_s * SECOND))
        clock.run(end_ns + self._settle_ns)
        self._judge()
        asked = sum(len(times) for word in ("paced", "leader", "unpaced", "new") for times in self._asked[word])
        alone = sum(map(len, self._asked["alone"]))
        story = f"{script.story}; fleet: {'; '.join(faults.words) or 'no faults'}"
        return FleetOutcome(
            self._seed,
            story,
            len(faults.words),
            self._lag_s(),
            (asked, alone),
            self._fallbacks(),
            tuple(self._violations),
        )

    def _look_for_joined(self) -> None:
        hosts = [life.host for life in self._lives if life.host is not None]
        members = [host.member for host in hosts if host.member is not None]
        if any(member.standing is FleetRole.DIRECT for member in members):
            self._clock.after(SECOND // 4, self._look_for_joined)
        else:
            self._joined_ns = self._clock.now

    def _fault(self, word: str, act: Callable[[_Run], object]) -> None:
        self.note(word)
        act(self)

    def note(self, text: str) -> None:
        """Record an event."""
        if text == "green promoted":
            self._promoted_ns = self._clock.now
        elif text == "rolled back":
            self._rolled_back = True
        elif text in _CUTS:
            self._nudge_all()
        # Rejected monitors are cut as well: a fleet has fewer connections, and the comparison must not depend on whose
        # survives.
        if text == "connections dropped" or text.startswith("monitor locked out of"):
            for server in (self._world.blue, self._world.green):
                if text == "connections dropped" or text.endswith(server.name):
                    self._clock.after(0, server.cut)
        if self._trace is not None:
            self._trace(f"{(self._clock.now - self._script.zero_ns) / SECOND:9.3f}  {text}")

    def _complain(self, text: str) -> None:
        if text not in self._violations:
            self._violations[text] = None
            self.note(f"VIOLATION {text}")

    def _nudge_all(self) -> None:
        rng, chance = self._rng, self._faults.nudged
        for life in self._lives:
            if rng.random() < chance:
                for other in (life, self._shadows.get(life.place.number)):
                    if other is not None and other.host is not None:
                        self._clock.after(rng.randrange(MS, 20 * MS), other.host.nudge)

    def _shadow(self, number: int) -> _Life:
        """Return the comparison monitor of the host *number*: at the same place, without a fleet."""
        if number not in self._shadows:
            life, known = self._lives[number], self._generic[0]
            shadow = self._shadows[number] = _Life(self, life.place, f"shadow of {number}")
            shadow.snapshot = known.snapshot
            shadow.released_ns, shadow.held_ns = known.released_ns, known.held_ns
            shadow.over_ns, shadow.in_progress_ns = known.over_ns, known.in_progress_ns
            self._begin(shadow, False)
        return self._shadows[number]

    def _begin(self, life: _Life, fleet: bool) -> None:
        host = Host(self._world, life.place, life.snapshot, self._rules, self._intervals, life)
        life.host = host
        if fleet:
            member = Member(f"{self._rng.getrandbits(64):016x}", life.place.application)
            host.join(self.bus, member, random.Random(self._rng.getrandbits(32)))
        host.start()

    def count(self, host: Host, role: Role) -> None:
        """Count a query of *host* to the server of *role*."""
        member, place = host.member, PLACES[role]
        if member is None:
            if host.place.number == -1:
                self._asked["alone"][place].append(self._clock.now)
            return
        if member.standing is FleetRole.LEADER:
            word = "leader"
        else:
            knows = 2 * member.hosts >= len(self._lives)
            is_new = host.snapshot.phase is Phase.NOT_CREATED
            word = "new" if is_new else "paced" if knows else "unpaced"
        self._asked[word][place].append(self._clock.now)

    def see(self, life: _Life, before: Snapshot, snapshot: Snapshot) -> None:
        """Check a change of the snapshot of *life*."""
        if life is self._generic[0]:
            self._was_silent[0] |= before.source_read_only is not None and snapshot.source_read_only is None
            self._was_silent[1] |= before.target_read_only is not None and snapshot.target_read_only is None
        if snapshot.epoch < before.epoch:
            self._complain(f"the epoch fell from {before.epoch} to {snapshot.epoch}")
        if snapshot.timeline != before.timeline:
            self._look_for_release(life, snapshot)
        if snapshot.hosts is not before.hosts and life in self._lives:
            self._look_for_strangers(life, snapshot)
        if snapshot.phase is not before.phase:
            if self.traces:
                life.trace(f"phase {before.phase.name} -> {snapshot.phase.name}")
            self._inspect(life, before, snapshot)

    def _look_for_strangers(self, life: _Life, snapshot: Snapshot) -> None:
        for host in snapshot.hosts:
            if host.name not in life.names:
                self._complain(f"{life.name} knows names that it never received: {host.name}")
            if not life.addresses.get(host.name, set()).issuperset(host.addresses):
                self._complain(f"{life.name} knows addresses that it never received: {host.addresses}")

    def _look_for_release(self, life: _Life, snapshot: Snapshot) -> None:
        if life.released_ns is not None or all(entry.event != Phase.POST.name for entry in snapshot.timeline):
            return
        now_ns, world = self._clock.now, self._world
        life.released_ns = now_ns
        if not world.may_be_released:
            self._complain("released before green was promoted")
        waited = self._promoted_ns is not None and now_ns >= self._promoted_ns + int(GREEN_WAIT_S * SECOND)
        told = any(entry.evidence == METADATA for entry in snapshot.timeline)
        unhurried = self._script.timeout_ms == UNHURRIED_MS
        if world.green.subscribes and unhurried and not (waited or told or snapshot.blue_moved):
            self._complain("released while green followed blue")

    def _inspect(self, life: _Life, before: Snapshot, snapshot: Snapshot) -> None:
        now_ns, phase = self._clock.now, snapshot.phase
        if life.held_ns is None and phase >= Phase.IN_PROGRESS:
            life.held_ns = now_ns
        if before.phase is Phase.IN_PROGRESS:
            life.in_progress_ns = now_ns
        if life.over_ns is None and (phase >= Phase.POST or snapshot.rolled_back):
            life.over_ns = now_ns
        if snapshot.rolled_back and not before.rolled_back and not self._rolled_back:
            self._complain("rolled back although the world was not")
        if phase >= Phase.PREPARATION and now_ns < self._initiated_ns():
            self._complain(f"{phase.name} before the world began")

    def _initiated_ns(self) -> int:
        found = [at_ns for at_ns, name, _ in self._script.steps if name == "INITIATED"]
        return min(found, default=2**62)

    # -- the promises ----------------------------------------------------------------------------------------------

    def _fallbacks(self) -> int:
        now = (life.host.member.fallbacks for life in self._lives if life.host is not None and life.host.member)
        return sum(now) + sum(life.fallbacks for life in self._lives)

    def _lag_s(self) -> float | None:
        own = [life.released_ns for life in self._generic if life.released_ns is not None]
        special = set(self._shadows)
        others = [
            life.released_ns
            for life in self._lives
            if life.released_ns is not None and life.place.number not in special
        ]
        return (max(others) - min(own)) / SECOND if own and others else None

    def _evidence(self, number: int) -> list[_Life]:
        shadow = self._shadows.get(number)
        return [shadow] if shadow is not None else self._generic

    def _judge(self) -> None:
        late_ns = LATE_NS
        if self._faults.words:
            late_ns += len(self._lives) * SECOND // FLEET_BUDGET_PER_S
        if self._script.timeout_ms < UNHURRIED_MS:
            # The timer runs from the first observation of a switchover, which is polled once a second.
            late_ns += SECOND
        if any("cut off from the database" in word for word in self._faults.words):
            # Other hosts query in turns, which are drawn at random.
            late_ns += 6 * int(FLEET_TURN_S * SECOND)
        # Two deployments under one bg_id share everything that is not tied to names, with or without a fleet.
        for life in self._lives:
            if not life.place.foreign:
                self._judge_times(life, late_ns)
        self._judge_budget()
        self._judge_share()
        self._judge_end()

    def _judge_times(self, life: _Life, late_ns: int) -> None:
        evidence, number, end_ns = self._evidence(life.place.number), life.place.number, self._clock.now
        over = [other.over_ns for other in evidence if other.over_ns is not None]
        if over:
            until_ns = end_ns if life.snapshot.phase is Phase.IN_PROGRESS else life.in_progress_ns
            if until_ns is not None and until_ns > min(over) + late_ns:
                self._complain(f"host {number} held {(until_ns - min(over)) / SECOND:.3f} s longer than on its own")
        held = [other.held_ns for other in evidence if other.held_ns is not None]
        if held:
            held_ns = life.held_ns if life.held_ns is not None else end_ns
            # A state that is visible only briefly may be missed by hosts that first have to detect the loss of their
            # leader.
            found_ns = int((FLEET_SILENCE_SWITCHING_S + 0.6) * SECOND) + late_ns - LATE_NS
            missed = bool(self._faults.words) and self._script.window[1] < min(held) + found_ns
            if held_ns > min(held) + late_ns and not missed:
                self._complain(f"host {number} continued {(held_ns - min(held)) / SECOND:.3f} s longer than on its own")

    def _judge_budget(self) -> None:
        window_ns = max(SECOND, len(self._lives) * SECOND // FLEET_BUDGET_PER_S)
        most = 1.15 * FLEET_BUDGET_PER_S * window_ns / SECOND + 10
        for role in Role:
            times = self._asked["paced"][PLACES[role]]
            worst = max((bisect_left(times, at + window_ns) - place for place, at in enumerate(times)), default=0)
            if worst > most:
                self._complain(f"{role.colour} was queried {worst} times in {window_ns / SECOND:.0f} s")

    def _judge_share(self) -> None:
        """Check that, without faults, the whole fleet queries as often as one monitor."""
        since_ns = self._joined_ns
        if since_ns is None or self._faults.words or self._faults.nudged:
            return
        for role in Role:
            count = {
                word: len(times[PLACES[role]]) - bisect_left(times[PLACES[role]], since_ns)
                for word, times in self._asked.items()
            }
            asked = count["paced"] + count["unpaced"] + count["leader"]
            # While a server does not answer, other hosts query it occasionally.
            turns = (self._clock.now - since_ns) / SECOND / FLEET_TURN_S if self._was_silent[PLACES[role]] else 0
            if asked > 1.1 * count["alone"] + 10 + turns:
                self._complain(
                    f"{role.colour} was queried {asked} times, and {count['alone']} times by one host without a fleet"
                )

    def _says_same(self, snapshot: Snapshot, other: _Life) -> bool:
        """Return whether callers are sent to the same places."""
        names = (self._world.blue_name, self._world.green_name)
        found = [
            [(one.action, one.addresses) for one in (decide(known, name, Purpose.CONNECT) for name in names)]
            for known in (snapshot, other.snapshot)
        ]
        return found[0] == found[1]

    def _judge_end(self) -> None:
        for life in self._lives:
            alone = [other.snapshot.phase for other in self._evidence(life.place.number)]
            # Before and after a switchover, callers are not affected by the knowledge of a deployment.
            calm = not {life.snapshot.phase, *alone} & SWITCHING
            # And a switchover that is not certainly visible is seen by some monitors only.
            same = calm and (
                self._script.evidence_ns is None or self._says_same(life.snapshot, self._evidence(life.place.number)[0])
            )
            # A host that was away for the whole switchover learns of it from the others.
            known = [*alone, *(other.snapshot.phase for other in self._generic)]
            if life.snapshot.phase not in known and not same and not life.place.foreign:
                text = f"{life.snapshot.phase.name}, and {alone[0].name} on its own"
                self._complain(f"host {life.place.number} ends in {text}")
        hosts = [life.host for life in self._lives if life.host is not None and life.host.member is not None]
        right = [host for host in hosts if abs(host.place.off_ns) < FLEET_CLOCK_ERROR_S * SECOND]
        if self._generic[0].snapshot.source_read_only is None:
            return
        leaders = [host for host in hosts if host.leads]
        if len(leaders) != 1:
            self._complain(f"{len(leaders)} hosts lead in the end")
            return
        leader = leaders[0].member
        assert leader is not None
        astray = [
            host.place.number
            for host in right
            if host is not leaders[0]
            # Hosts of another deployment query for themselves, whichever of the two leads.
            and host.place.foreign is leaders[0].place.foreign
            and (
                host.member is None or host.member.leader != leader.id or host.member.standing is not FleetRole.FOLLOWER
            )
        ]
        if astray:
            self._complain(f"hosts {astray} do not follow in the end")
        # An operator waits until all hosts have taken a hold. An order that the bus has lost must be repeated.
        lost = any(word in text for text in self._faults.words for word in ("bus", "deleted"))
        deaf = [
            host.place.number
            for host in right
            if host.member is not None and (host.member.order is None or host.member.order.number != self._faults.order)
        ]
        if self._faults.order and deaf and not lost and leaders[0].snapshot.hold_until_ns:
            self._complain(f"hosts {deaf} have not taken the operator's order")
        if not self._faults.words and self._fallbacks():
            self._complain(f"{self._fallbacks()} fallbacks without a fault")

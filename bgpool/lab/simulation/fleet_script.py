"""Random faults of a simulated fleet, in addition to the events of its databases."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from bgpool.core.events import Order
from bgpool.core.fleet import FleetOrder
from bgpool.lab.simulation.clock import MS, SECOND
from bgpool.lab.simulation.fleet_bus import Bus, Place

__all__ = ["LEADER", "Faults", "Stage", "draw_faults"]

#: The host that leads at the time of the fault.
LEADER: Final = -1


class Stage(Protocol):
    """The targets of faults."""

    bus: Bus

    def find(self, number: int) -> int:
        """Return the number of the host *number*, or of the leader."""

    def place(self, number: int) -> Place:
        """Return the place of the host *number*, which a fault also makes unreachable for its shadow."""

    def kill(self, number: int, away_ns: int) -> None:
        """End the monitor of the host *number*; the next one begins *away_ns* later."""

    def stop(self, number: int, for_ns: int) -> None:
        """Stop its processes for a while."""

    def cut_off(self, numbers: list[int], for_ns: int) -> None:
        """Cut *numbers* off from the bus."""

    def cut_database(self, number: int, roles: tuple[int, ...], how: str, for_ns: int) -> None:
        """Cut the host off from servers."""

    def after(self, delay_ns: int, call: Callable[[], object]) -> None:
        """Schedule *call*."""


@dataclass
class Faults:
    """The faults of a run.

    Attributes:
        words: Their descriptions, for the story.
        steps: Their times, in seconds from IN_PROGRESS, and actions.
        late: The hosts that begin later, and their times.
        off_ns: The offsets of hosts' clocks; positive if they are ahead.
        applications: The hosts of another application than the others'.
        wrong_clocks: Hosts whose clocks are wrong from some time on.
        nudged: The probability that a host has connections that are cut when a server cuts them.
        order: The newest order of the operator; empty for none.
        end_s: The end of the last fault.
    """

    words: list[str] = field(default_factory=list)
    steps: list[tuple[float, str, Callable[[Stage], object]]] = field(default_factory=list)
    late: dict[int, float] = field(default_factory=dict)
    off_ns: list[int] = field(default_factory=list)
    applications: frozenset[int] = frozenset()
    wrong_clocks: bool = False
    nudged: float = 0.0
    order: str = ""
    end_s: float = 0.0

    def at(self, at_s: float, lasts_s: float, word: str, act: Callable[[Stage], object]) -> None:
        """Schedule *act* at *at_s*."""
        self.steps.append((at_s, word, act))
        self.end_s = max(self.end_s, at_s + lasts_s)


def draw_faults(rng: random.Random, hosts: int) -> Faults:
    """Return random faults of *hosts* hosts."""
    faults = Faults()
    faults.off_ns = [rng.randrange(-200 * MS, 200 * MS) for _ in range(hosts)]
    faults.nudged = rng.choice((0.0, 0.1, 1.0))
    kinds = rng.choices(_KINDS, [weight for _, weight in _WEIGHTS], k=rng.choice((0, 1, 1, 1, 2, 2, 3)))
    for kind in kinds:
        kind(faults, rng, hosts)
    return faults


def _moment(rng: random.Random) -> float:
    """Return a time, mostly near the switchover."""
    return rng.uniform(-6, 10) if rng.random() < 0.4 else rng.uniform(-1, 4)


def _some(rng: random.Random, hosts: int, most: int = 8) -> list[int]:
    return rng.sample(range(hosts), rng.randrange(1, max(2, min(most, hosts // 2))))


def _who(rng: random.Random, hosts: int) -> list[int]:
    """Return the leader, or a few hosts."""
    return [LEADER] if rng.random() < 0.7 else _some(rng, hosts)


def _said(numbers: list[int]) -> str:
    return "the leader" if numbers == [LEADER] else f"{len(numbers)} hosts"


def _kill(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, away_s, who = _moment(rng), rng.choice((rng.uniform(0.3, 2), rng.uniform(1, 5))), _who(rng, hosts)

    def act(stage: Stage) -> None:
        for number in who:
            stage.kill(stage.find(number), int(away_s * SECOND))

    faults.at(at_s, away_s, f"{_said(who)} killed for {away_s:.1f} s", act)
    faults.words.append(f"{_said(who)} killed at {at_s:.1f} s")


def _stop(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, for_s, who = _moment(rng), rng.choice((rng.uniform(0.2, 1.5), rng.uniform(1, 10))), _who(rng, hosts)

    def act(stage: Stage) -> None:
        for number in who:
            stage.stop(stage.find(number), int(for_s * SECOND))

    faults.at(at_s, for_s, f"{_said(who)} stopped for {for_s:.1f} s", act)
    faults.words.append(f"{_said(who)} stopped at {at_s:.1f} s for {for_s:.1f} s")


def _cut_off(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, for_s = _moment(rng), rng.choice((rng.uniform(0.1, 1.5), rng.uniform(1, 6)))
    who = [LEADER] if rng.random() < 0.5 else _some(rng, hosts, hosts)

    def act(stage: Stage) -> None:
        stage.cut_off([stage.find(number) for number in who], int(for_s * SECOND))

    faults.at(at_s, for_s, f"{_said(who)} cut off from the bus for {for_s:.1f} s", act)
    faults.words.append(f"{_said(who)} cut off from the bus at {at_s:.1f} s for {for_s:.1f} s")


def _cut_database(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, for_s, who = _moment(rng), rng.uniform(0.3, 6), _who(rng, hosts)
    roles, how = rng.choice(((0, 1), (0,), (1,))), rng.choice(("silent", "refused"))

    def act(stage: Stage) -> None:
        for number in who:
            stage.cut_database(stage.find(number), roles, how, int(for_s * SECOND))

    faults.at(at_s, for_s, f"{_said(who)} cut off from the database ({how}, {roles}) for {for_s:.1f} s", act)
    faults.words.append(f"{_said(who)} cut off from the database at {at_s:.1f} s for {for_s:.1f} s ({how}, {roles})")


def _bus_down(faults: Faults, rng: random.Random, _hosts: int) -> None:
    at_s, for_s = _moment(rng), rng.choice((rng.uniform(0.1, 1), rng.uniform(1, 8)))
    lost = rng.choice((0, 0, rng.randrange(1, 30), None))

    def act(stage: Stage) -> None:
        stage.bus.break_down()
        stage.after(int(for_s * SECOND), lambda: stage.bus.restart(lost))

    kept = "with nothing" if lost is None else f"without {lost} entries"
    faults.at(at_s, for_s, f"bus ends, and is back {kept} in {for_s:.1f} s", act)
    faults.words.append(f"bus down at {at_s:.1f} s for {for_s:.1f} s, back {kept}")


def _bus_stalls(faults: Faults, rng: random.Random, _hosts: int) -> None:
    at_s, for_s = _moment(rng), rng.choice((rng.uniform(0.1, 1), rng.uniform(1, 6)))

    def act(stage: Stage) -> None:
        node = stage.bus.node
        node.stop()
        stage.after(int(for_s * SECOND), node.go_on)

    faults.at(at_s, for_s, f"bus stops for {for_s:.1f} s", act)
    faults.words.append(f"bus stopped at {at_s:.1f} s for {for_s:.1f} s")


def _bus_slow(faults: Faults, rng: random.Random, _hosts: int) -> None:
    at_s, for_s, slow_s = _moment(rng), rng.uniform(0.5, 8), rng.choice((rng.uniform(0.02, 0.3), rng.uniform(0.2, 0.9)))

    def act(stage: Stage) -> None:
        stage.bus.slow_ns = int(slow_s * SECOND)
        stage.after(int(for_s * SECOND), lambda: setattr(stage.bus, "slow_ns", 0))

    faults.at(at_s, for_s, f"bus {slow_s:.2f} s slow for {for_s:.1f} s", act)
    faults.words.append(f"bus {slow_s:.2f} s slow at {at_s:.1f} s for {for_s:.1f} s")


def _deleted(faults: Faults, rng: random.Random, _hosts: int) -> None:
    at_s, times, reports = _moment(rng), rng.choice((1, 1, 1, 4)), rng.random() < 0.5

    def act(stage: Stage) -> None:
        stage.bus.node.delete(reports=reports)

    for number in range(times):
        faults.at(at_s + 0.7 * number, 0.0, "key deleted", act)
    faults.words.append(f"key deleted at {at_s:.1f} s, {times} times")


def _failover(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, lost = _moment(rng), rng.choice((0, 1, rng.randrange(1, 20)))
    stayed = frozenset(_some(rng, hosts, hosts)) if rng.random() < 0.4 else frozenset[int]()
    for_s = rng.uniform(0.5, 4)

    def act(stage: Stage) -> None:
        who = stayed
        if who and rng_leader:
            who |= {stage.find(LEADER)}
        stage.bus.fail_over(lost, who)
        if who:
            stage.after(int(for_s * SECOND), stage.bus.demote)

    rng_leader = rng.random() < 0.5
    faults.at(at_s, for_s, f"bus fails over and loses {lost} entries", act)
    split = f", {len(stayed)} hosts stay for {for_s:.1f} s" if stayed else ""
    faults.words.append(f"bus fails over at {at_s:.1f} s, {lost} entries lost{split}")


def _clocks(faults: Faults, rng: random.Random, hosts: int) -> None:
    faults.wrong_clocks = True
    off_s = rng.choice((-5.0, 5.0, rng.uniform(-8, -1.6), rng.uniform(1.6, 8)))
    at_s = -20.0 if rng.random() < 0.4 else _moment(rng)
    who = [LEADER] if at_s > -10 and rng.random() < 0.5 else _some(rng, hosts)

    def act(stage: Stage) -> None:
        for number in who:
            stage.place(stage.find(number)).off_ns += int(off_s * SECOND)

    faults.at(at_s, 0.0, f"{_said(who)}: clocks step by {off_s:.1f} s", act)
    faults.words.append(f"{_said(who)}: clocks step by {off_s:.1f} s at {at_s:.1f} s")


def _late(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s = _moment(rng)
    who = _some(rng, hosts)
    faults.late.update(dict.fromkeys(who, at_s))
    faults.end_s = max(faults.end_s, at_s)
    faults.words.append(f"{len(who)} hosts begin at {at_s:.1f} s")


def _dns(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, for_s, who = _moment(rng), rng.uniform(0.5, 6), _some(rng, hosts)
    slow_ns = rng.choice((0, rng.randrange(50 * MS, 600 * MS)))

    def act(stage: Stage) -> None:
        for number in who:
            place = stage.place(number)
            place.dns_works, place.dns_latency_ns = bool(slow_ns), slow_ns or MS
            stage.after(int(for_s * SECOND), partial(_mend, place))

    faults.at(at_s, for_s, f"{len(who)} hosts: DNS", act)
    faults.words.append(f"{len(who)} hosts: DNS {'slow' if slow_ns else 'fails'} at {at_s:.1f} s for {for_s:.1f} s")


def _mend(place: Place) -> None:
    place.dns_works, place.dns_latency_ns = True, MS


def _applications(faults: Faults, rng: random.Random, hosts: int) -> None:
    faults.applications |= frozenset(_some(rng, hosts, hosts))
    faults.words.append(f"{len(faults.applications)} hosts of another application")


def _foreign(faults: Faults, rng: random.Random, hosts: int) -> None:
    who = _some(rng, hosts, 3)

    def act(stage: Stage) -> None:
        for number in who:
            stage.place(number).foreign = True

    faults.at(-20.0, 0.0, f"{len(who)} hosts of another deployment", act)
    faults.words.append(f"{len(who)} hosts of another deployment")


def _order(faults: Faults, rng: random.Random, hosts: int) -> None:
    at_s, kind = _moment(rng), rng.choice(tuple(Order))
    number = f"{int(at_s * 1000) + 1_000_000:020d}-{rng.getrandbits(32):08x}"

    def act(stage: Stage) -> None:
        wall_ns = stage.place(rng.randrange(hosts)).wall_ns
        stage.bus.node.report(FleetOrder(number, kind, wall_ns + 60 * SECOND))

    faults.at(at_s, 0.0, f"operator orders {kind.value}", act)
    faults.words.append(f"operator orders {kind.value} at {at_s:.1f} s")
    faults.order = max(faults.order, number)


_WEIGHTS: Final = (
    (_kill, 4),
    (_stop, 4),
    (_cut_off, 4),
    (_cut_database, 4),
    (_bus_down, 3),
    (_bus_stalls, 2),
    (_bus_slow, 2),
    (_deleted, 2),
    (_failover, 3),
    (_clocks, 2),
    (_late, 2),
    (_dns, 1),
    (_applications, 1),
    (_foreign, 1),
    (_order, 1),
)
_KINDS: Final = [kind for kind, _ in _WEIGHTS]

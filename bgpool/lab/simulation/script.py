"""The events of one simulated switchover: drawn at random, in AWS's order, with faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bgpool.core.limits import GREEN_WAIT_S, OLD_BLUE_S
from bgpool.lab.simulation.clock import MS, SECOND
from bgpool.lab.simulation.world import CONNECT_TIMEOUT_NS, World

__all__ = ["UNHURRIED_MS", "Death", "Script", "draw"]

ZERO_NS: Final = 8 * SECOND
"""The beginning of IN_PROGRESS; enough time before it to become ready."""

UNHURRIED_MS: Final = 180_000

Note = Callable[[str], None]

#: The parameter bg_receipts, empty for no table; and, with a table, the servers that have it and its rows.
RECEIPTS: Final = ("", "switchover", "switchover", "always")
TABLES: Final = ("both",) * 6 + ("missing", "blue only", "not replicated")

GREENS: Final = ("physical",) * 4 + ("read-only",) * 4 + ("read-only by role", "takes writes")
MODES: Final = ("normal",) * 4 + ("frozen", "deleted", "empty", "absent", "error", "odd words")


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a monitor; the next begins *away_ns* later."""

    at_ns: int
    away_ns: int


@dataclass
class Script:
    """One switchover.

    Attributes:
        story: The description of the drawn events, in a line.
        rolled_back: True if blue remains the primary.
        hangs: True if the switchover never ends, and no server accepts clients again.
        may_fail: True if callers may see errors: the switchover outlasts their waits.
        evidence_ns: The time from which the monitor can know that green took over; None if it never can, or must not.
        release_bound_ns: The allowed delay of the release after that.
        end_ns: The end of the story, unless a step or a fault is later: see calm_ns.
        window: The time in which the metadata report the switchover, whatever they report later.
        unhurried: True if no timer ends anything.
        receipts: The parameter bg_receipts; empty for no table.
        table: The servers that have that table.
        mysql: True if the engine is MySQL; else it is PostgreSQL.
        green: The kind of green: a physical replica, or a logical one, which is read-only or accepts writes all the
            time.
        tasks: True if some units have ids from their callers, and are run again by other workers.
        deployed: True if there is a deployment.
        hang, same_lineage, loses_tail: The same as in World.
        own_ids: The number of transactions of its own that a logical green has had.
        old_blue: After the switchover it is ``there``, accepts clients ``late``, is ``restarted``, or ``gone``.
        network_cuts: The times at which workers' connections are lost, while servers and clients continue.
    """

    rng: random.Random
    mode: str = "normal"
    rolled_back: bool = False
    rollback_phase: str = ""
    hangs: bool = False
    timeout_ms: int = UNHURRIED_MS
    release_on_dns: bool = True
    zero_ns: int = ZERO_NS
    story: str = ""
    may_fail: bool = False
    evidence_ns: int | None = None
    release_bound_ns: int = 0
    end_ns: int = 0
    window: tuple[int, int] = (0, 0)
    unhurried: bool = True
    receipts: str = ""
    table: str = "both"
    mysql: bool = False
    green: str = "physical"
    tasks: bool = False
    deployed: bool = True
    hang: tuple[float, int, float] = (0.0, 0, 0.0)
    own_ids: int = 0
    same_lineage: bool = False
    loses_tail: bool = False
    old_blue: str = "there"
    network_cuts: list[int] = field(default_factory=list)
    monitor_deaths: list[Death] = field(default_factory=list)
    worker_starts: list[int] = field(default_factory=list)
    worker_deaths: list[int] = field(default_factory=list)
    steps: list[tuple[int, str, Callable[[World], object]]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True if receipts decide every outcome for which one is left."""
        return bool(self.receipts) and self.table == "both"

    @property
    def calm_ns(self) -> int:
        """The time from which no event happens, and no caller has a good reason to wait."""
        steps = (at_ns for at_ns, _, _ in self.steps)
        back = (death.at_ns + death.away_ns for death in self.monitor_deaths)
        return max(self.end_ns, *steps, *back, *self.network_cuts, *self.worker_starts, *self.worker_deaths)

    def prepare(self, world: World) -> None:
        """Prepare *world* according to the script."""
        blue, green = world.blue, world.green
        world.refuses_commits, world.logical = self.mysql, self.green != "physical"
        world.same_lineage, world.loses_tail, world.hang = self.same_lineage, self.loses_tail, self.hang
        world.old_blue_tells = self.old_blue != "gone"
        green.replica, green.read_only = not world.logical, self.green == "read-only"
        green.role_read_only = self.green == "read-only by role"
        green.subscribes = world.logical and not self.mysql
        if self.receipts and self.table != "missing":
            blue.receipts = {}
            green.receipts = None if self.table == "blue only" else {}
        world.receipts_reach = self.table == "both"
        # A logical replica's count begins at blue's, and is then its own.
        for _ in range(self.own_ids if world.logical else 0):
            green.give_id(None)

    def stage(self, world: World, note: Note) -> None:
        """Schedule the steps in *world*."""
        for at_ns, name, act in self.steps:
            world.clock.at(at_ns, _do, world, name, act, note)

    def at(self, seconds: float, name: str, act: Callable[[World], object]) -> None:
        """Schedule *act* *seconds* after IN_PROGRESS."""
        self.steps.append((self.zero_ns + int(seconds * SECOND), name, act))


def _do(world: World, name: str, act: Callable[[World], object], note: Note) -> None:
    note(name)
    act(world)


def draw(rng: random.Random) -> Script:
    """Return a script, drawn with *rng*."""
    script = Script(rng)
    script.mode = rng.choice(MODES)
    if rng.random() < 0.2:
        script.rolled_back = True
        script.rollback_phase = rng.choice(("PREPARATION", "IN_PROGRESS"))
    faults = [*_database(script), *_faults(script)]
    if rng.random() < 0.08:
        _failovers(script, faults)
        script.story = f"failovers; {', '.join(faults)}"
        return script
    if rng.random() < 0.25:
        at_ns = script.zero_ns + rng.randrange(-4 * SECOND, 8 * SECOND)
        away_ns = rng.randrange(300 * MS, 2 * SECOND if rng.random() < 0.8 else 5 * SECOND)
        script.monitor_deaths.append(Death(at_ns, away_ns))
        faults.append(f"monitor away for {away_ns / SECOND:.1f} s from {(at_ns - script.zero_ns) / SECOND:.1f} s")
    if rng.random() < 0.05:
        _hang(script)
    elif script.rolled_back:
        _rollback(script)
    else:
        _switchover(script, faults)
    if rng.random() < 0.3:
        script.worker_starts.append(script.zero_ns + rng.randrange(-3 * SECOND, 6 * SECOND))
        faults.append("a worker starts")
    if rng.random() < 0.15:
        script.worker_deaths.append(script.zero_ns + rng.randrange(-2 * SECOND, 6 * SECOND))
        faults.append("a worker is killed")
    what = f"rollback from {script.rollback_phase}" if script.rollback_phase else "switchover"
    script.story = f"{what}, metadata {script.mode}; {', '.join(faults) or 'no faults'}"
    return script


def _faults(script: Script) -> list[str]:
    """Draw faults of the surroundings; return a word for the story for each."""
    rng, found = script.rng, []
    script.at(-8.0, "set up", lambda world: world.publish("AVAILABLE") if script.deployed else None)
    if rng.random() < 0.2:
        latency_ns = rng.randrange(10 * MS, 60 * MS)
        script.at(rng.uniform(-3, 0), "slow", lambda world: _slow(world, latency_ns))
        found.append(f"servers {latency_ns // MS} ms slow")
    if rng.random() < 0.2:
        dns_latency_ns = rng.randrange(50 * MS, 400 * MS)
        script.at(-7.0, "slow dns", lambda world: _slow_dns(world, dns_latency_ns))
        found.append(f"DNS {dns_latency_ns // MS} ms slow")
    if rng.random() < 0.15:
        begin, end = sorted((rng.uniform(-3, 3), rng.uniform(0, 8)))
        script.at(begin, "dns fails", lambda world: _dns_works(world, False))
        script.at(end, "dns works", lambda world: _dns_works(world, True))
        found.append(f"DNS fails until {end:.1f} s")
    return found


def _database(script: Script) -> list[str]:
    """Draw the servers, and the means of units of work; return a word for the story for each."""
    rng = script.rng
    script.mysql = rng.random() < 0.35
    if script.mysql:
        script.green = rng.choice(("read-only",) * 4 + ("takes writes",))
    else:
        script.green = rng.choice(GREENS)
    script.own_ids = rng.choice((0, rng.randrange(0, 400)))
    script.same_lineage = rng.random() < 0.3
    script.loses_tail = rng.random() < 0.3
    script.receipts = rng.choice(RECEIPTS)
    # Physical replication, and that by a binary log, carry all tables.
    whole = script.mysql or script.green == "physical"
    script.table = rng.choice(TABLES if not whole else ("both", "both", "both", "missing"))
    script.tasks = script.sound and rng.random() < 0.6
    if rng.random() < 0.3:
        script.hang = (rng.choice((0.05, 0.3)), rng.randrange(20 * MS, 1500 * MS), rng.random())
    script.old_blue = rng.choice(("there", "there", "late", "restarted", "gone"))
    if rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            # Later cuts may be unrelated to the switchover, and a unit's caller receives these as errors.
            at_s = rng.uniform(1, 8) if rng.random() < 0.3 else rng.uniform(-4, 1)
            script.network_cuts.append(script.zero_ns + int(at_s * SECOND))
            script.may_fail = script.may_fail or at_s > 1
            _hold_commits(script, at_s)
    found = ["MySQL" if script.mysql else "PostgreSQL", f"green {script.green}"]
    if script.receipts:
        found.append(f"receipts {script.receipts} (table: {script.table})")
    found += ["tasks"] * script.tasks + ["COMMITs hang"] * bool(script.hang[0])
    if script.network_cuts:
        found.append(f"{len(script.network_cuts)} network cuts")
    return found


def _hold_commits(script: Script, at_s: float) -> None:
    """Draw COMMITs that are sent before *at_s* and take longer than that, so that they are cut; or none."""
    rng = script.rng
    if rng.random() < 0.85:
        held = (rng.choice((0.5, 1.0, 1.0)), rng.randrange(300 * MS, 2500 * MS), rng.choice((0.0, 0.5, 1.0)))
        script.at(at_s - rng.uniform(0.0, 0.6), "COMMITs held", lambda world: _hold(world, held))
        script.at(at_s + 0.2, "COMMITs not held", lambda world: _hold(world, script.hang))


def _failovers(script: Script, faults: list[str]) -> None:
    """Draw failovers of blue without a switchover, perhaps without a deployment."""
    rng = script.rng
    script.rolled_back, script.may_fail, script.mode = True, True, "normal"
    script.deployed = rng.random() < 0.5
    faults.append("deployed" if script.deployed else "no deployment")
    at_s = -5.0
    for _ in range(rng.randrange(1, 4)):
        at_s += rng.uniform(0.5, 4.0)
        _fail_over(script, at_s)
        at_s += 2.0
    script.end_ns = script.zero_ns + int((at_s + 3) * SECOND)


def _fail_over(script: Script, at_s: float) -> None:
    """End blue's server, which starts again, or whose standby takes over under the same name."""
    rng = script.rng
    moves = rng.random() < 0.5
    _hold_commits(script, at_s)
    script.at(at_s, "blue crashes", _crash)
    script.at(at_s + rng.uniform(0.1, 1.5), "blue is back", lambda world: _come_back(world, moves))


def _switchover(script: Script, faults: list[str]) -> None:
    rng = script.rng
    lead_s = rng.uniform(0.3, 5.0)
    stop_s = rng.uniform(0.05, 0.6)
    drop_s = stop_s + rng.uniform(0.0, 0.4)
    catch_up_s = drop_s + rng.uniform(0.02, 0.3)
    long = rng.random() < 0.1
    promoted_s = catch_up_s + (rng.uniform(8, 20) if long else rng.uniform(0.2, 4))
    if rng.random() < 0.1:
        script.timeout_ms = rng.randrange(2000, 8000)
        script.unhurried = False
        # The timer sends callers back by name, where a server must be.
        script.old_blue = "there"
        faults.append(f"times out after {script.timeout_ms} ms")
    open_s = promoted_s + rng.uniform(0.0, 0.2)
    old_open_s = promoted_s + (rng.uniform(3.0, 9.0) if script.old_blue == "late" else rng.uniform(0.0, 2.0))
    renamed_s = open_s + rng.uniform(0.3, 3)
    moved_s = open_s + rng.uniform(0.5, 6)
    gone_s = moved_s + rng.uniform(0.3, 3)
    # Not if the timer sends callers back by name, possibly to old blue: see docs/phases.md.
    blue_writes_again = rng.random() < 0.2 and script.unhurried and script.old_blue == "there"
    script.at(-lead_s, "INITIATED", lambda world: world.publish("SWITCHOVER_INITIATED"))
    script.at(0.0, "IN_PROGRESS", lambda world: world.publish("SWITCHOVER_IN_PROGRESS"))
    script.at(stop_s, "writes stopped", lambda world: _read_only(world))
    idle_survive = rng.random() < 0.2
    if idle_survive:
        faults.append("idle connections are not cut")
    _hold_commits(script, rng.choice((stop_s, drop_s, catch_up_s)))
    # With a logical green, AWS may accept clients all the time.
    early_s = _early(script, drop_s, open_s)
    if early_s is not None:
        faults.append(f"POST is reported {promoted_s - early_s:.1f} s before green takes writes")
        script.at(drop_s, "blue's connections dropped", _drop_blue)
    else:
        script.at(drop_s, "connections dropped", _refuse if idle_survive else _drop)
    script.at(catch_up_s, "caught up", _catch_up)
    _metadata(script, drop_s, open_s, early_s)
    script.at(promoted_s, "green promoted", _promote)
    unsubscribed_s = promoted_s - 0.01
    if script.green.startswith("read-only") and not script.mysql and rng.random() < 0.4:
        unsubscribed_s = promoted_s + rng.uniform(0.0, 3.0)
        faults.append(f"green follows blue for {unsubscribed_s - promoted_s:.1f} s more")
    script.at(unsubscribed_s, "subscription dropped", _unsubscribe)
    script.at(open_s, "green open", lambda world: _admit(world, "green"))
    if script.old_blue == "gone":
        script.at(old_open_s, "old blue is gone", _remove_blue)
    else:
        script.at(old_open_s, "old blue open", lambda world: _admit(world, "blue"))
    if script.old_blue == "restarted":
        again_s = old_open_s + rng.uniform(0.0, 1.0)
        script.at(again_s, "old blue restarts", _crash)
        script.at(again_s + rng.uniform(0.2, 3.0), "old blue open again", lambda world: _admit(world, "blue"))
    faults.append(f"old blue {script.old_blue}")
    script.at(renamed_s, "renamed", lambda world: _rename(world, script.mode == "normal"))
    script.at(moved_s, "blue DNS moved", _move_dns)
    script.at(gone_s, "green DNS gone", lambda world: world.dns.pop(world.green_name))
    if blue_writes_again:
        # It stays read-only until it is rebooted, or made writable.
        script.at(max(old_open_s, moved_s) + 3, "old blue takes writes", _writable)
    if script.mode in ("normal", "odd words"):
        script.at(gone_s + 0.1, "COMPLETED", lambda world: world.publish("SWITCHOVER_COMPLETED"))
    if blue_writes_again:
        faults.append("old blue takes writes again")
    script.evidence_ns = script.zero_ns + int(moved_s * SECOND)
    if early_s is None:
        _black_hole(script, faults, catch_up_s, promoted_s, old_open_s)
    locked = rng.choice(("", "", "", "blue", "green" if early_s is None else ""))
    if locked:
        script.at(-lead_s - 0.5, f"monitor locked out of {locked}", lambda world: _lock_out(world, locked))
        faults.append(f"monitor locked out of {locked}")
    # If nothing prevents it, green shows at once that it took over.
    if not locked and script.green != "takes writes":
        followed_s = min(unsubscribed_s, promoted_s + GREEN_WAIT_S)
        script.evidence_ns = script.zero_ns + int(max(open_s, followed_s) * SECOND)
    slow_ns = 6 * 60 * MS + 2 * 400 * MS
    script.release_bound_ns = 300 * MS + slow_ns + 2500 * MS + (1200 * MS if lead_s < 1.3 else 0)
    if any(fault.startswith("DNS fails") for fault in faults):
        script.release_bound_ns += 8 * SECOND
    script.end_ns = script.zero_ns + int((gone_s + 1) * SECOND)
    if script.old_blue == "gone":
        # Units whose COMMITs were cut query it all the same, and before that a connection attempt may time out.
        script.end_ns += int(OLD_BLUE_S * SECOND) + CONNECT_TIMEOUT_NS
    # The timer ends the hold by name: callers then receive blue's errors.
    script.may_fail = script.may_fail or not script.unhurried
    silent = script.mode not in ("normal", "odd words") or bool(locked)
    script.window = (script.zero_ns - int(lead_s * SECOND), script.zero_ns + int((drop_s + 0.2) * SECOND))
    if silent and (lead_s < 1.5 or _missed(script)):
        # Before a switchover is known, polls are a second apart. If its announcement passes between two of them, and
        # the metadata report nothing afterwards, a monitor cannot know of it before DNS changes.
        script.evidence_ns, script.may_fail, script.unhurried = None, True, False


def _hang(script: Script) -> None:
    """Begin a switchover that never ends."""
    rng = script.rng
    script.rolled_back, script.rollback_phase, script.hangs = True, "nowhere: it hangs", True
    script.timeout_ms = rng.randrange(2000, 8000)
    script.may_fail, script.unhurried = True, False
    script.at(-rng.uniform(0.3, 5.0), "INITIATED", lambda world: world.publish("SWITCHOVER_INITIATED"))
    script.at(0.0, "IN_PROGRESS", lambda world: world.publish("SWITCHOVER_IN_PROGRESS"))
    script.at(rng.uniform(0.05, 0.6), "connections dropped", _drop)
    script.end_ns = script.zero_ns + script.timeout_ms * MS + 8 * SECOND


def _missed(script: Script) -> bool:
    """Return whether no monitor was there for long enough to see the beginning of the switchover."""
    begin, end = script.window
    return any(death.at_ns < end and death.at_ns + death.away_ns > begin - SECOND for death in script.monitor_deaths)


def _rollback(script: Script) -> None:
    rng = script.rng
    lead_s = rng.uniform(2.5, 5.0)
    script.at(-lead_s, "INITIATED", lambda world: world.publish("SWITCHOVER_INITIATED"))
    if script.rollback_phase == "PREPARATION":
        back_s = -rng.uniform(0.1, 0.9)
    else:
        script.at(0.0, "IN_PROGRESS", lambda world: world.publish("SWITCHOVER_IN_PROGRESS"))
        stop_s = rng.uniform(0.05, 0.6)
        script.at(stop_s, "writes stopped", lambda world: _read_only(world))
        script.at(stop_s + 0.2, "connections dropped", _drop)
        _hold_commits(script, stop_s + 0.2)
        back_s = stop_s + rng.uniform(0.5, 5)
    script.at(back_s, "rolled back", _roll_back)
    script.end_ns = script.zero_ns + int((back_s + 4) * SECOND)


def _early(script: Script, drop_s: float, open_s: float) -> float | None:
    """Return the time at which the metadata report POST before green accepts writes; None if they do not."""
    # Later than a monitor needs to reconnect to a green that has cut it, and to get an answer.
    first_s = drop_s + 1.0
    hurried = script.timeout_ms < UNHURRIED_MS
    if script.mode != "normal" or hurried or not script.green.startswith("read-only") or first_s >= open_s - 0.2:
        return None
    return script.rng.uniform(max(first_s, open_s - 4), open_s - 0.2) if script.rng.random() < 0.5 else None


def _metadata(script: Script, drop_s: float, open_s: float, early_s: float | None) -> None:
    """Draw the metadata after the cut of connections."""
    rng, mode = script.rng, script.mode
    if mode in ("normal", "odd words"):
        if mode == "odd words":
            script.at(drop_s, "odd status", lambda world: world.publish("SWITCHOVER_BEING_CONSIDERED"))
            script.at(drop_s + 0.05, "odd version", lambda world: world.publish("SWITCHOVER_IN_PROGRESS", version="2"))
        if early_s is not None:
            script.at(early_s, "POST, early", _tell_early)
            return
        script.at(open_s + rng.uniform(0, 0.5), "POST", lambda world: world.publish("SWITCHOVER_IN_POST_PROCESSING"))
        return
    at_s = drop_s + rng.uniform(-0.05, 0.3)
    if mode == "frozen":
        script.at(at_s, "frozen", lambda world: world.publish("", world.green, mode="empty"))
    else:
        shown = "empty" if mode == "deleted" else mode
        script.at(at_s, mode, lambda world: world.publish("", mode=shown))


def _black_hole(script: Script, faults: list[str], catch_up_s: float, promoted_s: float, old_open_s: float) -> None:
    which = script.rng.choice(("", "", "", "", "blue", "green"))
    if which == "blue":
        script.at(catch_up_s + 0.01, "blue frozen", lambda world: _freeze(world, "blue"))
        script.at(old_open_s, "blue thawed", lambda world: world.blue.thaw())
        faults.append("blue is a black hole")
    elif which == "green":
        script.at(catch_up_s + 0.01, "green frozen", lambda world: _freeze(world, "green"))
        script.at(promoted_s - 0.01, "green thawed", lambda world: world.green.thaw())
        faults.append("green is a black hole")


# -- actions of steps ---------------------------------------------------------------------------------------------


def _crash(world: World) -> None:
    world.blue.refuses = True
    world.blue.crash()


def _come_back(world: World, moves: bool) -> None:
    world.blue.refuses = False
    if moves:
        world.blue.address = f"10.0.1.{world.clock.now // SECOND % 200 + 1}"
        world.dns[world.blue_name] = world.blue.address


def _remove_blue(world: World) -> None:
    world.blue.cut()
    world.blue.gone = world.blue.refuses = True


def _hold(world: World, hang: tuple[float, int, float]) -> None:
    world.hang = hang


def _slow(world: World, latency_ns: int) -> None:
    world.blue.latency_ns = world.green.latency_ns = latency_ns


def _slow_dns(world: World, latency_ns: int) -> None:
    world.dns_latency_ns = latency_ns


def _dns_works(world: World, works: bool) -> None:
    world.dns_works = works


def _read_only(world: World) -> None:
    world.blue.read_only = True


def _refuse(world: World) -> None:
    for server in (world.blue, world.green):
        server.refuses = True


def _drop(world: World) -> None:
    _refuse(world)
    for server in (world.blue, world.green):
        server.cut()


def _drop_blue(world: World) -> None:
    world.blue.refuses = True
    for server in (world.blue, world.green):
        server.cut()


def _tell_early(world: World) -> None:
    world.told_early_ns = world.clock.now
    world.publish("SWITCHOVER_IN_POST_PROCESSING")


def _catch_up(world: World) -> None:
    world.catch_up()


def _promote(world: World) -> None:
    world.green.replica = world.green.read_only = world.green.role_read_only = False
    world.promoted = True


def _unsubscribe(world: World) -> None:
    world.green.subscribes = False


def _admit(world: World, which: str) -> None:
    (world.blue if which == "blue" else world.green).refuses = False


def _writable(world: World) -> None:
    world.blue.read_only = False


def _rename(world: World, tell: bool) -> None:
    world.renamed = True
    if tell and world.green.metadata == "rows":
        world.publish("SWITCHOVER_IN_POST_PROCESSING")


def _move_dns(world: World) -> None:
    world.dns[world.blue_name] = world.green.address
    world.dns[world.old_name] = world.blue.address


def _freeze(world: World, which: str) -> None:
    (world.blue if which == "blue" else world.green).frozen = True


def _lock_out(world: World, which: str) -> None:
    server = world.blue if which == "blue" else world.green
    server.refuses_monitor = True


def _roll_back(world: World) -> None:
    world.blue.read_only = False
    world.blue.refuses = world.green.refuses = False
    world.publish("AVAILABLE")

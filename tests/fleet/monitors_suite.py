"""Real monitors on a real bus, in front of a pair that is asked by one of them: who asks, and what ends that."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from redis.exceptions import ResponseError

from bgpool.core.events import Answered, MetadataAbsent, Order
from bgpool.core.fleet import NEVER, FleetOrder, FleetRole, Message, Reading, Report
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import parse
from bgpool.fleet import messages
from bgpool.fleet.bus import Entry
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.messages import BadMessage, seal, seal_report, unseal, unseal_report
from bgpool.fleet.streams import StreamBus
from bgpool.lab import Director, Pair
from bgpool.lab.director import Schedule
from bgpool.lab.errors import LabError
from bgpool.lab.redis import RedisServer
from bgpool.lab.waiting import wait_until as wait_until_true
from bgpool.monitor import election
from bgpool.monitor import fleet as monitor_fleet
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import Monitor
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.writer import Writer, first_snapshot
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FULL = pytest.mark.full

KEY = "a key of thirty-two bytes at least"
OTHER_KEY = "another key of thirty-two bytes at least"
STREAM, HOSTS = "bgpool:{ledger}", "bgpool:{ledger}:hosts"


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    wait_until_true(condition, timeout_s=timeout_s, what=what)


class Host:
    """A monitor in threads of its own, with a run directory of its own."""

    def __init__(self, pair: Pair, redis: RedisServer, directory: Path, **options: Any) -> None:
        given = {
            "bg_id": "ledger",
            "bg_fleet": redis.url(),
            "bg_fleet_key": KEY,
            "bg_resolver": pair.resolver,
            "bg_interval_baseline_ms": 1000,
            **options,
        }
        place, settings, _ = parse(pair.dsn, given)
        self.config = MonitorConfig.of(place, settings, directory)
        self._begin()

    def _begin(self) -> None:
        files = RunFiles.of(Path(self.config.run_dir), self.config.bg_id)
        prepare_run_dir(files.directory)
        tenure = election.claim(files)
        assert tenure is not None
        self._tenure = tenure
        writer = Writer(files, tenure.term, first_snapshot(self.config.bg_id))
        self.monitor = Monitor(self.config, None, files, writer, writer.snapshot)
        self._thread = threading.Thread(target=self.monitor.run, args=(None,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.monitor.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        # What ends with the process of a real one.
        for probe in self.monitor._probes.values():
            probe.assign(None, interval_ms=1000, retry_ms=1000)
        self._tenure.lock.release()

    def again(self, **fleet: Any) -> None:
        """Stop it, and start it again, as with a new version or new parameters."""
        self.stop()
        assert self.config.fleet is not None
        self.config = replace(self.config, fleet=replace(self.config.fleet, **fleet))
        self._begin()

    @property
    def snapshot(self) -> Snapshot:
        return self.monitor._snapshot

    @property
    def standing(self) -> FleetRole:
        view = self.snapshot.fleet
        assert view is not None
        return view.standing

    @property
    def fallbacks(self) -> int:
        view = self.snapshot.fleet
        assert view is not None
        return view.fallbacks


class Fleet:
    """Some hosts, one pair and one bus."""

    def __init__(self, pair: Pair, redis: RedisServer, directory: Path) -> None:
        self.pair, self.redis, self._directory = pair, redis, directory
        self.hosts: list[Host] = []

    def add(self, count: int = 1, **options: Any) -> list[Host]:
        new = []
        for _ in range(count):
            new.append(Host(self.pair, self.redis, self._directory / str(len(self.hosts)), **options))
            self.hosts.append(new[-1])
        return new

    def settle(self) -> None:
        """Wait until one leads and the others follow, and only it is connected to the pair."""
        try:
            wait_until(self.is_settled, PATIENCE_S, "a leader that all hosts follow")
        except LabError as error:
            found = [(host.snapshot.phase.name, host.snapshot.ready, host.snapshot.fleet) for host in self.hosts]
            raise AssertionError(f"{self.pair.monitoring_connections()} connections, {found}") from error

    def is_settled(self) -> bool:
        ready = all(host.snapshot.ready for host in self.hosts)
        standings = sorted(host.standing.value for host in self.hosts)
        settled = standings == ["follower"] * (len(self.hosts) - 1) + ["leader"]
        return ready and settled and self.pair.monitoring_connections() <= 2

    @property
    def leader(self) -> Host:
        return next(host for host in self.hosts if host.standing is FleetRole.LEADER)

    @property
    def followers(self) -> list[Host]:
        return [host for host in self.hosts if host.standing is FleetRole.FOLLOWER]

    def bus(self) -> StreamBus:
        return StreamBus(FleetConfig(self.redis.url(), (KEY.encode(),)), "ledger")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as made:
        Director(made).create_deployment()
        yield made


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def fleet(pair: Pair, redis: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    redis.execute("FLUSHALL")
    fleet = Fleet(pair, redis, tmp_path)
    yield fleet
    for host in fleet.hosts:
        host.stop()


def same_for(seconds: float, condition: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert condition()
        time.sleep(0.05)


def test_one_host_asks_for_all_and_its_successor_goes_on(fleet: Fleet) -> None:
    fleet.add(4)
    fleet.settle()
    assert {host.snapshot.phase for host in fleet.hosts} == {Phase.CREATED}
    wait_until(
        lambda: all(host.snapshot.fleet and host.snapshot.fleet.hosts == 4 for host in fleet.hosts),
        PATIENCE_S,
        "4 hosts",
    )
    leader = fleet.leader
    leader.stop()
    fleet.hosts.remove(leader)
    fleet.settle()
    # No host needed to fall back: a successor queries before the others do.
    assert [host.fallbacks for host in fleet.hosts] == [0, 0, 0]


@pytest.mark.parametrize(
    "fault",
    ["killed", "deleted", *(pytest.param(f, marks=FULL) for f in ("flushed", "another type", "full", "replica"))],
)
def test_a_bus_that_fails_makes_hosts_ask_and_a_bus_that_works_ends_it(fleet: Fleet, fault: str) -> None:
    fleet.add(3)
    fleet.settle()
    redis = fleet.redis
    if fault in ("flushed", "deleted"):
        redis.execute(*(("FLUSHALL",) if fault == "flushed" else ("DEL", STREAM)))
        time.sleep(0.6)
        fleet.settle()
        assert [host.fallbacks for host in fleet.hosts] == [0, 0, 0]
        return
    undo: tuple[str, ...] = ()
    if fault == "killed":
        redis.kill()
    elif fault == "another type":
        redis.execute("DEL", STREAM)
        redis.execute("SET", STREAM, "somebody else's")
        undo = ("DEL", STREAM)
    elif fault == "full":
        redis.execute("CONFIG", "SET", "maxmemory", "1")
        undo = ("CONFIG", "SET", "maxmemory", "0")
    else:
        redis.execute("REPLICAOF", "127.0.0.1", "1")
        undo = ("REPLICAOF", "NO", "ONE")
    wait_until(lambda: all(host.standing is FleetRole.DIRECT for host in fleet.hosts), PATIENCE_S, "all hosts direct")
    assert all(host.snapshot.fleet and host.snapshot.fleet.reason for host in fleet.hosts)
    wait_until(lambda: fleet.pair.monitoring_connections() == 6, PATIENCE_S, "two connections of each")
    assert {host.snapshot.phase for host in fleet.hosts} == {Phase.CREATED}
    if fault == "killed":
        redis.start()
    else:
        redis.execute(*undo)
    fleet.settle()


def test_a_leader_whose_reports_cannot_be_read_leads_all_the_same(fleet: Fleet) -> None:
    fleet.add(3)
    fleet.settle()
    leader = fleet.leader
    fleet.redis.execute("DEL", HOSTS)
    fleet.redis.execute("SET", HOSTS, "somebody else's")
    same_for(5.0, lambda: leader.standing is FleetRole.LEADER)
    assert [host.fallbacks for host in fleet.hosts] == [0, 0, 0]
    fleet.redis.execute("DEL", HOSTS)
    bus = fleet.bus()
    order = FleetOrder(f"{time.time_ns():020d}-0", Order.HOLD, time.time_ns() + 60_000_000_000)
    bus.report(seal_report(order, "ledger", (KEY.encode(),)))
    wait_until(functools.partial(all_held, fleet, True), PATIENCE_S, "an order is heard again")


def test_a_bus_that_refuses_what_is_written_is_not_stormed(fleet: Fleet) -> None:
    fleet.add(2)
    fleet.settle()
    redis = fleet.redis
    redis.execute("CONFIG", "RESETSTAT")
    began = time.monotonic()
    redis.execute("CONFIG", "SET", "maxmemory", "1")
    try:
        wait_until(
            lambda: all(host.standing is FleetRole.DIRECT for host in fleet.hosts), PATIENCE_S, "all hosts direct"
        )
        found = re.search(rb"cmdstat_xadd:.*rejected_calls=(\d+)", redis.execute("INFO", "commandstats"))
        assert found is not None
        # The number that two hosts receive each second.
        assert int(found[1]) < 20 * (2 + time.monotonic() - began)
    finally:
        redis.execute("CONFIG", "SET", "maxmemory", "0")


def test_a_nudge_is_passed_on_once_and_its_copies_are_not(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add(2)
    fleet.settle()
    leader, (follower,) = fleet.leader, fleet.followers
    bus = fleet.bus()
    nudges: list[float] = []
    monkeypatch.setattr(leader.monitor, "_nudge", lambda: nudges.append(time.monotonic()))
    fleet_of_follower = follower.monitor._fleet
    assert isinstance(fleet_of_follower, monitor_fleet.FleetMembership)
    fleet_of_follower._publisher.nudge()
    wait_until(lambda: bool(nudges), PATIENCE_S, "the leader is nudged")
    payload = next(
        entry.payload for entry in bus.reports(50) if isinstance(one := told(entry.payload), Report) and one.nudged
    )
    for _ in range(50):
        fleet.redis.execute("XADD", HOSTS, "*", "m", payload)
    time.sleep(1.0)
    assert len(nudges) == 1


def test_monitors_that_begin_on_an_old_stream_complain_of_no_clock(fleet: Fleet) -> None:
    fleet.add(2)
    fleet.settle()
    for host in fleet.hosts:
        host.stop()
    time.sleep(3.5)
    for host in fleet.hosts:
        host._begin()
    fleet.settle()
    notices = [notice.event for host in fleet.hosts for notice in host.snapshot.notices]
    assert "fleet_joined" in notices
    assert "fleet_clocks_differ" not in notices


def test_an_unforeseen_error_is_logged_once_and_ends_no_monitor(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, own_log: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    fleet.add(2)
    fleet.settle()
    with monkeypatch.context() as patched:
        patched.setattr("bgpool.monitor.subscriber.unseal", fail)
        patched.setattr("bgpool.monitor.publisher.seal", fail)
        wait_until(
            lambda: all(host.standing is FleetRole.DIRECT for host in fleet.hosts), PATIENCE_S, "all hosts direct"
        )
        time.sleep(2.0)
    fleet.settle()
    # By the ear and by the voice of each host.
    assert 1 <= sum(vars(record).get("event") == "fleet_bus_error" for record in own_log.records) <= 4


def test_foreign_entries_only_change_a_counter(fleet: Fleet) -> None:
    fleet.add(3)
    fleet.settle()
    bus, key = fleet.bus(), KEY.encode()
    before = {id(host): host.snapshot for host in fleet.hosts}
    top = bus.top()
    assert top is not None
    gone = tuple(
        Reading((Answered(NEVER, role, True), MetadataAbsent(NEVER, role, "")), time.time_ns()) for role in Role
    )
    evil = Message(top.term, 0, "ee" * 8, time.time_ns(), "", 1, 0, (time.time_ns(),) * 2, gone)
    for place in range(1, 60):
        # With ids between those that the leader uses next: the stream, or every host, refuses each of them.
        message = replace(evil, seq=top.seq + place, whole=top.seq + place)
        sealed = seal(message, "ledger", (OTHER_KEY.encode(),))
        payload = [sealed, sealed[:40], sealed[32:], top.payload, b"", seal(message, "other", (key,))][place % 6]
        fleet.redis.execute("XADD", HOSTS, "*", "m", payload)
        if place == 1:
            add_at_the_top(fleet, bus, payload)
    time.sleep(2.5)
    fleet.settle()
    assert [host.fallbacks for host in fleet.hosts] == [0, 0, 0]
    for host in fleet.hosts:
        assert replace(host.snapshot, fleet=None, notices=()) == replace(before[id(host)], fleet=None, notices=())

    def all_say_so() -> bool:
        refused = {
            report.member: report.refused
            for entry in reversed(bus.reports(500))
            if isinstance(report := told(entry.payload), Report)
        }
        return all(count > 0 for count in refused.values())

    # Hosts report every five seconds, and not because something was refused.
    wait_until(all_say_so, PATIENCE_S, "all hosts report that they have refused something")


def test_a_report_that_is_refused_is_counted_once_however_often_it_is_read(fleet: Fleet) -> None:
    fleet.add(2)
    fleet.settle()
    leader = fleet.leader
    members = leader.monitor._fleet
    assert isinstance(members, monitor_fleet.FleetMembership)
    refused = members._subscriber.refused
    for _ in range(5):
        fleet.redis.execute("XADD", HOSTS, "*", "m", b"not ours")
    wait_until(lambda: refused.total() == 5, PATIENCE_S, "the leader has read all of them")
    # The leader reads the reports from the beginning again when its connection is lost.
    fleet.redis.execute("CLIENT", "KILL", "TYPE", "normal")
    fleet.redis.execute("XADD", HOSTS, "*", "m", b"not ours")
    wait_until(lambda: refused.total() >= 6, PATIENCE_S, "it reads them again")
    time.sleep(0.5)
    assert refused.total() == 6


def add_at_the_top(fleet: Fleet, bus: StreamBus, payload: bytes) -> None:
    """Be quicker than the leader, which takes the same place every half second."""
    for _ in range(20):
        top = bus.top()
        assert top is not None
        with contextlib.suppress(ResponseError):
            fleet.redis.execute("XADD", STREAM, f"{top.term}-{top.seq + 1}", "m", payload)
            return
    pytest.fail("the leader was always quicker")


def told(payload: bytes) -> Report | FleetOrder | None:
    try:
        return unseal_report(payload, "ledger", (KEY.encode(),))
    except BadMessage:
        return None


def test_a_change_of_key_is_gone_through_without_a_fallback(fleet: Fleet) -> None:
    fleet.add(3)
    fleet.settle()
    old, new = KEY.encode(), OTHER_KEY.encode()
    for keys in ((old, new), (new, old), (new,)):
        for host in list(fleet.hosts):
            host.again(keys=keys)
            fleet.settle()
            assert all(host.fallbacks == 0 for host in fleet.hosts)


def test_a_newer_version_that_says_more_is_understood(fleet: Fleet) -> None:
    """A rolling upgrade: what a leader of a newer version adds is passed over."""
    fleet.add(2)
    fleet.settle()
    leader = fleet.leader
    leader.stop()
    fleet.hosts.remove(leader)
    fleet.settle()
    (host,) = fleet.hosts
    bus = fleet.bus()
    top = bus.top()
    assert top is not None
    message = unseal(top, "ledger", (KEY.encode(),))
    term = top.term + 1
    body = {
        "l": b"\xab" * 8,
        "t": time.time_ns(),
        "a": message.application,
        "n": 2,
        "w": 0,
        "r": (time.time_ns(), 0),
        "f": [[["A", 0, 100], ["M", "x"]], [["Q", 1]]],
        "new": {"a": [1, 2, 3]},
    }
    signed = bytes([messages.FORMAT]) + msgpack.packb(body)
    mac = messages._mac(KEY.encode(), messages._MESSAGE, "ledger", messages._id(term, 0), signed)
    heard = unseal(Entry(term, 0, mac + signed), "ledger", (KEY.encode(),))
    assert heard.readings[1] is None
    bus.publish(term, 0, mac + signed)
    wait_until(lambda: host.standing is FleetRole.FOLLOWER, PATIENCE_S, "the new leader is followed")
    fleet.settle()


def test_an_order_reaches_all_hosts(fleet: Fleet) -> None:
    fleet.add(3)
    fleet.settle()
    bus = fleet.bus()
    for count, order in enumerate((Order.HOLD, Order.RELEASE)):
        number = f"{time.time_ns():020d}-{count}"
        fleet_order = FleetOrder(number, order, time.time_ns() + 60_000_000_000)
        bus.report(seal_report(fleet_order, "ledger", (KEY.encode(),)))
        wait_until(functools.partial(all_held, fleet, order is Order.HOLD), PATIENCE_S, f"{order.value} everywhere")
        wait_until(functools.partial(have_taken, bus, number, 3), PATIENCE_S, f"reports of {order.value}")


def all_held(fleet: Fleet, held: bool) -> bool:
    return all(bool(host.snapshot.hold_until_ns) is held for host in fleet.hosts)


def have_taken(bus: StreamBus, number: str, count: int) -> bool:
    reports = [told(entry.payload) for entry in bus.reports(100)]
    return len({one.place for one in reports if isinstance(one, Report) and one.order == number}) == count


def test_hosts_of_another_application_follow_too_and_ask_what_is_theirs(fleet: Fleet) -> None:
    fleet.add(2)
    (other,) = fleet.add()
    other.stop()
    other.config = replace(other.config, app_user="reports")
    other._begin()
    fleet.settle()


@FULL
def test_a_whole_switchover(redis: RedisServer, tmp_path: Path) -> None:
    redis.execute("FLUSHALL")
    with Pair() as pair:
        director = Director(pair, Schedule(scale=0.7))
        director.create_deployment()
        fleet = Fleet(pair, redis, tmp_path)
        try:
            fleet.add(5)
            fleet.settle()
            director.run()
            wait_until(
                lambda: all(host.snapshot.phase is Phase.COMPLETED for host in fleet.hosts), PATIENCE_S, "the end"
            )
            fleet.settle()
        finally:
            for host in fleet.hosts:
                host.stop()
        for name in ("IN_PROGRESS", "POST"):
            at_ns = [entry.wall_ns for host in fleet.hosts for entry in host.snapshot.timeline if entry.event == name]
            assert len(at_ns) == 5
            assert max(at_ns) - min(at_ns) < 0.5e9
        assert [host.fallbacks for host in fleet.hosts] == [0] * 5
        heard = [any(e.event == "Heard from the fleet" for e in host.snapshot.timeline) for host in fleet.hosts]
        assert sum(heard) >= 4

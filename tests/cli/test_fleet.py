"""``bgpool fleet`` on a real bus, with hosts that say what the test has them say."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing

from bgpool.cli import fleet as fleet_command
from bgpool.cli.app import app
from bgpool.core.events import Order
from bgpool.core.fleet import FleetOrder, FleetRole, Message, Report
from bgpool.core.limits import FLEET_MISSING, FLEET_REPORT_LIFE_S, FLEET_TEXT_CHARS
from bgpool.core.phase import Phase
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.messages import seal, seal_report, unseal_report
from bgpool.fleet.streams import StreamBus
from bgpool.lab.redis import RedisServer

pytestmark = pytest.mark.lab

KEY, OTHER = "k" * 32, "o" * 32
TERM = 1_800_000_000
S = 1_000_000_000


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """An empty bus, which the environment names."""
    shared_server.execute("FLUSHALL")
    monkeypatch.setenv("BGPOOL_FLEET", shared_server.url())
    monkeypatch.setenv("BGPOOL_FLEET_KEY", KEY)
    return shared_server


class Hosts:
    """Hosts that report twice a second. The first one leads. All of them accept orders, except the deaf ones.

    Attributes:
        reports: The reports, by host name.
        deaf: The names of hosts that accept no orders.
        leads: True if there is a leader.
        clock_off_s: The time by which all their clocks are ahead of the test's.
    """

    def __init__(self, url: str, count: int, key: str = KEY) -> None:
        self.bus = StreamBus(FleetConfig(url, keys=(key.encode(),)), "ledger")
        self.keys = (key.encode(),)
        self.reports = {f"web-{number}": report(number) for number in range(1, count + 1)}
        self.deaf: set[str] = set()
        self.leads = True
        self.clock_off_s = 0.0
        self.orders: list[FleetOrder] = []
        self._ended = threading.Event()
        # A bus is for one thread, and the test writes as well.
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._seq = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Hosts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self.bus.close()

    @property
    def now_ns(self) -> int:
        return time.time_ns() + int(self.clock_off_s * S)

    def report(self, told: Report | FleetOrder) -> None:
        if isinstance(told, Report):
            told = replace(told, issued_ns=self.now_ns)
        self.repeat(seal_report(told, "ledger", self.keys))

    def repeat(self, payload: bytes) -> None:
        with self._lock:
            self.bus.report(payload)

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            self._step(report=self._seq % 5 == 0)

    def settle(self) -> None:
        """Have all of them report, and the leader speak, just now."""
        self._step(report=True)

    def _step(self, *, report: bool) -> None:
        with self._stepping:
            self._take_orders()
            if report:
                for one in list(self.reports.values()):
                    self.report(one)
            if self.leads:
                with self._lock:
                    self.bus.publish(TERM, self._seq, seal(self.message(), "ledger", self.keys))
            self._seq += 1

    def message(self) -> Message:
        return Message(TERM, self._seq, member(1), self.now_ns, "app", len(self.reports), 2**32, (0, 0))

    def _take_orders(self) -> None:
        with self._lock:
            entries = self.bus.reports(100)
        kept = [unseal_report(entry.payload, "ledger", self.keys) for entry in entries]
        self.orders = [told for told in kept if isinstance(told, FleetOrder)]
        if not self.orders:
            return
        newest = max(self.orders, key=lambda order: order.number)
        for name, one in self.reports.items():
            if name not in self.deaf and one.order != newest.number:
                self.reports[name] = replace(one, order=newest.number)
                self.report(self.reports[name])


def member(number: int) -> str:
    return f"{number:016x}"


def report(number: int, **more: Any) -> Report:
    standing = FleetRole.LEADER if number == 1 else FleetRole.FOLLOWER
    told = Report(
        member(number), f"web-{number}", member(100 + number), "0.9.0", 0, "app", Phase.CREATED, (), 4, 0, standing
    )
    return replace(told, **more)


def run(*words: str, **more: Any) -> tuple[int, str]:
    """The exit status of a command, and everything that it says, without what fills its lines."""
    # As into a pipe: what runs the tests may say how wide its terminal is.
    runner = typer.testing.CliRunner(env={"COLUMNS": None})
    done = runner.invoke(app, ["fleet", *words], **more)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert KEY not in done.output
    return done.exit_code, re.sub(" +\n", "\n", done.output)


def ready(*more: str) -> tuple[int, str]:
    return run("status", "--bg-id", "ledger", "--ready", *more)


def as_json() -> dict[str, Any]:
    return dict(json.loads(run("status", "--bg-id", "ledger", "--json")[1]))


# -- status -------------------------------------------------------------------------------------------------------


def test_all_hosts_are_ready(server: RedisServer) -> None:
    with Hosts(server.url(), 3) as hosts:
        hosts.settle()
        assert ready() == (0, "fleet 'ledger' is ready for a switchover: 3 hosts, 12 workers\n")
        assert ready("--hosts", "3")[0] == 0
        status, text = ready("--hosts", "4")
        assert (status, text) == (1, "fleet 'ledger': 3 hosts reported within 16 s; 4 are expected\n")
        status, text = run("status", "--bg-id", "LEDGER")
        assert status == 0
        assert text.startswith("ledger  ready for a switchover\nbus        127.0.")
        assert f"leader     web-1 ({member(1)}), counts 3 hosts, term {TERM}, heard " in text
        assert [line.split()[:5] for line in text.splitlines()[-3:]] == [
            ["web-1", "0.9.0", "CREATED", "yes", "leader"],
            ["web-2", "0.9.0", "CREATED", "yes", "follower"],
            ["web-3", "0.9.0", "CREATED", "yes", "follower"],
        ]


def test_each_host_that_is_not_ready_says_why(server: RedisServer) -> None:
    with Hosts(server.url(), 4) as hosts:
        hosts.reports["web-2"] = report(2, missing=("the login of 1 of 4 workers does not work on green", "another"))
        hosts.reports["web-3"] = report(3, phase=Phase.POST)
        hosts.reports["web-4"] = report(
            4, standing=FleetRole.DIRECT, clock_off_ms=-4200, version="0.8.0", held=3, refused=7, fallbacks=2
        )
        hosts.settle()
        assert ready() == (
            1,
            "fleet 'ledger': web-2 is not ready: the login of 1 of 4 workers does not work on green\n"
            "fleet 'ledger': web-2 is not ready: another\n"
            "fleet 'ledger': web-3 is not ready: its phase is POST\n"
            "fleet 'ledger': note: direct, asking the database itself: 1 of 4 hosts: web-4\n"
            "fleet 'ledger': note: the clocks of 1 of 4 hosts differ from the leader's by more than 1 s: web-4\n"
            "fleet 'ledger': note: the hosts have different versions: 0.8.0 (1), 0.9.0 (3); upgrade before a "
            "switchover, not during one\n",
        )
        text = run("status", "--bg-id", "ledger")[1]
        assert "ledger  not ready\n" in text
        assert "missing    web-2: the login of 1 of 4 workers does not work on green\n           web-2: another" in text
        assert text.splitlines()[-1].split()[:10] == [
            "web-4", "0.8.0", "CREATED", "yes", "direct", "4", "3", "-4.2", "s", "2",
        ]  # fmt: skip
        told = as_json()
        assert (told["ready"], told["leader"]["host"], told["leader"]["hosts"]) == (False, "web-1", 4)
        one = told["hosts"][3]
        assert (one["host"], one["ready"], one["standing"], one["refused"]) == ("web-4", True, "direct", 7)
        assert told["hosts"][2]["missing"] == ["its phase is POST"]


def test_hosts_that_are_gone(server: RedisServer) -> None:
    """One that has left is no host any more; one that has fallen silent is named."""
    with Hosts(server.url(), 1) as hosts:
        long_ago = int((time.time() - FLEET_REPORT_LIFE_S - 10) * 1000)
        silent = seal_report(report(8), "ledger", hosts.keys)
        server.execute("DEL", "bgpool:{ledger}:hosts")
        server.execute("XADD", "bgpool:{ledger}:hosts", f"{long_ago}-0", "m", silent)
        hosts.report(report(9))
        hosts.settle()
        assert "web-9" in {host["host"] for host in as_json()["hosts"]}
        hosts.report(report(9, leaves=True))
        # A nudge is no news of its host.
        hosts.report(report(7, nudged=True))
        status, text = ready()
        assert status == 0
        assert "ready for a switchover: 1 host, 4 workers\n" in text
        assert "note: no report for 2" in text
        assert " s or longer, and no farewell, from 1 host: web-8\n" in text


def test_a_thousand_hosts_with_much_to_say(server: RedisServer) -> None:
    """The kept reports are larger than the limit of one read."""
    with Hosts(server.url(), 1) as hosts:
        why = ("x" * (FLEET_TEXT_CHARS - 10),) * FLEET_MISSING
        for _ in range(8):
            for number in range(1, 1001):
                told = report(number, issued_ns=hosts.now_ns, missing=why)
                hosts.repeat(seal_report(told, "ledger", hosts.keys))
        hosts.settle()
        told_of = as_json()
        assert len(told_of["hosts"]) == 1000
        # The one that reports all the while.
        assert [host["host"] for host in told_of["hosts"] if host["ready"]] == ["web-1"]


def test_hosts_of_one_name_are_told_apart(server: RedisServer) -> None:
    """The next monitor of a host is the same host; another host of that name is not."""
    with Hosts(server.url(), 1) as hosts:
        hosts.report(report(2, host="pod", member=member(50)))
        hosts.report(report(2, host="pod", member=member(51)))
        hosts.report(report(3, host="pod"))
        hosts.settle()
        text = run("status", "--bg-id", "ledger")[1]
        places = [report(number).place[:6] for number in (2, 3)]
        assert [line.split("  ")[0].split(" 0.9.0")[0] for line in text.splitlines() if line.startswith("pod")] == [
            f"pod ({places[0]})", f"pod ({places[1]})",
        ]  # fmt: skip


def test_what_was_said_before(server: RedisServer) -> None:
    """A client that may write to the bus can repeat signed reports: they make no host ready, and keep none alive."""
    with Hosts(server.url(), 1) as hosts:
        long_ago = int((time.time() - FLEET_REPORT_LIFE_S - 10) * 1000)
        was_ready, said_last, is_dead = (
            seal_report(told, "ledger", hosts.keys)
            for told in (
                report(2, issued_ns=hosts.now_ns - 20 * S),
                report(2, issued_ns=hosts.now_ns - S, missing=("no worker",)),
                report(3, issued_ns=hosts.now_ns - 30 * S),
            )
        )
        server.execute("DEL", "bgpool:{ledger}:hosts")
        server.execute("XADD", "bgpool:{ledger}:hosts", f"{long_ago}-0", "m", is_dead)
        for payload in (was_ready, said_last, was_ready, is_dead):
            hosts.repeat(payload)
        hosts.settle()
        status, text = ready()
        assert (status, "web-2 is not ready: no worker" in text) == (1, True)
        assert "and no farewell, from 1 host: web-3" in text


@pytest.mark.usefixtures("server")
def test_a_fleet_without_hosts() -> None:
    status, text = ready()
    assert (status, text) == (1, "fleet 'ledger': no host reported within 16 s\n")
    # Nor is there anything to look at.
    assert run("status", "--bg-id", "ledger", "--json")[0] == 1


def test_a_fleet_without_a_leader(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports alone may be old: nothing tells what the time is where they come from."""
    monkeypatch.setattr(fleet_command, "ORDER_WAIT_S", 2.0)
    with Hosts(server.url(), 2) as hosts:
        hosts.leads = False
        hosts.settle()
        status, text = ready()
        assert status == 1
        assert text.startswith("fleet 'ledger': there is no leader: no message arrived for 1.5 s")
        assert as_json()["leader"] is None
        status, text = run("hold", "--bg-id", "ledger", "--for", "60")
        assert status == 2
        assert "there is no leader, which must pass on an order: no message arrived for 2 s." in text
        assert not hosts.orders


def test_another_key(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hosts(server.url(), 1) as hosts:
        hosts.settle()
        monkeypatch.setenv("BGPOOL_FLEET_KEY", OTHER)
        status, text = ready()
        assert status == 1
        assert "no host reported within 16 s" in text
        assert "forged (is $BGPOOL_FLEET_KEY the hosts' key?)" in text
        # While a key is changed both are good.
        monkeypatch.setenv("BGPOOL_FLEET_KEY", f"{OTHER},{KEY}")
        assert ready()[0] == 0


@pytest.mark.parametrize("off_s", [-3600, 3600])
def test_a_clock_that_is_wrong_where_one_looks(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, off_s: int
) -> None:
    """Ages, and the end of a hold, are judged by the fleet's clocks."""
    with Hosts(server.url(), 2) as hosts:
        long_ago = int((time.time() - FLEET_REPORT_LIFE_S - 10) * 1000)
        silent = seal_report(report(8), "ledger", hosts.keys)
        server.execute("DEL", "bgpool:{ledger}:hosts")
        server.execute("XADD", "bgpool:{ledger}:hosts", f"{long_ago}-0", "m", silent)
        hosts.settle()
        wrong = SimpleNamespace(time_ns=lambda: time.time_ns() + off_s * S, monotonic=time.monotonic)
        monkeypatch.setattr("bgpool.fleet.survey.time", wrong)
        assert [host["host"] for host in as_json()["hosts"]] == ["web-1", "web-2"]
        assert run("hold", "--bg-id", "ledger", "--for", "60")[0] == 0
        left_s = hosts.orders[0].until_ns / S - time.time()
        assert 50 < left_s <= 61


def test_what_the_call_needs(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGPOOL_FLEET_KEY")
    status, text = ready()
    assert status == 2
    assert "$BGPOOL_FLEET_KEY" in text
    monkeypatch.setenv("BGPOOL_FLEET_TRUST", "true")
    assert ready()[0] == 1
    monkeypatch.delenv("BGPOOL_FLEET")
    status, text = ready()
    assert (status, "no bus is known: set $BGPOOL_FLEET" in text) == (2, True)
    assert ready("--fleet", server.url())[0] == 1
    status, text = ready("--fleet", "redis://bgpool:s3cret@127.0.0.1:1")
    assert (status, "s3cret" in text, "ps" in text) == (2, False, True)
    status, text = ready("--fleet", "redis://127.0.0.1:1")
    assert (status, "the bus at 127.0.0.1:1 cannot be connected to" in text) == (2, True)


def test_a_dsn_says_it_all(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's DSN is sufficient; its secrets come through standard input."""
    monkeypatch.delenv("BGPOOL_FLEET")
    monkeypatch.delenv("BGPOOL_FLEET_KEY")
    bus = server.url().replace(":", "%3A").replace("/", "%2F")
    dsn = f"postgresql://app:s3cret@127.0.0.1:1/app?bg_id=ledger&bg_fleet={bus}&bg_fleet_key={KEY}"
    with Hosts(server.url(), 2) as hosts:
        hosts.settle()
        status, text = run("status", "-", "--ready", input=f"{dsn}\n")
    assert (status, text) == (0, "fleet 'ledger' is ready for a switchover: 2 hosts, 8 workers\n")


# -- orders -------------------------------------------------------------------------------------------------------


def test_hold_and_release(server: RedisServer) -> None:
    with Hosts(server.url(), 3) as hosts:
        hosts.settle()
        begun = time.time()
        status, text = run("hold", "--bg-id", "ledger", "--for", "1h")
        assert status == 0
        assert text.startswith("fleet 'ledger': every checkout on 3 hosts waits until 20")
        assert text.endswith("Z; bgpool fleet release ends it\n")
        (held,) = hosts.orders
        assert held.order is Order.HOLD
        assert begun + 3600 - 1 < held.until_ns / S < time.time() + 3601
        told = as_json()
        assert told["by_hand"]["order"] == "hold"
        assert [host["has_order"] for host in told["hosts"]] == [True, True, True]
        assert "by hand    hold until " in run("status", "--bg-id", "ledger")[1]
        status, text = run("release", "--bg-id", "ledger")
        assert (status, text) == (
            0,
            "fleet 'ledger': 3 hosts accepted the release; no operator holds callers there any longer\n",
        )
        assert hosts.orders[0].order is Order.RELEASE
        assert hosts.orders[0].number > held.number


def test_an_order_is_newer_than_any_before(server: RedisServer) -> None:
    """It is also newer than an order that was given with a clock that is ahead."""
    with Hosts(server.url(), 1) as hosts:
        hosts.report(FleetOrder(f"{time.time_ns() + 600 * S:020d}-ffffffff", Order.HOLD, time.time_ns() + 600 * S))
        hosts.settle()
        assert run("release", "--bg-id", "ledger")[0] == 0
        assert max(hosts.orders, key=lambda order: order.number).order is Order.RELEASE


def test_a_host_that_does_not_take_it(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_command, "give_up_after_s", lambda: 4.0)
    with Hosts(server.url(), 4) as hosts:
        hosts.deaf = {"web-2", "web-3"}
        hosts.reports["web-3"] = report(3, standing=FleetRole.DIRECT)
        hosts.settle()
        # It is still one of those that are to hold, though it may be gone.
        del hosts.reports["web-4"]
        status, text = run("hold", "--bg-id", "ledger", "--for", "60")
        assert status == 1
        assert text.splitlines()[0].startswith(
            "fleet 'ledger': 3 of 4 hosts have not taken the order within 4 s; it stays in force until 20"
        )
        assert text.splitlines()[1:] == [
            "web-2 has not: it is a follower, and has reported since",
            "web-3 has not: it asks the database itself (direct), and hears no leader; bgpool status says why there",
            "web-4 has not: it is a follower, and has reported since",
        ]


def test_a_host_that_leaves_during_an_order_is_not_waited_for(server: RedisServer) -> None:
    with Hosts(server.url(), 3) as hosts:
        hosts.deaf = {"web-2"}
        hosts.settle()

        def leave() -> None:
            hosts.reports["web-2"] = replace(hosts.reports["web-2"], leaves=True)

        timer = threading.Timer(1.0, leave)
        timer.start()
        status, text = run("hold", "--bg-id", "ledger", "--for", "60")
        timer.join()
        assert (status, "every checkout on 2 hosts waits" in text) == (0, True)


def test_another_order_comes_after_it(server: RedisServer) -> None:
    with Hosts(server.url(), 2) as hosts:
        hosts.deaf = {"web-2"}
        hosts.settle()
        later = FleetOrder(f"{time.time_ns() + 60 * S:020d}-0", Order.RELEASE, time.time_ns() + 3600 * S)

        def report_later() -> None:
            hosts.reports["web-2"] = replace(hosts.reports["web-2"], order=later.number)

        timer = threading.Timer(1.0, report_later)
        timer.start()
        status, text = run("hold", "--bg-id", "ledger", "--for", "60")
        timer.join()
        assert (status, text) == (
            1,
            "fleet 'ledger': a newer order was given, which replaces this one\n",
        )


def test_no_hold_in_a_switchover(server: RedisServer) -> None:
    with Hosts(server.url(), 3) as hosts:
        hosts.reports["web-2"] = report(2, phase=Phase.IN_PROGRESS)
        hosts.settle()
        status, text = run("hold", "--bg-id", "ledger", "--for", "60")
        assert (status, text) == (
            1,
            "fleet 'ledger': a switchover is under way (IN_PROGRESS on 1 of 3 hosts), which decides itself who waits; "
            "nothing was changed\n",
        )
        assert not hosts.orders
        # A release is what it is for.
        assert run("release", "--bg-id", "ledger")[0] == 0


def test_an_order_without_hosts(server: RedisServer) -> None:
    status, text = run("release", "--bg-id", "ledger")
    assert (status, text) == (2, "fleet 'ledger': no host reported within 16 s\n")
    assert server.execute("EXISTS", "bgpool:{ledger}:hosts") in (0, "0", b"0")
    status, text = run("hold", "--bg-id", "ledger", "--for", "2h")
    assert (status, "1 to 3600 seconds are allowed" in text) == (2, True)

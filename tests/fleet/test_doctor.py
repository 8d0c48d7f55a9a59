"""The doctor's findings about a bus, on a real server. The documentation names every check."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bgpool.core.fleet import FleetRole, Message, Report
from bgpool.core.limits import FLEET_SILENCE_SWITCHING_S
from bgpool.core.phase import Phase
from bgpool.doctor import Case, Finding, Result, examine
from bgpool.doctor.fleet_checks import fleet_checks, of_fleet
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.messages import seal, seal_report
from bgpool.fleet.streams import RIGHTS, StreamBus, stream_keys
from bgpool.lab.addresses import free_addresses
from bgpool.lab.redis import RedisServer
from tests.fleet.talking import Talker

pytestmark = pytest.mark.lab

SECRET = "s3cret/with@all?of#it"
KEY, OTHER = b"k" * 32, b"o" * 32
STREAM, HOSTS = stream_keys("ledger")
END = "18446744073709551615-18446744073709551615"
ALL = ["client", "reachable", "encrypted", "rights", "streams", "key", "clock", "eviction"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader's longest silence in a switchover is long enough for the leader of these tests."""
    monkeypatch.setattr("bgpool.doctor.fleet_checks.FLEET_SILENCE_S", FLEET_SILENCE_SWITCHING_S)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> Iterator[RedisServer]:
    """Empty, with a user who may do what a monitor may."""
    shared_server.user("bgpool", SECRET, *RIGHTS.split())
    yield shared_server
    shared_server.execute("REPLICAOF", "NO", "ONE")
    shared_server.execute("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")
    shared_server.execute("ACL", "SETUSER", "default", "on", "nopass")
    shared_server.execute("FLUSHALL")


def url_of(server: RedisServer) -> str:
    return server.url(user="bgpool", password=SECRET)


def case_of(url: str, **given: Any) -> Case:
    more = given or {"bg_fleet_key": KEY}
    return Case("postgresql://app@db.example.com/app", bg_id="ledger", options={"bg_fleet": url, **more})


def found(url: str, **given: Any) -> dict[str, Finding]:
    """By the name of the check; all of them, and none of them has a secret in it."""
    findings = of_fleet(case_of(url, **given))
    assert [finding.check for finding in findings] == ALL
    assert {finding.where for finding in findings} == {"fleet"}
    for finding in findings:
        assert SECRET not in finding.text + finding.remedy
        assert quote(SECRET, safe="") not in finding.text + finding.remedy
        assert KEY.decode() not in finding.text + finding.remedy
        assert "the check itself failed" not in finding.text
        assert (finding.remedy != "") == (finding.result in (Result.WARNING, Result.FAILED))
    return {finding.check: finding for finding in findings}


def results(findings: dict[str, Finding]) -> dict[str, Result]:
    return {name: finding.result for name, finding in findings.items()}


def message(term: int, seq: int = 0, *, ahead_s: float = 0.0) -> Message:
    issued_ns = time.time_ns() + int(ahead_s * 1e9)
    return Message(term, seq, "aa" * 8, issued_ns, "12345678", 3, seq, (0, 0), (None, None))


def report(place: str = "ab" * 8, *, off_ms: int | None = None) -> Report:
    return Report(
        "cd" * 8, f"host-{place[:2]}", place, "1.0", time.time_ns(), "12345678", Phase.CREATED, (), 4, 0,
        FleetRole.FOLLOWER, clock_off_ms=off_ms,
    )  # fmt: skip


def write(server: RedisServer, *told: Message | Report, key: bytes = KEY) -> None:
    bus = StreamBus(FleetConfig(server.url(), (key,)), "ledger")
    keys = (key,) if key else ()
    for one in told:
        if isinstance(one, Message):
            bus.publish(one.term, one.seq, seal(one, "ledger", keys))
        else:
            bus.report(seal_report(one, "ledger", keys))
    bus.close()


def contents(server: RedisServer) -> list[bytes]:
    keys = sorted(server.execute("KEYS", "*"))
    return [server.execute("DUMP", key) for key in keys]


# -- all is well ---------------------------------------------------------------------------------------------------


def test_an_unused_bus(server: RedisServer) -> None:
    findings = found(url_of(server))
    assert results(findings) == {
        "client": Result.OK,
        "reachable": Result.OK,
        "encrypted": Result.WARNING,
        "rights": Result.OK,
        "streams": Result.OK,
        "key": Result.NOT_CHECKED,
        "clock": Result.NOT_CHECKED,
        "eviction": Result.NOT_CHECKED,
    }
    assert server.execute("KEYS", "*") == []
    assert f"{server.address}:{server.port} accepts the login as bgpool" in findings["reachable"].text
    assert "INFO" in findings["eviction"].text


def test_a_fleet_that_is_at_work(server: RedisServer) -> None:
    write(server, report(), report("ef" * 8, off_ms=12))
    with Talker(url_of(server), "ledger", KEY) as talker:
        findings = found(url_of(server), bg_fleet_key=[OTHER, KEY])
        assert talker.term > 0
    assert {name for name, result in results(findings).items() if result is not Result.OK} == {"encrypted", "eviction"}
    assert "the newest message and 2 reports, signed with key 2 of this host's 2" in findings["key"].text
    assert "the newest message is " in findings["streams"].text


def test_nothing_is_written(server: RedisServer) -> None:
    write(server, message(7), message(7, 1), report())
    before = contents(server)
    assert before
    found(url_of(server))
    assert contents(server) == before


def test_without_a_bus_nothing_is_asked() -> None:
    assert of_fleet(Case("postgresql://app@db.example.com/app")) == []


def test_the_doctor_examines_the_bus(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path / "run"))
    case = Case(
        "postgresql://app@127.0.0.1:1/app",
        bg_id="ledger",
        options={"bg_fleet": url_of(server), "bg_fleet_key": KEY},
        timeout_s=2,
    )
    assert [finding.check for finding in examine(case) if finding.where == "fleet"] == ALL


# -- what the bus says ---------------------------------------------------------------------------------------------


def test_the_client_is_missing(server: RedisServer) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "redis", None)
        findings = found(url_of(server))
    assert findings["client"].result is Result.FAILED
    assert findings["client"].remedy == "pip install 'bgpool[fleet]'"
    assert {findings[name].result for name in ALL if name not in ("client", "encrypted")} == {Result.NOT_CHECKED}


def test_a_bus_without_a_server() -> None:
    addresses, port = free_addresses(1)
    findings = found(f"redis://u:{quote(SECRET, safe='')}@{addresses[0]}:{port}")
    assert findings["reachable"].result is Result.FAILED
    assert f"{addresses[0]}:{port} cannot be connected to" in findings["reachable"].text
    assert {findings[name].result for name in ALL[3:]} == {Result.NOT_CHECKED}


@pytest.mark.parametrize(
    ("user", "password", "says"),
    [("bgpool", "wr0ng", "refuses the user or the password"), ("", "", "requires a password")],
)
def test_not_let_in(server: RedisServer, user: str, password: str, says: str) -> None:
    server.require_password()
    findings = found(server.url(user=user, password=password))
    assert findings["reachable"].result is Result.FAILED
    assert says in findings["reachable"].text
    assert findings["rights"].result is Result.NOT_CHECKED


@pytest.mark.parametrize("missing", ["xadd", "xread", "xrevrange", "hosts"])
def test_a_right_is_missing(server: RedisServer, missing: str) -> None:
    key = f"~{STREAM}" if missing == "hosts" else "~bgpool:*"
    commands = [f"+{name}" for name in ("xadd", "xread", "xrevrange") if name != missing]
    server.user("bgpool", SECRET, key, *commands)
    findings = found(url_of(server))
    assert findings["reachable"].result is Result.OK
    assert findings["rights"].result is Result.FAILED
    assert missing.upper() in findings["rights"].text or missing == "hosts"
    assert findings["rights"].remedy == f"ACL SETUSER bgpool {RIGHTS}"


def test_rights_on_this_deployment_alone_will_do(server: RedisServer) -> None:
    server.user("bgpool", SECRET, f"~{STREAM}*", "+xadd", "+xread", "+xrevrange")
    assert found(url_of(server))["rights"].result is Result.OK


def test_another_database_takes_another_right(server: RedisServer) -> None:
    url = server.url(user="bgpool", password=SECRET, db=3)
    findings = found(url)
    assert findings["rights"].result is Result.FAILED
    assert findings["rights"].remedy.endswith(" +select")
    server.user("bgpool", SECRET, *RIGHTS.split(), "+select")
    assert found(url)["rights"].result is Result.OK


def test_a_bus_that_takes_no_writes(server: RedisServer) -> None:
    server.execute("REPLICAOF", "127.0.0.1", 1)
    assert "is a replica" in found(url_of(server))["rights"].text
    server.execute("REPLICAOF", "NO", "ONE")
    server.execute("CONFIG", "SET", "maxmemory", "1")
    findings = found(url_of(server))
    assert findings["rights"].result is Result.FAILED
    assert "no memory left" in findings["rights"].text


@pytest.mark.parametrize("key", [STREAM, HOSTS])
def test_another_thing_is_under_the_key(server: RedisServer, key: str) -> None:
    server.execute("SET", key, "x")
    findings = found(url_of(server))
    assert findings["rights"].result is Result.OK
    assert findings["streams"].result is Result.FAILED
    assert findings["streams"].remedy == f"delete {key} (DEL) as a user who may"
    assert server.execute("GET", key) == b"x"


@pytest.mark.parametrize(
    ("key", "entry"),
    [(STREAM, END), (HOSTS, END), (STREAM, f"{int(time.time()) + 2 * 86_400}-0"), (STREAM, f"{2**64 - 1}-5")],
    ids=["the last", "the last of the hosts", "in two days", "the last second"],  # the time differs between processes
)
def test_the_highest_possible_id(server: RedisServer, key: str, entry: str) -> None:
    write(server, message(7), report())
    server.execute("XADD", key, entry, "m", "forged")
    finding = found(url_of(server))["streams"]
    assert finding.result is Result.FAILED
    assert f"delete {key} (DEL); the monitors' own user cannot" in finding.remedy
    server.execute("DEL", key)
    assert found(url_of(server))["streams"].result is Result.OK


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (OTHER, {"bg_fleet_key": KEY}, "the newest message is not signed with this host's key"),
        (b"", {"bg_fleet_key": KEY}, "the newest message is not signed with this host's key"),
        (KEY, {"bg_fleet_trust": True}, "cannot be read without a key"),
    ],
)
def test_the_others_have_another_key(server: RedisServer, theirs: bytes, ours: dict[str, Any], says: str) -> None:
    write(server, message(7), report(), key=theirs)
    finding = found(url_of(server), **ours)["key"]
    assert finding.result is Result.FAILED
    assert says in finding.text
    assert "the same bg_fleet_key" in finding.remedy


def test_hosts_that_have_another_key(server: RedisServer) -> None:
    write(server, report(), key=OTHER)
    assert "none of the newest 1 reports is signed" in found(url_of(server))["key"].text
    write(server, message(7), report())
    finding = found(url_of(server))["key"]
    assert finding.result is Result.WARNING
    assert "1 of the newest 2 reports" in finding.text


def test_a_message_that_is_forged_while_the_leader_goes_on(server: RedisServer) -> None:
    with Talker(url_of(server), "ledger", KEY):
        assert found(url_of(server))["key"].result is Result.OK
    server.execute("XADD", STREAM, f"{int(time.time()) + 60}-0", "m", "forged")
    assert found(url_of(server))["key"].result is Result.FAILED


def test_trust(server: RedisServer) -> None:
    write(server, message(7), report(), key=b"")
    finding = found(url_of(server), bg_fleet_trust=True)["key"]
    assert finding.result is Result.OK
    assert "nothing is signed" in finding.text


def short_key() -> str:
    return "s3cret"


def test_a_key_that_cannot_be_made(server: RedisServer) -> None:
    write(server, message(7))
    finding = found(url_of(server), bg_fleet_key=short_key)["key"]
    assert finding.result is Result.FAILED
    assert "has 6 bytes" in finding.text


def test_a_newer_version(server: RedisServer) -> None:
    from bgpool.fleet import messages

    sealed = messages._sign(messages._MESSAGE, "ledger", messages._id(7, 0), {}, (KEY,))
    body = bytes([messages.FORMAT + 1]) + sealed[33:]
    mac = messages._mac(KEY, messages._MESSAGE, "ledger", messages._id(7, 0), body)
    server.execute("XADD", STREAM, "7-0", "m", mac + body)
    finding = found(url_of(server))["key"]
    assert finding.result is Result.WARNING
    assert "newer version" in finding.text


# -- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_s", "result", "says"),
    [
        (0.0, Result.OK, "it differs from the leader's by"),
        (-0.8, Result.OK, "it differs from the leader's by"),
        (-2.0, Result.WARNING, r"it is 2.0 s ahead of the leader's"),
        (-3.5, Result.FAILED, r"it is 3.5 s ahead of the leader's: this host believes no message"),
        (1.5, Result.FAILED, r"it is 1.5 s behind the leader's: this host believes no message"),
    ],
)
def test_the_leaders_clock(server: RedisServer, ahead_s: float, result: Result, says: str) -> None:
    with Talker(url_of(server), "ledger", KEY, ahead_s=ahead_s):
        finding = found(url_of(server))["clock"]
    assert finding.result is result
    assert says in finding.text


def test_the_clocks_of_others(server: RedisServer) -> None:
    write(server, report("11" * 8, off_ms=1400), report("22" * 8, off_ms=-90_000), report("33" * 8, off_ms=20))
    # It has been put right.
    write(server, report("11" * 8, off_ms=3))
    with Talker(url_of(server), "ledger", KEY):
        finding = found(url_of(server))["clock"]
    assert finding.result is Result.WARNING
    assert "others differ: host-22 by -90.0 s" in finding.text


# -- TLS and memory ------------------------------------------------------------------------------------------------


def test_encryption() -> None:
    addresses, port = free_addresses(1)
    with RedisServer(tls=addresses, address=addresses[0], port=port) as server:
        findings = found(server.url())
        assert findings["encrypted"].result is Result.OK
        assert findings["reachable"].result is Result.OK
        refused = found(f"redis://{server.address}:{server.port}")["reachable"]
        assert refused.result is Result.FAILED
    with RedisServer(tls=["bus.test"]) as server:
        for option, says in (("ssl_check_hostname=false", "any certificate of an"), ("ssl_cert_reqs=none", "any cert")):
            findings = found(server.url(options=option))
            assert findings["reachable"].result is Result.OK
            assert findings["encrypted"].result is Result.WARNING
            assert says in findings["encrypted"].text
        refused = found(server.url())["reachable"]
        assert refused.result is Result.FAILED
        assert "certificate" in refused.text


def test_no_encryption_without_a_password(server: RedisServer) -> None:
    assert found(server.url())["encrypted"].result is Result.OK


@pytest.mark.parametrize(
    ("policy", "result"),
    [
        ("noeviction", Result.OK),
        ("allkeys-lru", Result.OK),
        ("allkeys-lfu", Result.OK),
        ("volatile-random", Result.OK),
        ("allkeys-random", Result.WARNING),
    ],
)
def test_eviction(server: RedisServer, policy: str, result: Result) -> None:
    server.user("bgpool", SECRET, *RIGHTS.split(), "+info")
    server.execute("CONFIG", "SET", "maxmemory", "100000000", "maxmemory-policy", policy)
    finding = found(url_of(server))["eviction"]
    assert finding.result is result
    assert policy in finding.text


# -- documentation -------------------------------------------------------------------------------------------------


def test_every_check_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    section = page.partition("## fleet")[2].partition("\n## ")[0]
    names = [name for name, _, _ in fleet_checks._checks]
    assert names == ALL
    assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == names

"""The bus on a real server: what it promises, and each way in which a server says no.

What servers do was tried first, on Redis 7.0 and Valkey 9; here is what of it the code depends on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.exceptions import ResponseError

from bgpool.core.limits import FLEET_BLOCK_S, FLEET_ENTRIES, FLEET_ENTRIES_READ, FLEET_ENTRY_BYTES, FLEET_TIMEOUT_S
from bgpool.fleet.bus import BusError, Entry, KeyMissing, ReadResult, Refused, ReportEntry
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.streams import RIGHTS, StreamBus
from bgpool.lab.addresses import free_addresses
from bgpool.lab.redis import RedisServer, join_cluster
from bgpool.lab.waiting import wait_until
from tests.waiting import PATIENCE_S, quickest

pytestmark = pytest.mark.lab

KEY, HOSTS_KEY = "bgpool:{ledger}", "bgpool:{ledger}:hosts"
PASSWORD = "s3cret/with@all?of#it"
MAXIMUM = 2**64 - 1

NewBus = Callable[..., StreamBus]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> Iterator[RedisServer]:
    """An empty server without access control."""
    yield shared_server
    shared_server.thaw()
    shared_server.start()
    shared_server.execute("REPLICAOF", "NO", "ONE")
    shared_server.execute("CONFIG", "SET", "maxmemory", "0", "min-replicas-to-write", "0")
    shared_server.execute("ACL", "SETUSER", "default", "on", "nopass")
    shared_server.execute("FLUSHALL")


@pytest.fixture
def new_bus() -> Iterator[NewBus]:
    """Makes the bus of a URL."""
    made: list[StreamBus] = []

    def make(url: str, bg_id: str = "ledger", password: Callable[..., str] | None = None) -> StreamBus:
        pickled = None if password is None else pickle.dumps(password)
        made.append(StreamBus(FleetConfig(url, trust=True, password_callable=pickled), bg_id))
        return made[-1]

    yield make
    for bus in made:
        bus.close()


@pytest.fixture
def bus(server: RedisServer, new_bus: NewBus) -> StreamBus:
    return new_bus(server.url())


def failure(function: Callable[..., object], *args: object) -> str:
    """Return the error of *function*: one line, without a secret, also not in its cause."""
    with pytest.raises(BusError) as caught:
        function(*args)
    error = caught.value
    assert type(error) is BusError
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert "\n" not in str(error)
    assert "s3cret" not in str(error) + repr(error)
    return str(error)


# -- what it promises ----------------------------------------------------------------------------------------------


def test_the_order_of_ids_is_the_fence(bus: StreamBus) -> None:
    assert bus.top() is None
    bus.publish(7, 0, b"claim")
    bus.publish(7, 2, b"gaps are harmless")
    for term, seq in ((7, 2), (7, 1), (7, 0), (6, 9), (1, 0)):
        with pytest.raises(Refused, match=r"bgpool:\{ledger\}"):
            bus.publish(term, seq, b"late")
    bus.publish(8, 0, b"next")
    with pytest.raises(Refused):
        bus.publish(7, 3, b"fenced off")
    assert bus.top() == Entry(8, 0, b"next")


def test_only_a_claim_creates_the_stream(server: RedisServer, bus: StreamBus) -> None:
    with pytest.raises(KeyMissing, match=r"bgpool:\{ledger\} is gone"):
        bus.publish(7, 1, b"")
    assert server.execute("EXISTS", KEY) == 0
    bus.publish(7, 0, b"")
    bus.publish(7, 1, b"")


@pytest.mark.parametrize("command", [("DEL", KEY), ("UNLINK", KEY), ("FLUSHALL",), ("PEXPIRE", KEY, 0)])
def test_a_leader_hears_that_the_stream_is_gone(server: RedisServer, bus: StreamBus, command: tuple[str]) -> None:
    bus.publish(8, 0, b"")
    server.execute(*command)
    with pytest.raises(KeyMissing):
        bus.publish(8, 1, b"")
    assert bus.top() is None
    assert bus.read((8, 0), 0.0) == ReadResult([], [])
    # The fence is gone with it: the caller's terms have to rise by a clock.
    bus.publish(1, 0, b"")


def test_trimming_and_deleting_entries_keeps_the_fence(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(8, 0, b"")
    server.execute("XTRIM", KEY, "MAXLEN", 0)
    assert bus.top() is None, "although ids have been used"
    with pytest.raises(Refused):
        bus.publish(8, 0, b"")
    bus.publish(8, 1, b"")


def test_both_streams_are_read_at_once(bus: StreamBus) -> None:
    assert bus.read((0, 0), 0.0, "0") == ReadResult([], [])
    bus.publish(7, 0, b"\x00\r\n\xff")
    bus.publish(7, 1, b"one")
    for text in (b"a", b"b"):
        bus.report(text)
    heard = bus.read((0, 0), 0.0, "0")
    assert heard.entries == [Entry(7, 0, b"\x00\r\n\xff"), Entry(7, 1, b"one")]
    assert [report.payload for report in heard.reports] == [b"a", b"b"]
    assert bus.read((7, 0), 0.0) == ReadResult([Entry(7, 1, b"one")], [])
    assert bus.read((7, 1), 0.0, heard.reports[0].id) == ReadResult([], heard.reports[1:])
    assert bus.reports(1) == heard.reports[1:]
    assert bus.reports(9) == heard.reports[::-1]


def test_a_reader_that_waits_is_woken(server: RedisServer, bus: StreamBus, new_bus: NewBus) -> None:
    bus.publish(7, 0, b"")
    other = new_bus(server.url())
    other.top()
    numbers = itertools.count(1)

    def read() -> float:
        number, sent = next(numbers), [0.0]

        def send() -> None:
            time.sleep(0.05)
            sent[0] = time.monotonic()
            other.publish(7, number, b"news")

        thread = threading.Thread(target=send)
        thread.start()
        heard = bus.read((7, number - 1), FLEET_BLOCK_S)
        took_s = time.monotonic() - sent[0]
        thread.join()
        # A busy machine may send it when the wait is over.
        return took_s if heard.entries == [Entry(7, number, b"news")] else math.inf

    assert quickest(read, 0.3) < 0.3


@pytest.mark.parametrize(("timeout_s", "least", "most"), [(0.1, 0.09, 0.4), (30.0, FLEET_BLOCK_S, 0.9), (0.0, 0, 0.09)])
def test_nothing_comes_back_late_and_not_as_a_failure(
    bus: StreamBus, timeout_s: float, least: float, most: float
) -> None:
    """A server checks its waiting clients ten times a second. A client that measures silence needs its own timer."""
    bus.publish(7, 0, b"")

    def read() -> float:
        began = time.monotonic()
        assert bus.read((7, 0), timeout_s) == ReadResult([], [])
        took_s = time.monotonic() - began
        assert least <= took_s
        return took_s

    assert quickest(read, most) < most


def test_two_deployments_share_a_server(server: RedisServer, bus: StreamBus, new_bus: NewBus) -> None:
    other = new_bus(server.url(), "orders")
    bus.publish(9, 0, b"ledger")
    other.publish(3, 0, b"orders")
    assert (bus.top(), other.top()) == (Entry(9, 0, b"ledger"), Entry(3, 0, b"orders"))


def test_streams_stay_short_and_have_no_time_to_live(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(7, 0, b"")
    for seq in range(1, 400):
        bus.publish(7, seq, b"x" * 60)
    assert FLEET_ENTRIES <= server.execute("XLEN", KEY) <= FLEET_ENTRIES_READ
    assert len(bus.read((0, 0), 0.0).entries) <= FLEET_ENTRIES_READ
    bus.report(b"")
    assert (server.execute("TTL", KEY), server.execute("TTL", HOSTS_KEY)) == (-1, -1)


# -- what others may have written ----------------------------------------------------------------------------------


def test_foreign_entries_are_empty(server: RedisServer, bus: StreamBus) -> None:
    largest = b"x" * FLEET_ENTRY_BYTES
    bus.publish(7, 0, largest)
    server.execute("XADD", KEY, "7-1", "m", largest + b"x")
    server.execute("XADD", KEY, "7-2", "other", "field")
    server.execute("XADD", KEY, "7-3", "other", "field", "m", "ours")
    server.execute("XADD", HOSTS_KEY, "1-1", "other", "field")
    heard = bus.read((0, 0), 0.0, "0")
    assert heard.entries == [Entry(7, 0, largest), Entry(7, 1, b""), Entry(7, 2, b""), Entry(7, 3, b"ours")]
    assert heard.reports == [ReportEntry("1-1", b"")]


def test_an_entry_of_ten_megabytes_is_passed_over(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(7, 0, b"")
    server.execute("XADD", KEY, "7-1", "m", b"x" * 10_000_000)

    def read() -> float:
        began = time.monotonic()
        assert bus.read((7, 0), 0.0).entries == [Entry(7, 1, b"")]
        assert bus.top() == Entry(7, 1, b"")
        return time.monotonic() - began

    assert quickest(read, FLEET_TIMEOUT_S) < FLEET_TIMEOUT_S
    bus.publish(7, 2, b"on")


def test_an_answer_of_gigabytes_is_not_read(
    server: RedisServer, bus: StreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgpool.fleet.connection.FLEET_ANSWER_BYTES", 2**20)
    bus.publish(7, 0, b"")
    for seq in (1, 2):
        server.execute("XADD", KEY, f"7-{seq}", "m", b"x" * 600_000)
    assert bus.read((7, 1), 0.0).entries == [Entry(7, 2, b"")], "each answer is counted alone"
    assert "gives an answer of more than 1 MB" in failure(bus.read, (7, 0), 0.0)
    assert bus.top() == Entry(7, 2, b"")
    bus.publish(7, 3, b"on")


def test_an_answer_that_trickles_has_an_end(monkeypatch: pytest.MonkeyPatch, new_bus: NewBus) -> None:
    monkeypatch.setattr("bgpool.fleet.connection.FLEET_ANSWER_S", 0.3)

    def trickle(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(b"*")
                time.sleep(0.02)

    with answering(trickle) as url:
        assert "the whole of an answer within 0.3 s" in failure(new_bus(url).top)


def test_the_highest_possible_id_closes_the_stream_until_it_is_deleted(server: RedisServer, bus: StreamBus) -> None:
    server.execute("XADD", KEY, f"{MAXIMUM}-{MAXIMUM}", "m", "forged")
    assert bus.top() == Entry(MAXIMUM, MAXIMUM, b"forged")
    for term, seq in ((8, 0), (8, 1)):
        said = failure(bus.publish, term, seq, b"")
        assert "highest possible id" in said
        assert "delete that key (DEL)" in said
        assert KEY in said
    server.execute("DEL", KEY)
    bus.publish(8, 0, b"")


def test_another_type_under_the_key(server: RedisServer, bus: StreamBus) -> None:
    for key, calls in (
        (KEY, [(bus.publish, 7, 1, b""), (bus.publish, 7, 0, b""), (bus.read, (0, 0), 0.1), (bus.top,)]),
        (HOSTS_KEY, [(bus.report, b""), (bus.reports, 1)]),
    ):
        server.execute("SET", key, "text")
        for call in calls:
            said = failure(*call)
            assert "a value other than a stream" in said
            assert key in said


# -- servers that say no -------------------------------------------------------------------------------------------


def test_a_full_server(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(7, 0, b"kept")
    server.execute("CONFIG", "SET", "maxmemory", "1mb", "maxmemory-policy", "noeviction")
    server.execute("CONFIG", "SET", "maxmemory", "1")
    assert "no memory left" in failure(bus.publish, 7, 1, b"")
    assert bus.top() == Entry(7, 0, b"kept")


def test_too_few_replicas(server: RedisServer, bus: StreamBus) -> None:
    server.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    assert "fewer replicas" in failure(bus.publish, 7, 0, b"")
    assert bus.top() is None


def is_busy(server: RedisServer) -> bool:
    """Return whether the server has run a script for longer than its limit."""
    try:
        server.execute("PING")
    except ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_a_script_of_somebodys(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(7, 0, b"")
    server.execute("CONFIG", "SET", "lua-time-limit", "50")

    def run() -> None:
        with pytest.raises(ResponseError, match="killed"):
            server.execute("EVAL", "while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(partial(is_busy, server), timeout_s=PATIENCE_S, what="the server runs the script")
        assert "busy with another client's script" in failure(bus.publish, 7, 1, b"")
    finally:
        server.execute("SCRIPT", "KILL")
        thread.join()
    bus.publish(7, 1, b"")


def test_a_server_that_loads_its_data(new_bus: NewBus) -> None:
    slow = {"key-load-delay": "500", "loading-process-events-interval-bytes": "1024"}
    with RedisServer(settings={"save": "3600 1"} | slow) as server:
        bus = new_bus(server.url())
        bus.publish(7, 0, b"kept")
        server.execute("EVAL", "for i = 1, 4000 do redis.call('SET', 'k' .. i, string.rep('x', 100)) end", 0)
        server.stop()
        server.start(wait=False)
        wait_until(lambda: "loading its data" in failure(bus.top), timeout_s=PATIENCE_S, what="the server loads")
        assert "loading its data" in failure(bus.publish, 7, 1, b"")
        wait_until(server.answers, timeout_s=PATIENCE_S, what="the server has loaded")
        assert bus.top() == Entry(7, 0, b"kept")


def test_a_server_that_is_killed(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(7, 0, b"")
    killer = threading.Timer(0.05, server.kill)
    killer.start()
    assert failure(bus.read, (7, 0), 0.4).endswith("hung up at XREAD")
    killer.join()
    assert "cannot be connected to: Connection refused" in failure(bus.publish, 7, 1, b"")
    server.start()
    with pytest.raises(KeyMissing):
        bus.publish(7, 1, b"")


def test_a_write_that_was_not_answered_is_unknown_and_not_repeated(server: RedisServer, bus: StreamBus) -> None:
    bus.publish(8, 0, b"")
    server.freeze()
    began = time.monotonic()
    assert "has not answered XADD within 1 s" in failure(bus.publish, 8, 1, b"late")
    assert "has not answered" in failure(bus.top)
    # Were each repeated, it would be twice as much.
    assert time.monotonic() - began < 4 * FLEET_TIMEOUT_S
    server.thaw()
    # It was in the kernel's buffer, and the server runs it although its client is long gone.
    wait_until(lambda: bus.top() == Entry(8, 1, b"late"), timeout_s=PATIENCE_S, what="the server goes on")
    with pytest.raises(Refused):
        bus.publish(8, 1, b"again")
    assert len(bus.read((0, 0), 0.0).entries) == 2


def test_an_answer_that_is_lost_does_not_make_a_second_write(server: RedisServer, new_bus: NewBus) -> None:
    bus_url = server.url()
    with silencer(server) as (host, port):
        bus = new_bus(bus_url.replace(f"{server.address}:{server.port}", f"{host}:{port}"))
        assert "hung up at XADD" in failure(bus.report, b"once")
        wait_until(lambda: server.execute("EXISTS", HOSTS_KEY) == 1, timeout_s=PATIENCE_S, what="the report is written")
    time.sleep(0.1)
    assert server.execute("XLEN", HOSTS_KEY) == 1


@contextmanager
def silencer(server: RedisServer) -> Iterator[tuple[str, int]]:
    """Passes on what clients say, and hangs up on them when the server answers."""
    listener = socket.create_server((server.address, 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, socket.create_connection((server.address, server.port)) as backend:
                backend.sendall(client.recv(65536))
                backend.recv(65536)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The URL of something that lets *answer* answer the first command of a client."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"redis://bgpool:s3cret@127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n$1\r\n", b"*x\r\n", b"\r\n", b""])
def test_something_that_is_no_redis(new_bus: NewBus, said: bytes) -> None:
    with answering(lambda client: client.sendall(said)) as url:
        assert "the bus at 127.0.0.1:" in failure(new_bus(url).top)


@pytest.mark.parametrize("said", [b"+OK\r\n", b":7\r\n", b"*1\r\n:7\r\n", b"*1\r\n*2\r\n$3\r\nx-y\r\n*0\r\n"])
def test_an_answer_that_is_none(new_bus: NewBus, said: bytes) -> None:
    def answer(client: socket.socket) -> None:
        client.sendall(b"+OK\r\n")
        client.recv(65536)
        client.sendall(said)

    with answering(answer) as url:
        assert "gave an answer to XREVRANGE that is none" in failure(new_bus(url).top)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("MISCONF Redis is configured to save RDB snapshots, but", "cannot save its data"),
        ("MASTERDOWN Link with MASTER is down", "has lost its primary"),
        ("ASK 2466 127.0.0.1:7131", "is moving bgpool:{ledger} to another node"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "is moving bgpool:{ledger}"),
        ("MOVED 2466 ?:7131", "redirects from one node to another"),
        ("DENIED Redis is running in protected mode because", "is in protected mode"),
        ("ERR max number of clients reached", "maxclients"),
        ("ERR unknown command 'AUTH', with args beginning with: 's3cret'", "does not know XREVRANGE; Redis 6.2"),
        ("ERR syntax error", "does not know a part of XREVRANGE; Redis 6.2"),
        ("ERR wrong s3cret", "answers XREVRANGE with the error ERR"),
        ("NEWCODE s3cret", "answers XREVRANGE with the error NEWCODE"),
        ("s3cret", "answers XREVRANGE with the error ERR"),
    ],
)
def test_every_refusal_has_its_own_text(new_bus: NewBus, said: str, meaning: str) -> None:
    """A server's own may quote what it was sent."""

    def answer(client: socket.socket) -> None:
        client.sendall(b"+OK\r\n")
        client.recv(65536)
        client.sendall(f"-{said}\r\n".encode())

    with answering(answer) as url:
        assert meaning in failure(new_bus(url).top)


# -- another server under the name ---------------------------------------------------------------------------------


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The address file of ``bus.test``, which a test writes."""
    leads: dict[str, str] = {}
    original = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **named: Any) -> Any:
        return original(leads.get(host, host), *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return leads


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    addresses, port = free_addresses(2)
    with RedisServer(address=addresses[0], port=port) as one, RedisServer(address=addresses[1], port=port) as two:
        yield one, two


def test_after_a_promotion_the_name_is_looked_up_again(
    two_servers: tuple[RedisServer, RedisServer], name: dict[str, str], new_bus: NewBus
) -> None:
    old, new = two_servers
    name["bus.test"] = old.address
    bus = new_bus(old.url(host="bus.test"))
    bus.publish(8, 0, b"before")
    new.follow(old)
    new.promote()
    old.follow(new)
    # The name changes later, and the connection was kept: it would lead to the replica forever.
    assert "is a replica and accepts no writes" in failure(bus.publish, 8, 1, b"lost")
    name["bus.test"] = new.address
    bus.publish(8, 2, b"after")
    assert bus.read((0, 0), 0.0).entries == [Entry(8, 0, b"before"), Entry(8, 2, b"after")]


def test_a_reader_whose_server_is_demoted_hears_it_at_once(
    two_servers: tuple[RedisServer, RedisServer], name: dict[str, str], new_bus: NewBus
) -> None:
    old, new = two_servers
    old.promote()
    new.promote()
    name["bus.test"] = old.address
    bus = new_bus(old.url(host="bus.test"), "other")
    bus.publish(8, 0, b"")
    threading.Timer(0.05, lambda: old.execute("REPLICAOF", new.address, new.port)).start()
    assert "is no longer a primary" in failure(bus.read, (8, 0), 0.4)
    name["bus.test"] = new.address
    bus.top()


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[RedisServer, RedisServer]]:
    with RedisServer(cluster=True, tls=["bus.test"]) as one, RedisServer(cluster=True, tls=["bus.test"]) as two:
        for node in (one, two):
            node.user("bgpool", PASSWORD, *RIGHTS.split())
        yield one, two


def test_a_cluster_says_which_node_has_the_stream(
    nodes: tuple[RedisServer, RedisServer], name: dict[str, str], new_bus: NewBus
) -> None:
    """The node that MOVED names has an address alone; what it has to prove is the name that was given."""
    one, two = nodes

    def of(node: RedisServer, bg_id: str = "ledger") -> StreamBus:
        name["bus.test"] = node.address
        return new_bus(node.url(user="bgpool", password=PASSWORD, host="bus.test"), bg_id)

    assert "its cluster is down" in failure(of(one).top)
    join_cluster(one, two)
    sent_on = 0
    for number, node in enumerate(nodes):
        bus = of(node)
        bus.publish(7, number, b"")
        bus.report(b"")
        heard = bus.read((0, 0), 0.1, "0")
        assert len(heard.entries) == len(heard.reports) == number + 1
        sent_on += "(" in repr(bus)
    assert sent_on == 1, "one of them was sent to the other's node"
    # The slot changes its node, twice.
    bus = of(one, "orders")
    bus.publish(7, 0, b"")
    key = "bgpool:{orders}"
    slot = one.execute("CLUSTER", "KEYSLOT", key)
    for taker in (two, one):
        for node in nodes:
            with contextlib.suppress(ResponseError):  # MOVED: the other node has it
                node.execute("DEL", key)
        for node in nodes:
            node.execute("CLUSTER", "SETSLOT", slot, "NODE", taker.execute("CLUSTER", "MYID"))
        with pytest.raises(KeyMissing):
            bus.publish(7, 1, b"")
        bus.publish(8, 0, b"")
        assert taker.execute("EXISTS", key) == 1


def test_a_cluster_has_one_database(
    nodes: tuple[RedisServer, RedisServer], name: dict[str, str], new_bus: NewBus
) -> None:
    name["bus.test"] = nodes[0].address
    nodes[0].user("any", PASSWORD, "+@all", "~*")
    bus = new_bus(nodes[0].url(user="any", password=PASSWORD, host="bus.test", db=1))
    assert "only the database 0" in failure(bus.top)


# -- who may -------------------------------------------------------------------------------------------------------


def test_the_smallest_rights_are_enough(server: RedisServer, new_bus: NewBus) -> None:
    server.user("bgpool", PASSWORD, *RIGHTS.split())
    server.require_password()
    server.execute("ACL", "LOG", "RESET")
    bus = new_bus(server.url(user="bgpool", password=PASSWORD))
    bus.publish(7, 0, b"")
    bus.publish(7, 1, b"")
    bus.report(b"")
    assert len(bus.read((0, 0), 0.1, "0").entries) == 2
    assert (bus.top(), len(bus.reports(5))) == (Entry(7, 1, b""), 1)
    assert server.execute("ACL", "LOG") == [], "nothing was tried that it takes more for"
    assert PASSWORD not in repr(bus)


def test_who_is_not_let_in(server: RedisServer, new_bus: NewBus) -> None:
    server.user("bgpool", PASSWORD, *RIGHTS.split())
    server.require_password()
    assert "requires a password" in failure(new_bus(server.url()).top)
    for user, password in (("bgpool", "s3cret"), ("nobody", PASSWORD)):
        said = failure(new_bus(server.url(user=user, password=password)).top)
        assert "refuses the user or the password" in said
    assert "has no password for the default user" in failure(new_bus(server.url(password=PASSWORD)).top)


def test_who_may_too_little(server: RedisServer, new_bus: NewBus) -> None:
    server.user("reader", PASSWORD, "+xread", "%R~bgpool:*")
    server.user("other", PASSWORD, "+@all", "~other:*")
    reader = new_bus(server.url(user="reader", password=PASSWORD))
    assert reader.read((0, 0), 0.0) == ReadResult([], [])
    for call, command in (((reader.publish, 7, 0, b""), "XADD"), ((reader.top,), "XREVRANGE")):
        said = failure(*call)
        assert f"does not let the user run {command}" in said
        assert RIGHTS in said
    assert reader.read((0, 0), 0.0) == ReadResult([], []), "it is no reason to hang up"
    said = failure(new_bus(server.url(user="other", password=PASSWORD)).top)
    assert "does not let the user run XREVRANGE" in said
    said = failure(new_bus(server.url(user="reader", password=PASSWORD, db=1)).top)
    assert "does not let the user run SELECT" in said


def test_a_user_who_is_deleted_or_gets_another_password(server: RedisServer, new_bus: NewBus) -> None:
    server.user("bgpool", PASSWORD, *RIGHTS.split())
    bus = new_bus(server.url(user="bgpool", password=PASSWORD))
    bus.top()
    server.execute("ACL", "DELUSER", "bgpool")
    assert "hung up" in failure(bus.top)
    assert "refuses the user or the password" in failure(bus.top)
    server.user("bgpool", PASSWORD, *RIGHTS.split())
    bus.top()


class Tokens:
    """Makes a new password for each connection, one that the server knows."""

    server: RedisServer
    made: list[tuple[str, int, str]]
    good = True

    def __call__(self, host: str, port: int, user: str) -> str:
        self.made.append((host, port, user))
        token = f"s3cret-{len(self.made)}"
        if self.good:
            self.server.user(user, token, *RIGHTS.split())
        return token


class Failing:
    def __call__(self, *_: object) -> str:
        raise RuntimeError("s3cret")


def test_a_callable_makes_a_password_for_each_connection(
    server: RedisServer, new_bus: NewBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokens, "server", server, raising=False)
    monkeypatch.setattr(Tokens, "made", [], raising=False)
    bus = new_bus(server.url(user="iam"), password=Tokens())
    bus.publish(7, 0, b"")
    bus.top()
    assert Tokens.made == [(server.address, server.port, "iam")]
    bus.close()
    bus.top()
    assert len(Tokens.made) == 2
    bus.close()
    monkeypatch.setattr(Tokens, "good", False)
    assert "refuses the user or the password" in failure(bus.top)
    monkeypatch.setattr(Tokens, "good", True)
    bus.top()
    assert len(Tokens.made) == 4
    failing = new_bus(server.url(user="iam"), password=Failing())
    assert "the password callable failed for iam@" in failure(failing.top)


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server() -> Iterator[RedisServer]:
    with RedisServer(tls=["bus.test", "*.cluster.test"]) as server:
        yield server


def test_tls_proves_the_name(tls_server: RedisServer, name: dict[str, str], new_bus: NewBus) -> None:
    tls_server.user("bgpool", PASSWORD, *RIGHTS.split())
    name.update({"bus.test": tls_server.address, "wrong.test": tls_server.address})

    def of(host: str, options: str = "") -> StreamBus:
        return new_bus(tls_server.url(user="bgpool", password=PASSWORD, host=host, options=options))

    bus = of("bus.test")
    bus.publish(7, 0, b"")
    assert bus.read((7, 0), 0.1) == ReadResult([], [])
    assert bus.top() == Entry(7, 0, b"")
    assert "its certificate is refused: Hostname mismatch" in failure(of("wrong.test").top)
    assert of("wrong.test", "ssl_check_hostname=false").top() == Entry(7, 0, b"")


def test_tls_with_another_authority(
    tls_server: RedisServer, name: dict[str, str], new_bus: NewBus, tmp_path: Path
) -> None:
    name["bus.test"] = tls_server.address
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    right = f"ssl_ca_certs={tls_server.ca_file}"
    url = tls_server.url(host="bus.test", user="bgpool", password=PASSWORD)
    said = failure(new_bus(url.replace(right, f"ssl_ca_certs={other}")).top)
    assert "its certificate is refused" in said
    # The system's authorities do not know it either, and redis-py 5 would not have looked at the name.
    assert "its certificate is refused" in failure(new_bus(url.replace(right, "")).top)
    said = failure(new_bus(url.replace(right, "ssl_ca_certs=/nonexistent.pem")).top)
    assert "/nonexistent.pem cannot be used for TLS" in said
    unverified = new_bus(url.replace(right, "ssl_cert_reqs=none"))
    tls_server.user("bgpool", PASSWORD, *RIGHTS.split())
    unverified.top()


def test_tls_on_one_side_alone(tls_server: RedisServer, server: RedisServer, new_bus: NewBus) -> None:
    encrypting = new_bus(f"rediss://bgpool:s3cret@{server.address}:{server.port}")
    assert "cannot be reached over TLS" in failure(encrypting.top)
    plain = new_bus(f"redis://bgpool:s3cret@{tls_server.address}:{tls_server.port}")
    assert "needs rediss://" in failure(plain.top)


# -- the client ----------------------------------------------------------------------------------------------------


def test_options_of_the_url_have_no_effect(server: RedisServer, new_bus: NewBus) -> None:
    """redis-py lets them win over what a program asks for."""
    options = (
        "protocol=3&socket_timeout=30&socket_connect_timeout=30&health_check_interval=1&retry_on_timeout=true"
        "&retry_on_error=x&decode_responses=true&legacy_responses=false&client_name=x&max_connections=0"
    )
    server.user("bgpool", PASSWORD, *RIGHTS.split())
    bus = new_bus(server.url(user="bgpool", password=PASSWORD, options=options))
    bus.publish(7, 0, b"\xff")
    # Without the right to PING, a health check would fail.
    time.sleep(1.1)
    assert bus.read((0, 0), 0.0) == ReadResult([Entry(7, 0, b"\xff")], [])
    server.freeze()
    began = time.monotonic()
    assert "within 1 s" in failure(bus.top)
    assert time.monotonic() - began < 15
    server.thaw()
    bus.top()


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bgpool.fleet.connection", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    said = failure(StreamBus, FleetConfig("redis://bus:7/", trust=True), "ledger")
    assert "pip install 'bgpool[fleet]'" in said


def test_a_url_that_is_none() -> None:
    assert "redis://" in failure(StreamBus, FleetConfig("http://u:s3cret@bus", trust=True), "ledger")
    config = FleetConfig(f"redis://u:{PASSWORD}@bus", trust=True)
    assert "s3cret" not in repr(config)

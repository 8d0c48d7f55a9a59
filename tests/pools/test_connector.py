"""A connector opens connections for an owner that keeps them, and drains and cuts them like a pool."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError, PoolClosed, SwitchoverHoldTimeout, SwitchoverInterrupted
from bgpool.lab import Pair
from bgpool.pools.connector import Connector
from bgpool.registry import CONNECTORS, get_source
from bgpool.segment.table import Usage
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import drain
from tests.waiting import PATIENCE_S, wait_until

ENGINES = (Engine.POSTGRESQL, Engine.MYSQL)

MakeConnector = Callable[..., Connector[Any]]

pytestmark = pytest.mark.lab


def connect_held(connector: Connector[Any], deployment: Deployment) -> Any:
    """Return a connection for which a caller was held until the release."""
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(connector.connect()))
    caller.start()
    wait_until(lambda: connector.stats().held)
    deployment.phase(Phase.POST)
    caller.join(PATIENCE_S)
    (connection,) = found
    return connection


@pytest.fixture
def connector(make_connector: MakeConnector, deployment: Deployment) -> Iterator[Connector[Any]]:  # noqa:ARG001  # needed
    """A connector; the connections that it has opened are closed at the end."""
    connector, opened = make_connector(bg_drain_timeout_ms=1500), []
    connect = connector.connect

    def note(**kwargs: Any) -> Any:
        opened.append(connect(**kwargs))
        return opened[-1]

    connector.connect = note  # type: ignore[method-assign]  # calls the real one
    yield connector
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("grace_ms", [120_000, 300])
def test_idle_connections_are_cut_at_once_and_others_after_the_grace(
    make_connector: MakeConnector, kit: Kit, deployment: Deployment, grace_ms: int
) -> None:
    connector = make_connector(bg_drain_timeout_ms=grace_ms)
    busy, idle = connector.connect(), connector.connect()
    connector.in_use = lambda conn: conn is busy
    kit.write(busy)
    assert (connector.is_fit(busy), connector.is_fit(idle)) == (True, True)
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: idle.bgpool_cut)
    assert (connector.is_fit(busy), connector.is_fit(idle)) == (False, False)
    if grace_ms > 1000:
        assert not busy.bgpool_cut
        kit.read(busy)
        busy.commit()
    else:
        wait_until(lambda: busy.bgpool_cut)
    for connection in (busy, idle):
        connection.close()


def test_a_connection_that_becomes_idle_in_the_grace_is_cut(
    make_connector: MakeConnector, deployment: Deployment
) -> None:
    connector = make_connector(bg_drain_timeout_ms=120_000)
    connection, busy = connector.connect(), threading.Event()
    busy.set()
    connector.in_use = lambda _: busy.is_set()
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: not connector.is_fit(connection))
    busy.clear()
    wait_until(lambda: connection.bgpool_cut)
    connection.close()


def test_a_caller_is_held_before_it_connects_and_connects_to_green(
    connector: Connector[Any], kit: Kit, deployment: Deployment, pair: Pair
) -> None:
    kit.read(before := connector.connect())
    deployment.phase(Phase.IN_PROGRESS)
    after = connect_held(connector, deployment)
    assert kit.where(after) == pair.green.address
    assert (connector.is_fit(before), connector.is_fit(after)) == (False, True)


def test_a_hold_ends_at_its_timeout(make_connector: MakeConnector, deployment: Deployment) -> None:
    connector = make_connector(bg_connect_timeout_ms=50)
    deployment.phase(Phase.IN_PROGRESS)
    for held in (connector.wait_admitted, connector.connect, lambda: connector.wait_admitted(0.01)):
        with pytest.raises(SwitchoverHoldTimeout):
            held()
    assert connector.usage().failed == 3


@pytest.mark.usefixtures("deployment")
def test_the_timeout_applies_only_to_holds(make_connector: MakeConnector) -> None:
    make_connector().wait_admitted(0)
    # The timeout does not apply to the first connection, however long it takes: no caller is held.
    make_connector(bg_connect_timeout_ms=1).connect().close()


def test_an_attempt_that_a_switchover_ends_is_held(
    connector: Connector[Any], kit: Kit, deployment: Deployment, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector.wait_admitted()
    generation: Any = connector._generations.current
    real = connector._recipe.aconnect

    async def refused(*_: Any) -> Any:
        monkeypatch.setattr(connector._recipe, "aconnect", real)
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: generation.retired)
        raise kit.error("the database system is shutting down")

    monkeypatch.setattr(connector._recipe, "aconnect", refused)
    after = connect_held(connector, deployment)
    assert kit.where(after) == pair.green.address


def test_a_connection_opened_during_the_drain_is_drained(
    connector: Connector[Any], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector.wait_admitted()
    generation: Any = connector._generations.current
    open_it, retire, draining, opened = (
        connector._recipe.aconnect,
        generation.retire,
        threading.Event(),
        threading.Event(),
    )

    async def slowly(*args: Any) -> Any:
        connection = await open_it(*args)
        deployment.phase(Phase.IN_PROGRESS)
        draining.wait(PATIENCE_S)
        return connection

    def later(*args: Any) -> None:
        draining.set()
        opened.wait(0.1)
        retire(*args)

    monkeypatch.setattr(connector._recipe, "aconnect", slowly)
    monkeypatch.setattr(generation, "retire", later)
    found: list[Any] = []

    def call() -> None:
        found.append(connector.connect())
        opened.set()

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: found or connector.stats().held)
    wait_until(lambda: not found or found[0].bgpool_cut)
    monkeypatch.setattr(connector._recipe, "aconnect", open_it)
    deployment.phase(Phase.POST)
    caller.join(PATIENCE_S)


def test_owners_may_come_and_go_while_connections_are_counted() -> None:
    class Owner:
        pass

    connector, over = bgpool.get_connector("postgresql://app@10.0.0.1/owners"), threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            owners = [Owner() for _ in range(50)]
            for owner in owners:
                connector.set_owner_size(owner, 1)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        sys.setswitchinterval(1e-6)
        until_then = time.monotonic() + 0.3
        while time.monotonic() < until_then:
            assert 0 <= connector.max_size <= 100
    finally:
        sys.setswitchinterval(interval)
        over.set()
        thread.join()


def test_after_a_rollback_connections_are_blues(
    connector: Connector[Any], kit: Kit, deployment: Deployment, pair: Pair
) -> None:
    kit.write(kept := connector.connect())
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: not connector.is_fit(kept))
    deployment.roll_back()
    kit.read(kept)
    kept.commit()
    another = connector.connect()
    assert kit.where(another) == pair.blue.address
    assert connector.is_fit(another)


def test_a_transaction_on_a_drained_connection_is_interrupted(
    connector: Connector[Any], kit: Kit, deployment: Deployment
) -> None:
    kept = connector.connect()
    drain(deployment, kept)
    deployment.phase(Phase.POST)
    with pytest.raises(SwitchoverInterrupted):
        kit.read(kept)


def test_in_use_is_called_without_a_lock(connector: Connector[Any], deployment: Deployment) -> None:
    """The owner may take a lock in this call, and may call the connector while it has that lock."""
    lock, connection, free = connector._generations._lock, connector.connect(), []

    def in_use(_conn: object) -> bool:
        free.append(lock.acquire(timeout=5.0))
        if free[-1]:
            lock.release()
        return True

    connector.in_use = in_use
    connector.usage()
    connector.stats()
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: not connector.is_fit(connection))
    connector.drain()
    assert free
    assert all(free)


def test_an_owner_whose_in_use_fails_stops_no_other(
    connector: Connector[Any], deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connections count as in use; the watcher's thread, which serves all pools, continues."""

    def fails(_conn: object) -> bool:
        raise KeyError("no such connection")

    connection = connector.connect()
    connector.in_use = fails
    assert (connector.usage().in_use, connector.stats().idle) == (1, 0)
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: connection.bgpool_cut)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in lines if "in_use" in line] == [
        f"[bg_id: '1'] in_use of {connector.name} failed, its connections count as in use: "
        "KeyError('no such connection')"
    ]
    assert not [line for line in lines if "the watcher failed" in line]


def test_drain_makes_all_unfit(connector: Connector[Any], kit: Kit) -> None:
    kit.read(busy := connector.connect())
    idle = connector.connect()
    connector.in_use = lambda conn: conn is busy
    connector.drain()
    assert idle.bgpool_cut
    assert not connector.is_fit(busy)
    kit.write(busy)
    busy.commit()
    assert connector.is_fit(connector.connect())


def test_a_closed_connector_does_not_connect(connector: Connector[Any]) -> None:
    connection = connector.connect()
    connector.close()
    assert not connector.is_fit(connection)
    for refused in (connector.wait_admitted, connector.connect):
        with pytest.raises(PoolClosed):
            refused()


def test_the_counts_equal_those_of_a_pool(connector: Connector[Any]) -> None:
    class Owner:
        pass

    busy, idle = connector.connect(), connector.connect()
    connector.in_use = lambda conn: conn is busy
    connector.set_owner_size(owner := Owner(), 15)
    connector.set_owner_size(another := Owner(), 5)
    usage: Usage = connector.usage()
    assert (usage.idle, usage.in_use, usage.served, usage.max_size, usage.taking_part) == (1, 1, 2, 20, 1)
    stats = connector.stats()
    assert (stats.size, stats.idle, stats.phase) == (2, 1, Phase.CREATED)
    connector.checkouts = 30
    del another
    gc.collect()
    assert (connector.usage().served, connector.max_size) == (30, 15)
    assert f"<{type(connector).__name__} {connector.name} bg_id='1' <Generation epoch=" in repr(connector)
    assert owner is not None
    busy.close()
    idle.close()
    assert (connector.usage().in_use, connector.usage().idle) == (0, 0)


def test_parameters_of_one_connection_are_used(connector: Connector[Any], kit: Kit) -> None:
    name = "user" if kit.engine is Engine.MYSQL else "dbname"
    with pytest.raises(kit.error):
        connector.connect(**{name: "nobody-has-that-name"})
    assert connector.usage().failed == 1
    connection = connector.connect()
    assert connector.is_fit(connection)


@pytest.mark.usefixtures("deployment")
def test_a_collected_connection_warns(make_connector: MakeConnector, kit: Kit, pair: Pair) -> None:
    connector, before = make_connector(), kit.count_sessions(pair)
    with pytest.warns(ResourceWarning, match="was collected without being returned or closed"):
        connector.connect()
    wait_until(lambda: kit.count_sessions(pair) == before)


def test_a_child_leaves_its_parents_connections_alone(connector: Connector[Any], kit: Kit) -> None:
    kit.read(mine := connector.connect())
    mine.rollback()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            assert not connector.is_fit(mine)
            mine.close()
            own = connector.connect()
            assert kit.session(own) != kit.session(mine) if kit.engine is Engine.MYSQL else kit.read(own) >= 0
            own.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert connector.is_fit(mine)
    kit.read(mine)
    mine.close()


def test_equal_arguments_share_a_connector_and_pool_options_are_refused() -> None:
    dsn = "postgresql://app@10.0.0.1/app"
    connector = bgpool.get_connector(dsn, bg_id="ledger")
    assert bgpool.get_connector(dsn, bg_id="ledger") is connector
    assert isinstance(connector, bgpool.Connector)
    with pytest.raises(ValueError, match="was not opened by <PostgresConnector"):
        connector.is_fit(object())
    pool: object = bgpool.get_pool(dsn, bg_id="ledger")
    assert pool is not connector
    with pytest.raises(
        ConfigurationError, match=r"unknown parameter 'min_size'.*the connector's connection_class, kwargs"
    ):
        bgpool.get_connector(dsn, min_size=3)
    with pytest.raises(ConfigurationError, match=r"unknown parameter 'max_size'.*the connector's kwargs"):
        bgpool.get_connector("mysql://app@10.0.0.1/app", max_size=3)
    bgpool.get_pool(dsn, bg_id="ledger").close()
    connector.close()


def test_parameters_cannot_lead_to_another_server(connector: Connector[Any]) -> None:
    """Observed without this: PostgreSQL ignored a host and used its own under that name; MySQL raised a TypeError."""
    for name, value in {"host": "x", "hostaddr": "127.0.0.9", "port": 1, "unix_socket": "/x", "conninfo": ""}.items():
        with pytest.raises(ConfigurationError, match=f"^{name}: a connector goes to one endpoint"):
            connector.connect(**{name: value})


def test_a_failure_to_connect_is_freed_with_its_last_reference() -> None:
    """An error that waits for the collector keeps the frames of its callers alive, and all their objects."""
    connector = get_source(CONNECTORS, "postgresql://app@127.0.0.1:1/app", None, {}, takes_part=False)
    gc.disable()
    try:
        try:
            connector.connect()
        except psycopg.OperationalError as error:
            failed = weakref.ref(error)
        assert failed() is None
    finally:
        gc.enable()
        connector.close()

"""Every pool of SQLAlchemy's: held before a slot is taken, and nothing stale is handed out, whatever the clock does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, pool, text
from sqlalchemy.exc import OperationalError

from bgpool.core.phase import Phase
from bgpool.errors import GreenHostRejected, SwitchoverHoldTimeout
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.greenlets import start
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.lab

ASYNCIO = True

MakeEngine = Callable[..., sqlalchemy.Engine]


class OwnPool(pool.QueuePool):
    """A pool class of a user's."""


KINDS = [pool.QueuePool, pool.NullPool, pool.StaticPool, pool.SingletonThreadPool, pool.AssertionPool, OwnPool]


def where(kit: Kit, engine: sqlalchemy.Engine) -> str:
    with engine.connect() as connection:
        return kit.where(connection.connection.dbapi_connection)


class Caller:
    """Checks out a connection in a thread or task of its own, and notes what came of it, and when."""

    def __init__(self, kit: Kit, engine: sqlalchemy.Engine) -> None:
        self._kit, self._engine = kit, engine
        self.began = time.monotonic()
        self._join = start(self._run)

    def _run(self) -> None:
        try:
            self.found: Any = where(self._kit, self._engine)
        except Exception as error:
            self.found = error
        self.took_s = time.monotonic() - self.began

    def result(self) -> Any:
        self._join(PATIENCE_S)
        return self.found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_held_and_leads_to_green(
    kind: type[pool.Pool], kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(poolclass=kind)
    assert isinstance(engine.pool, kind)
    assert where(kit, engine) == pair.blue.address
    deployment.phase(Phase.IN_PROGRESS)
    caller = Caller(kit, engine)
    deployment.wait_held(1)
    deployment.release()
    assert caller.result() == pair.green.address
    assert where(kit, engine) == pair.green.address
    assert isinstance(engine.pool.recreate(), type(engine.pool))
    engine.dispose()
    assert where(kit, engine) == pair.green.address


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_clock_that_steps_back_hands_out_nothing_stale(
    kind: type[pool.Pool],
    kit: Kit,
    pair: Pair,
    make_engine: MakeEngine,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(poolclass=kind)
    assert where(kit, engine) == pair.blue.address
    monkeypatch.setattr("sqlalchemy.pool.base.time.time", lambda real=time.time: real() - 3600)
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    assert where(kit, engine) == pair.green.address


def test_a_class_that_is_not_sqlalchemys_is_warned_of_once(
    make_engine: MakeEngine, kit: Kit, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(pool.QueuePool):
        pass

    with caplog.at_level(logging.WARNING, "bgpool"):
        engine = make_engine(poolclass=Own, pool_size=1, max_overflow=0)
        make_engine(poolclass=Own)
    (record,) = [record for record in caplog.records if "Own" in record.getMessage()]
    assert "a caller that is held in a switchover takes a place in the pool" in record.getMessage()
    # And so it is.
    with engine.connect():
        pass
    deployment.phase(Phase.IN_PROGRESS)
    caller = Caller(kit, engine)
    deployment.wait_held(1)
    assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]  # a QueuePool
    deployment.release()
    caller.result()


def test_a_hold_ends_with_an_operational_error(make_engine: MakeEngine, kit: Kit, deployment: Deployment) -> None:
    engine = make_engine(bg_connect_timeout_ms=200)
    deployment.phase(Phase.IN_PROGRESS)
    began = time.monotonic()
    with pytest.raises(OperationalError) as caught, engine.connect():
        pass
    assert 0.2 <= time.monotonic() - began < 20
    assert isinstance(caught.value.orig, SwitchoverHoldTimeout)
    assert isinstance(caught.value.orig, kit.error)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool
    deployment.roll_back()
    assert where(kit, engine)


def test_green_is_rejected_with_an_operational_error(
    make_engine: MakeEngine, url: sqlalchemy.URL, pair: Pair, deployment: Deployment
) -> None:
    engine = make_engine(url=url.set(host=pair.names.green.primary))
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    with pytest.raises(OperationalError) as caught, engine.connect():
        pass
    assert isinstance(caught.value.orig, GreenHostRejected)


def test_after_a_rollback_it_leads_to_blue(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine()
    where(kit, engine)
    deployment.phase(Phase.IN_PROGRESS)
    caller = Caller(kit, engine)
    deployment.wait_held(1)
    deployment.roll_back()
    assert caller.result() == pair.blue.address


def test_who_waits_for_a_slot_when_a_switchover_begins_waits_again_after_it(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=2.0, bg_drain_timeout_ms=60_000)
    with engine.connect() as busy:
        busy.execute(text("SELECT 1"))
        caller = Caller(kit, engine)
        time.sleep(0.7)
        deployment.phase(Phase.IN_PROGRESS)
        deployment.wait_held(1)
    deployment.release()
    assert caller.result() == pair.green.address
    assert caller.took_s > 2.0


def test_who_waits_for_a_slot_waits_again_where_those_before_him_have_been_held(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=2.0)
    where(kit, engine)
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    with engine.connect():
        engine.dialect.bgpool_replaced_at += 5  # type: ignore[attr-defined]  # bgpool's; however slow the machine
        caller = Caller(kit, engine)
        # The first wait fails; the second one ends 1.5 s after the slot is free.
        time.sleep(2.5)
    assert caller.result() == pair.green.address


def test_without_a_switchover_pool_timeout_is_what_it_was(kit: Kit, make_engine: MakeEngine) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    with engine.connect():
        caller = Caller(kit, engine)
        assert isinstance(caller.result(), sqlalchemy.exc.TimeoutError)
    assert 0.2 <= caller.took_s < 20


def test_a_thread_that_uses_its_connection_is_not_held_for_it(
    kit: Kit, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(poolclass=pool.SingletonThreadPool, bg_drain_timeout_ms=60_000, bg_connect_timeout_ms=300)
    with engine.connect() as outer:
        kit.write(outer.connection.dbapi_connection)
        deployment.phase(Phase.IN_PROGRESS)
        with engine.connect() as inner:
            assert inner.connection.dbapi_connection is outer.connection.dbapi_connection
        outer.rollback()


@pytest.mark.parametrize("pre_ping", [False, True])
def test_a_connection_that_has_since_been_killed(
    kit: Kit, pair: Pair, make_engine: MakeEngine, *, pre_ping: bool
) -> None:
    engine = make_engine(pool_pre_ping=pre_ping)
    with engine.connect() as connection:
        session = kit.session(connection.connection.dbapi_connection)
    kit.kill(pair, session)
    if pre_ping:
        assert where(kit, engine) == pair.blue.address
        return
    with pytest.raises(OperationalError) as caught, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert caught.value.connection_invalidated
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_what_was_invalidated_by_hand_or_recycled_is_closed(kit: Kit, pair: Pair, make_engine: MakeEngine) -> None:
    engine = make_engine(pool_recycle=3600)
    before = kit.count_sessions(pair)
    with engine.connect() as connection:
        connection.invalidate()
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    wait_until(lambda: kit.count_sessions(pair) == before + 1)
    assert engine.dialect.bgpool_connector.stats().size == 1  # type: ignore[attr-defined]  # bgpool's


def test_a_detached_connection_counts_as_in_use(kit: Kit, make_engine: MakeEngine, deployment: Deployment) -> None:
    engine = make_engine(bg_drain_timeout_ms=60_000)
    connection = engine.connect()
    kit.write(connection.connection.dbapi_connection)
    connection.detach()
    stats = engine.dialect.bgpool_connector.stats()  # type: ignore[attr-defined]  # bgpool's
    assert (stats.size, stats.idle) == (1, 0)
    deployment.phase(Phase.IN_PROGRESS)
    time.sleep(0.3)
    assert connection.execute(text("SELECT 1")).scalar_one() == 1
    connection.close()
    assert engine.dialect.bgpool_connector.stats().size == 0  # type: ignore[attr-defined]  # bgpool's


def test_idle_connections_are_cut_at_once_and_others_after_the_grace(
    kit: Kit, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(bg_drain_timeout_ms=60_000)
    busy, other = engine.connect(), engine.connect()
    kit.write(busy.connection.dbapi_connection)
    using: Any = busy.connection.driver_connection
    idle: Any = other.connection.driver_connection
    other.close()
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: idle.bgpool_cut)
    assert not using.bgpool_cut
    busy.rollback()
    busy.close()


def test_who_shares_a_static_pools_connection_has_the_grace(
    kit: Kit, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(poolclass=pool.StaticPool, bg_drain_timeout_ms=60_000)
    one, other = engine.connect(), engine.connect()
    other.close()
    kit.write(one.connection.dbapi_connection)
    using: Any = one.connection.driver_connection
    deployment.phase(Phase.IN_PROGRESS)
    time.sleep(0.2)
    assert not using.bgpool_cut
    one.close()


def test_the_row_says_how_many_connections_there_may_be(make_engine: MakeEngine) -> None:
    def most(**options: Any) -> int:
        connector: Any = make_engine(**options).dialect.bgpool_connector  # type: ignore[attr-defined]  # bgpool's
        return int(connector.max_size)

    assert most(bg_id="a") == 15
    assert most(bg_id="b", pool_size=3, max_overflow=2) == 5
    assert most(bg_id="b") == 20
    assert most(bg_id="c", max_overflow=-1) == 0
    assert most(bg_id="d", poolclass=pool.NullPool) == 0
    assert most(bg_id="e", poolclass=pool.StaticPool) == 1
    assert most(bg_id="f", poolclass=pool.AssertionPool) == 1
    assert most(bg_id="g", poolclass=pool.SingletonThreadPool, pool_size=3) == 3


@pytest.mark.parametrize("kind", [pool.QueuePool, OwnPool], ids=lambda kind: kind.__name__)
def test_checkouts_are_counted(kind: type[pool.Pool], make_engine: MakeEngine) -> None:
    engine = make_engine(poolclass=kind)
    for _ in range(3):
        with engine.connect():
            pass
    assert engine.dialect.bgpool_connector.usage().served == 3  # type: ignore[attr-defined]  # bgpool's


def test_a_slot_is_free_again_where_a_listener_fails_on_a_stale_connection(
    kit: Kit, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.1)
    where(kit, engine)
    event.listen(engine, "invalidate", lambda *_: 1 / 0)
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    with pytest.raises(ZeroDivisionError), engine.connect():
        pass
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool


def test_a_slot_is_free_again_after_an_interrupt(
    kit: Kit, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.1)
    where(kit, engine)

    def interrupted(_connection: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect.bgpool_connector, "is_fit", interrupted)  # type: ignore[attr-defined]  # bgpool's
        with pytest.raises(KeyboardInterrupt):
            engine.connect()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool
    where(kit, engine)

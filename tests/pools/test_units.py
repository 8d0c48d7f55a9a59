"""Units of work on real servers: cut before COMMIT, called again, and never applied twice."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

import psycopg
import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.events import Resolved
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import EPOCH_OF_DECISION, Snapshot
from bgpool.lab import Pair
from bgpool.monitor.probe import now
from bgpool.pools.mysql.recipe import like
from bgpool.pools.pool import Pool
from bgpool.pools.source import ConnectionSource
from bgpool.testing import Deployment
from tests.engines import ASYNC_POOL, Kit
from tests.pools.callers import drain, wait_until
from tests.pools.conftest import Work
from tests.pools.proxy import CommitCutter

if TYPE_CHECKING:
    from psycopg import Connection

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]


# -- before COMMIT -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
def test_a_unit_cut_before_its_commit_is_called_again(kit: Kit, make_runner: MakePool, pair: Pair, work: Work) -> None:
    def cut(conn: Any) -> None:
        if work.calls == 1:
            pair.blue.cut_clients()
            kit.execute(conn, "SELECT 1")

    work.meanwhile = cut
    assert make_runner().run(work) == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
def test_a_cut_that_the_function_swallowed_is_no_success(
    kit: Kit, make_runner: MakePool, pair: Pair, work: Work
) -> None:
    def cut(conn: Any) -> None:
        if work.calls == 1:
            pair.blue.cut_clients()
            with contextlib.suppress(kit.error):
                kit.execute(conn, "SELECT 1")

    work.meanwhile = cut
    assert make_runner().run(work) == "call 2"
    assert work.rows(pair) == 1


class Stop(BaseException):
    """An exception that no handler of errors catches."""


@pytest.mark.parametrize("own", [ZeroDivisionError, Stop])
@pytest.mark.parametrize("by_server", [False, pytest.param(True, marks=pytest.mark.full)], ids=["", "by-the-server"])
def test_a_function_that_fails_by_itself_is_not_called_again_though_its_connection_was_cut(
    kit: Kit,
    make_runner: MakePool,
    pair: Pair,
    deployment: Deployment,
    work: Work,
    own: type[BaseException],
    by_server: bool,
) -> None:
    """Its own error reaches the caller, not the error of the rollback, which cannot be sent."""

    def fail(conn: Any) -> None:
        drivers = kit.drivers(conn)
        drain(deployment, drivers)
        if by_server:
            pair.blue.cut_clients()
        else:
            drivers.bgpool_generation.cut()
        raise own

    work.meanwhile = fail
    with pytest.raises(own):
        make_runner().run(work, timeout=10.0)
    assert work.calls == 1


@pytest.mark.usefixtures("prepared")
def test_a_unit_waits_while_blue_is_read_only(make_runner: MakePool, pair: Pair, work: Work) -> None:
    pool = make_runner()
    pair.blue.set_read_only(True)

    def unit(conn: Any) -> str:
        if work.calls == 2:
            pair.blue.set_read_only(False)
        return work(conn)

    try:
        pool.run(unit)
    finally:
        pair.blue.set_read_only(False)
    assert work.calls > 2
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
def test_a_refusal_counts_even_if_blue_accepts_writes_again(
    kit: Kit, make_runner: MakePool, pair: Pair, work: Work
) -> None:
    """PostgreSQL keeps a running transaction read-only although the server accepts writes again."""

    def unit(conn: Any) -> str:
        if work.calls == 0:
            kit.execute(conn, "SELECT 1")
            pair.blue.set_read_only(False)
        return work(conn)

    pool = make_runner()
    pair.blue.set_read_only(True)
    try:
        pool.run(unit)
    finally:
        pair.blue.set_read_only(False)
    assert work.calls == (2 if kit.engine is Engine.POSTGRESQL else 1)
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("deployment")
def test_a_cut_that_no_switchover_explains_yet_is_tried_again_for_a_while(
    kit: Kit, make_pool: MakePool, pair: Pair, work: Work
) -> None:
    work.meanwhile = lambda conn: (pair.blue.cut_clients(), kit.execute(conn, "SELECT 1"))
    began = time.monotonic()
    with pytest.raises(kit.error):
        make_pool().run(work)
    assert 5 < time.monotonic() - began < 25
    assert work.calls > 1
    assert work.rows(pair) == 0


def test_without_a_deployment_a_cut_raises_the_drivers_error(
    kit: Kit, make_pool: MakePool, pair: Pair, work: Work
) -> None:
    work.meanwhile = lambda conn: (pair.blue.cut_clients(), kit.execute(conn, "SELECT 1"))
    with pytest.raises(kit.error):
        make_pool().run(work)
    assert work.calls == 1


def test_a_unit_that_slept_through_the_switchover_and_the_end_of_the_deployment_is_called_again(
    kit: Kit, deployment: Deployment, make_runner: MakePool, pair: Pair, work: Work
) -> None:
    """A host that was frozen, or suspended, wakes when the deployment is already deleted."""

    def sleep(conn: Any) -> None:
        if work.calls == 1:
            deployment.phase(Phase.NOT_CREATED)
            pair.blue.cut_clients()
            kit.execute(conn, "SELECT 1")

    work.meanwhile = sleep
    assert make_runner().run(work) == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.parametrize("ends", ["POST", "COMPLETED", "rolled back"])
def test_a_unit_that_slept_through_the_switchover_commits_nothing_on_its_connection_from_before(
    deployment: Deployment, make_runner: MakePool, pair: Pair, work: Work, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection was not cut yet. Its COMMIT would be lost with old blue, or in doubt and without a trace."""
    monkeypatch.setattr(ConnectionSource, "apply", lambda *_: None)
    # The server of the second attempt.
    green = deployment.snapshot.hosts_of(Role.TARGET)[0].name
    deployment.tell(Resolved(now(), {green: (pair.blue.address,)}))

    def sleep(_conn: Any) -> None:
        if work.calls == 1:
            deployment.phase(Phase.PREPARATION)
            deployment.phase(Phase.IN_PROGRESS)
            if ends == "rolled back":
                deployment.roll_back()
                return
            deployment.phase(Phase.POST)
            if ends == "COMPLETED":
                deployment.phase(Phase.COMPLETED)

    work.meanwhile = sleep
    assert make_runner().run(work) == ("call 1" if ends == "rolled back" else "call 2")
    assert work.rows(pair) == 1


@pytest.mark.parametrize("begun", [Phase.CREATED, Phase.PREPARATION])
def test_a_cut_in_a_switchover_is_recognized_after_the_deployment_was_deleted(
    kit: Kit, deployment: Deployment, make_pool: MakePool, pair: Pair, work: Work, begun: Phase
) -> None:
    pool = make_pool(max_size=1)
    deployment.phase(begun)
    with pytest.raises(bgpool.SwitchoverInterrupted), pool.connection() as conn:
        work(conn)
        # In one step, as seen by a process that was frozen during the switchover.
        missed = 0 if begun is Phase.PREPARATION else 2 * EPOCH_OF_DECISION
        deployment._publish(Snapshot(deployment.bg_id, epoch=deployment.snapshot.epoch + missed))
        wait_until(lambda: pool.stats().phase is Phase.NOT_CREATED)
        pair.blue.cut_clients()
        kit.execute(conn, "SELECT 1")
    with pytest.raises(kit.error) as caught, pool.connection() as conn:
        kit.read(conn)
        kit.kill(pair, kit.session(conn))
        kit.execute(conn, "SELECT 1")
    assert not isinstance(caught.value, bgpool.Error), "the connection was opened later: no switchover cut it"


@pytest.mark.usefixtures("prepared")
def test_a_unit_with_an_unknown_outcome_elsewhere_is_not_repeated(make_runner: MakePool, work: Work) -> None:
    def commit_elsewhere(_conn: Any) -> None:
        raise like(None, bgpool.CommitOutcomeUnknown, "another database's COMMIT was cut")

    work.meanwhile = commit_elsewhere
    with pytest.raises(bgpool.CommitOutcomeUnknown):
        make_runner().run(work)
    assert work.calls == 1


@pytest.mark.usefixtures("prepared")
def test_a_unit_ends_at_its_timeout(kit: Kit, make_runner: MakePool, pair: Pair, work: Work) -> None:
    work.meanwhile = lambda conn: (pair.blue.cut_clients(), kit.execute(conn, "SELECT 1"))
    began = time.monotonic()
    with pytest.raises((bgpool.SwitchoverInterrupted, kit.error)):
        make_runner().run(work, timeout=1.0)
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    "error",
    [ValueError("mine"), StopIteration("mine"), psycopg.ProgrammingError("its"), pymysql.err.IntegrityError("its")],
)
def test_errors_of_the_function_are_its_own(
    kit: Kit, make_runner: MakePool, pair: Pair, work: Work, error: Exception
) -> None:
    if (kit.in_greenlet or kit is ASYNC_POOL) and isinstance(error, StopIteration):
        pytest.skip("no coroutine raises it")

    def fail(_conn: Any) -> None:
        raise error

    work.meanwhile = fail
    with pytest.raises(type(error)):
        make_runner().run(work)
    assert work.calls == 1
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
def test_the_function_must_not_end_the_transaction(kit: Kit, make_runner: MakePool, work: Work) -> None:
    for end in (lambda conn: conn.commit(), lambda conn: conn.rollback(), lambda conn: kit.execute(conn, "COMMIT")):
        work.meanwhile = end
        with pytest.raises(kit.programming_error):
            make_runner().run(work)


@pytest.mark.usefixtures("prepared")
@pytest.mark.usefixtures("deployment")
def test_decorated_functions_are_called_without_a_connection(make_pool: MakePool, pair: Pair, work: Work) -> None:
    @bgpool.transactional(make_pool())
    def place_order(conn: Any, item: str, *, count: int = 1) -> str:
        """Write an order down."""
        return f"{count} {item}: {work(conn)}"

    assert place_order("tea", count=2) == "2 tea: call 1"
    assert (place_order.__name__, place_order.__doc__) == ("place_order", "Write an order down.")
    assert work.rows(pair) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.threads
def test_an_asynchronous_function_is_refused(make_pool: MakePool) -> None:
    """It would run after its transaction, on a connection that another caller has by then."""
    pool = make_pool()

    @bgpool.transactional(pool)
    async def place_order(conn: Any) -> None:
        conn.execute("SELECT 1")

    for call in (place_order, lambda: pool.run(place_order.__wrapped__)):  # type: ignore[attr-defined]  # functools.wraps
        with pytest.raises(TypeError, match="place_order is asynchronous"):
            call()


@pytest.mark.threads
def test_a_generator_function_is_refused(kit: Kit, make_pool: MakePool) -> None:
    """Its body would run after its transaction; a generator of rows already read is a valid result."""
    pool = make_pool()

    @bgpool.transactional(pool)
    def rows(conn: Any) -> Any:
        yield from kit.execute(conn, "SELECT 1")

    class Rows:
        def __call__(self, conn: Any) -> Any:
            yield from kit.execute(conn, "SELECT 1")

    def doubled(conn: Any) -> Any:
        return (2 * row[0] for row in kit.execute(conn, "SELECT 1"))

    bare: Any = rows.__wrapped__  # type: ignore[attr-defined]  # functools.wraps
    calls: list[Any] = [
        rows,
        *(partial(pool.run, one) for one in (bare, partial(partial(bare)), Rows(), Rows().__call__)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"(rows|__call__) is a generator"):
            call()
    assert list(pool.run(doubled)) == [2]


def test_decorated_coroutine_functions_stay_coroutine_functions(postgres_pair: Pair) -> None:
    """Frameworks check for coroutine functions, and await a decorated unit."""
    pool = bgpool.get_async_pool(postgres_pair.dsn, bg_resolver=postgres_pair.resolver)

    @bgpool.transactional(pool)
    async def count(conn: psycopg.AsyncConnection[Any], item: str, *, times: int = 1) -> str:
        """Count."""
        cursor = await conn.execute("SELECT pg_backend_pid(), now() = statement_timestamp()")
        assert await cursor.fetchone() is not None
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        return times * item

    def plain(conn: psycopg.AsyncConnection[Any]) -> None:
        """Return without awaiting."""

    async def main() -> None:
        async with pool:
            assert await count("tea", times=2) == "teatea"
            with pytest.raises(TypeError, match=r"plain.* returned None"):
                await bgpool.transactional(pool)(plain)()  # type: ignore[arg-type]  # the case under test

    assert inspect.iscoroutinefunction(count)
    assert (count.__name__, count.__doc__) == ("count", "Count.")
    assert str(inspect.signature(count)) == "(item: 'str', *, times: 'int' = 1) -> 'str'"
    asyncio.run(main())


def test_frameworks_see_the_signature_of_the_callers() -> None:
    """If the connection were part of the signature, FastAPI would expect it in the request and answer 422."""
    pool = bgpool.get_pool("postgresql://app@127.0.0.1:1/app")

    @bgpool.transactional(pool)
    def place_order(conn: Connection[Any], item: str = "tea", *, count: int) -> str:
        return f"{conn} {count} {item}"

    @bgpool.transactional(pool)
    def anything(*args: object) -> str:
        return str(args)

    assert str(inspect.signature(place_order)) == "(item: 'str' = 'tea', *, count: 'int') -> 'str'"
    assert inspect.getfullargspec(place_order).args == ["item"]
    assert get_type_hints(place_order) == {"item": str, "count": int, "return": str}
    assert list(inspect.signature(anything).parameters) == ["args"]
    # Methods of builtin types have no signature, but are accepted as units.
    assert callable(bgpool.transactional(pool)(dict.pop))


@pytest.mark.usefixtures("cutter")
def test_without_a_receipt_the_outcome_is_unknown(
    make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    """No switchover is in progress: no transaction id was queried, and the outcome is not guessed."""
    pair.hosts.set(pair.names.blue.primary, cutter.address)
    try:
        cutter.when = "after"
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            make_runner(max_size=1).run(work)
        cutter.when = "before"
        assert make_runner(max_size=1).run(work, idempotent=True) == "call 3"
    finally:
        pair.hosts.set(pair.names.blue.primary, pair.blue.address)
    assert work.rows(pair) == 2


# -- a lost connection stays lost --------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rollback_in_a_handler_does_not_hide_a_lost_commit(
    make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, when: Any
) -> None:
    with pytest.raises(bgpool.CommitOutcomeUnknown), make_pool(max_size=1).connection() as conn:
        work(conn)
        cutter.when = when
        try:
            conn.commit()
        except bgpool.SwitchoverError:
            conn.rollback()
            raise
    assert work.rows(pair) == int(when == "after")


@pytest.mark.usefixtures("prepared")
def test_after_a_lost_commit_the_outcome_stays_unknown(
    kit: Kit, make_pool: MakePool, cutter: CommitCutter, work: Work
) -> None:
    pool = make_pool(max_size=1)
    conn = pool.getconn()
    work(conn)
    cutter.when = "after"
    for use in (conn.commit, conn.rollback, conn.commit, conn.rollback):
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            use()
    with pytest.raises(kit.error) as caught:
        kit.execute(conn, "SELECT 1")
    assert not isinstance(caught.value, bgpool.SwitchoverInterrupted)
    pool.putconn(conn)
    with pool.connection() as fresh:
        assert fresh is not conn


@pytest.mark.usefixtures("prepared")
def test_a_known_failure_does_not_become_unknown(kit: Kit, make_pool: MakePool, pair: Pair, work: Work) -> None:
    pool = make_pool(max_size=1)
    conn = pool.getconn()
    work(conn)
    pair.blue.cut_clients()
    for use in (lambda: kit.execute(conn, "SELECT 1"), conn.commit, conn.rollback):
        with pytest.raises(bgpool.SwitchoverInterrupted):
            use()
    pool.putconn(conn)
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_as_a_statement_counts_as_a_commit(
    kit: Kit, make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, when: Any
) -> None:
    pool = make_pool(max_size=1)
    conn = pool.getconn()
    work(conn)
    cutter.when = when
    with pytest.raises(bgpool.CommitOutcomeUnknown):
        kit.execute(conn, "COMMIT")
    pool.putconn(conn)
    assert work.rows(pair) == int(when == "after")


def test_a_commit_lost_before_the_switchover_was_noticed_is_in_doubt(
    kit: Kit, deployment: Deployment, make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    pair.hosts.set(pair.names.blue.primary, cutter.address)
    try:
        pool = make_pool(max_size=1)
        conn = pool.getconn()
    finally:
        pair.hosts.set(pair.names.blue.primary, pair.blue.address)
    work(conn)
    cutter.when = "after"
    with pytest.raises(kit.error) as caught:
        conn.commit()
    assert not isinstance(caught.value, bgpool.Error)
    deployment.phase(Phase.PREPARATION)
    wait_until(lambda: pool.stats().phase is Phase.PREPARATION)
    with pytest.raises(bgpool.CommitOutcomeUnknown):
        conn.rollback()
    pool.putconn(conn)


@pytest.mark.usefixtures("deployment")
def test_only_a_hold_that_timed_out_is_advised_to_hold_longer(make_pool: MakePool) -> None:
    describe = make_pool()._gate.describe
    assert "bg_connect_timeout_ms" in describe("was held for 1.0 s; ")
    assert "bg_connect_timeout_ms" not in describe("was cut during COMMIT; find out whether it took effect")

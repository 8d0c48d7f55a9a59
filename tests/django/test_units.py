"""Units of work with Django, on real servers: called again, never applied twice, and hooks run when it is known."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db import Error as DjangoError
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, TestCase
from django.utils.decorators import method_decorator
from django.views import View

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.integrations.django import is_interrupted, run, sources, transactional
from bgpool.lab import Pair, ledger
from bgpool.lab.waiting import wait_until
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.unit import MysqlUnit
from bgpool.pools.postgres.unit import PostgresUnit
from bgpool.testing import Deployment
from tests.django.models import entry_model
from tests.django.test_connections import NAME, POOLED, WAYS, ask, other_database
from tests.engines import Kit
from tests.pools.callers import drain
from tests.pools.proxy import CommitCutter

pytestmark = pytest.mark.lab

MakeDatabase = Callable[..., str]

#: Keys of rows.
_numbers = itertools.count(1)


class Work:
    """A function that inserts one row of its own and has a hook.

    Attributes:
        calls: The number of calls.
        hooks: The numbers of the calls whose hooks have run.
        meanwhile: Called between the row and the end.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.key = (66, 0, next(_numbers))
        self.calls = 0
        self.hooks: list[int] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> str:
        self.calls += 1
        call = self.calls
        with self.wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO ledger (worker, thread, n) VALUES (%s, %s, %s)", self.key)
        transaction.on_commit(lambda: self.hooks.append(call), using=self.alias)
        self.meanwhile()
        return f"call {call}"

    @property
    def wrapper(self) -> Any:
        """This thread's."""
        return connections[self.alias]

    def ask(self) -> Any:
        """Send a statement."""
        return ask(self.wrapper)

    def rows(self, pair: Pair) -> int:
        """Return how many times its row is on blue."""
        return sum(row.key == self.key for row in ledger.read(pair.blue))


@pytest.fixture
def plain_options(kit: Kit) -> dict[str, Any]:
    """The proxy reads what is said."""
    return {"ssl_disabled": True} if kit.engine is Engine.MYSQL else {}


@pytest.fixture
def make_work(make_database: MakeDatabase, plain_options: dict[str, Any]) -> Callable[..., Work]:
    """Makes a function on a database of its own."""

    def make(options: dict[str, Any] | None = None, **changed: Any) -> Work:
        return Work(make_database({**plain_options, **(options or {})}, **changed))

    return make


@pytest.fixture
def work(make_work: Callable[..., Work]) -> Work:
    """A function on a database whose connections Django keeps."""
    return make_work()


MakeWork = Callable[..., Work]


def cut_in_call_1(work: Work, pair: Pair) -> Callable[[], None]:
    def cut() -> None:
        if work.calls == 1:
            pair.blue.cut_clients()
            work.ask()

    return cut


# -- before COMMIT -------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.usefixtures("prepared")
def test_what_is_cut_before_commit_is_called_again_and_one_hook_runs(
    way: dict[str, Any], pair: Pair, make_work: MakeWork
) -> None:
    work = make_work(**way)
    work.meanwhile = cut_in_call_1(work, pair)
    assert run(work, using=work.alias) == "call 2"
    assert (work.rows(pair), work.hooks) == (1, [2])
    assert work.ask() == 1


class Stop(BaseException):
    """An exception that no error handler catches."""


@WAYS
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("own", [ZeroDivisionError, Stop])
@pytest.mark.parametrize("by_server", [False, pytest.param(True, marks=pytest.mark.full)], ids=["", "by-the-server"])
def test_a_function_that_fails_by_itself_is_not_called_again_though_its_connection_was_cut(
    way: dict[str, Any],
    pair: Pair,
    deployment: Deployment,
    make_work: MakeWork,
    own: type[BaseException],
    by_server: bool,
) -> None:
    """Its own error reaches the caller, not that of the rollback, which goes nowhere."""
    work = make_work(**way)

    def fail() -> None:
        drivers = work.wrapper.connection
        drain(deployment, drivers)
        if by_server:
            pair.blue.cut_clients()
        else:
            drivers.bgpool_generation.cut()
        raise own

    work.meanwhile = fail
    with pytest.raises(own):
        run(work, using=work.alias, timeout=10.0)
    assert (work.calls, work.hooks) == (1, [])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("inner", [False, True], ids=["", "in-atomic"])
def test_a_cut_that_the_function_swallowed_is_no_success(inner: bool, pair: Pair, work: Work) -> None:
    def cut() -> None:
        if work.calls == 1:
            pair.blue.cut_clients()
            with contextlib.suppress(DjangoError):
                if inner:
                    with transaction.atomic(using=work.alias):
                        work.ask()
                work.ask()

    work.meanwhile = cut
    assert run(work, using=work.alias) == "call 2"
    assert (work.rows(pair), work.hooks) == (1, [2])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("how", ["save", "nested"])
def test_a_function_that_goes_on_after_a_cut_that_it_swallowed_is_called_again(
    how: str, pair: Pair, work: Work
) -> None:
    """Django refuses its next statement as in a transaction that must be rolled back, without the reason."""

    def cut() -> None:
        if work.calls == 1:
            with contextlib.suppress(DatabaseError):
                if how == "save":
                    pair.blue.cut_clients()
                    entry_model()(worker=66, thread=9, n=next(_numbers)).save(using=work.alias, force_insert=True)
                else:
                    with transaction.atomic(using=work.alias):
                        pair.blue.cut_clients()
                        work.ask()
        work.ask()

    work.meanwhile = cut
    assert run(work, using=work.alias) == "call 2"
    assert (work.rows(pair), work.hooks) == (1, [2])


@pytest.mark.usefixtures("prepared")
def test_an_error_of_its_own_that_the_function_swallowed_and_went_on_after_is_djangos(work: Work, pair: Pair) -> None:
    def fail() -> None:
        with contextlib.suppress(IntegrityError):
            entry_model()(worker=None, thread=9, n=5).save(using=work.alias, force_insert=True)
        work.ask()

    work.meanwhile = fail
    with pytest.raises(transaction.TransactionManagementError):
        run(work, using=work.alias)
    assert (work.calls, work.rows(pair), work.hooks) == (1, 0, [])


@pytest.mark.usefixtures("prepared")
def test_a_blue_that_takes_no_writes_any_more_is_waited_out(pair: Pair, work: Work) -> None:
    pair.blue.set_read_only(True)

    def unit() -> str:
        if work.calls == 2:
            pair.blue.set_read_only(False)
        return work()

    try:
        run(unit, using=work.alias)
    finally:
        pair.blue.set_read_only(False)
    assert work.calls > 2
    assert (work.rows(pair), work.hooks) == (1, [work.calls])


@pytest.mark.usefixtures("prepared")
def test_the_time_for_it_ends_and_the_error_is_bgpools_own(kit: Kit, pair: Pair, work: Work) -> None:
    work.meanwhile = lambda: (pair.blue.cut_clients(), work.ask())
    began = time.monotonic()
    with pytest.raises((bgpool.SwitchoverInterrupted, kit.error)) as raised:
        run(work, using=work.alias, timeout=0.5)
    assert time.monotonic() - began < 20
    assert is_interrupted(raised.value)
    assert (work.rows(pair), work.hooks) == (0, [])
    work.meanwhile = lambda: None
    assert run(work, using=work.alias).startswith("call")


@pytest.mark.usefixtures("deployment")
def test_errors_of_the_function_are_its_own(work: Work, pair: Pair) -> None:
    def fail() -> None:
        raise ValueError("mine")

    work.meanwhile = fail
    with pytest.raises(ValueError, match="mine"):
        run(work, using=work.alias)
    work.meanwhile = lambda: ask(work.wrapper, "SELECT nothing FROM nowhere")
    with pytest.raises(DatabaseError) as raised:
        run(work, using=work.alias)
    assert isinstance(raised.value, DjangoError)
    assert (work.calls, work.rows(pair), work.hooks) == (2, 0, [])


@pytest.mark.usefixtures("prepared")
def test_an_interrupt_leaves_nothing_behind(work: Work, pair: Pair) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    work.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(work, using=work.alias)
    assert work.wrapper.bgpool_listener is None
    assert work.rows(pair) == 0
    work.meanwhile = lambda: None
    assert run(work, using=work.alias) == "call 2"


@WAYS
@pytest.mark.usefixtures("prepared")
def test_an_interrupt_right_before_commit_commits_nothing_and_leaves_the_connection_usable(
    way: dict[str, Any], make_work: MakeWork, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's soft time limit, say, while the receipt is written. SET AUTOCOMMIT = 1 would commit on MySQL."""

    async def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    work = make_work(**way)
    with monkeypatch.context() as patched:
        for unit in (MysqlUnit, PostgresUnit):
            patched.setattr(unit, "awrite_receipt", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(work, using=work.alias)
    assert (work.calls, work.rows(pair), work.hooks) == (1, 0, [])
    assert run(work, using=work.alias) == "call 2"
    assert (work.rows(pair), work.hooks) == (1, [2])


# -- in COMMIT -----------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_run_exactly_when_it_is_known_that_the_transaction_committed(
    way: dict[str, Any], when: Any, kit: Kit, pair: Pair, cutter: CommitCutter, make_work: MakeWork
) -> None:
    work = make_work(**way)
    cutter.when = when
    if kit.engine is Engine.MYSQL:
        with pytest.raises(bgpool.CommitOutcomeUnknown) as raised:
            run(work, using=work.alias)
        assert not is_interrupted(raised.value)
        assert (work.calls, work.rows(pair), work.hooks) == (1, 1 if when == "after" else 0, [])
    else:
        calls = 1 if when == "after" else 2
        assert run(work, using=work.alias) == f"call {calls}"
        assert (work.calls, work.rows(pair), work.hooks) == (calls, 1, [calls])
    assert work.ask() == 1
    assert work.wrapper.run_on_commit == []


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_may_be_applied_twice_is_called_again(
    when: Any, kit: Kit, cutter: CommitCutter, make_work: MakeWork
) -> None:
    work = make_work()
    cutter.when = when
    done = iter(range(2))

    def once_more() -> None:
        # Its key is in the table perhaps.
        work.key = (66, 1 + next(done), next(_numbers))

    work.meanwhile = once_more
    expected = "call 1" if kit.engine is Engine.POSTGRESQL and when == "after" else "call 2"
    assert run(work, using=work.alias, idempotent=True) == expected
    assert work.hooks == [int(expected[-1])]


@pytest.mark.usefixtures("prepared")
def test_a_cut_behind_the_answer_to_commit_is_no_matter(kit: Kit, pair: Pair, make_work: MakeWork) -> None:
    """On MySQL Django then sends SET AUTOCOMMIT; on PostgreSQL it sends nothing, and the cut is not noticed."""
    work = make_work()
    run(work, using=work.alias)
    work.hooks.clear()
    wrapper = work.wrapper
    set_autocommit = wrapper._set_autocommit

    def cut(autocommit: bool) -> None:
        if autocommit:
            kit.kill(pair, kit.session(wrapper.connection))
        set_autocommit(autocommit)

    wrapper._set_autocommit = cut
    work.key = (66, 2, next(_numbers))
    try:
        assert run(work, using=work.alias) == "call 2"
    finally:
        del wrapper._set_autocommit
    assert (work.rows(pair), work.hooks) == (1, [2])
    assert (work.wrapper.connection is None) == (kit.engine is Engine.MYSQL)


class TimeLimit(Exception):
    """An exception like Celery's SoftTimeLimitExceeded, raised by a signal handler."""


@pytest.fixture
def limited(cutter: CommitCutter, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The next COMMIT of the main thread is interrupted before the server has seen it, and takes effect."""
    due = [threading.main_thread().ident]

    def interrupt(data: bytes) -> bool:
        if due and (data.endswith(b"\3COMMIT") or b"COMMIT\0" in data):
            signal.pthread_kill(due.pop() or 0, signal.SIGUSR1)
            time.sleep(0.2)
        return False

    def handle(*_: object) -> None:
        raise TimeLimit

    monkeypatch.setattr(cutter, "_is_moment", interrupt)
    before = signal.signal(signal.SIGUSR1, handle)
    yield
    signal.signal(signal.SIGUSR1, before)


@WAYS
@pytest.mark.usefixtures("prepared", "limited")
@pytest.mark.parametrize("is_unit", [True, False], ids=["unit", "atomic"])
def test_an_interrupt_in_commit_drops_the_hooks_and_leaves_nothing_behind(
    way: dict[str, Any], is_unit: bool, make_work: MakeWork, pair: Pair
) -> None:
    """Django would run them behind the next COMMIT, or meet the answer to this one where it expects another's."""
    work = make_work(**way)

    def once(work: Work) -> None:
        if is_unit:
            run(work, using=work.alias)
        else:
            with transaction.atomic(using=work.alias):
                work()

    with pytest.raises(TimeLimit):
        once(work)
    other = Work(work.alias)
    once(other)
    assert (work.calls, work.hooks) == (1, [])
    assert (other.rows(pair), other.hooks) == (1, [1])


@WAYS
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("is_unit", [True, False], ids=["unit", "atomic"])
@pytest.mark.parametrize("mode", [False, True], ids=["begins", "ends"])
def test_an_interrupt_while_autocommit_is_switched_leaves_it_on(
    way: dict[str, Any], is_unit: bool, mode: bool, kit: Kit, make_work: MakeWork, pair: Pair
) -> None:
    """MySQL is asked to switch it, and without it nothing is committed."""
    if kit.engine is not Engine.MYSQL:
        pytest.skip("nothing is asked of the server")
    work = make_work(**way)
    work.ask()
    switch = MysqlConnection.autocommit

    def interrupted(connection: Any, value: bool) -> None:
        switch(connection, value)
        if value == mode:
            raise TimeLimit

    def once(work: Work) -> None:
        if is_unit:
            run(work, using=work.alias)
        else:
            with transaction.atomic(using=work.alias):
                work()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MysqlConnection, "autocommit", interrupted)
        with pytest.raises(TimeLimit):
            once(work)
    assert work.rows(pair) == int(mode)
    # In a transaction of their own, one by itself and one in a block.
    for write in (lambda other: other(), once):
        other = Work(work.alias)
        write(other)
        assert (other.rows(pair), other.hooks) == (1, [1])


# -- hooks ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["answered", "answer lost"])
def commit(request: pytest.FixtureRequest, kit: Kit, prepared: Deployment, cutter: CommitCutter) -> str:
    """The parameter: whether the answer to COMMIT is lost, on a server with a status function for it."""
    del prepared
    if request.param == "answer lost":
        if kit.engine is Engine.MYSQL:
            pytest.skip("the server cannot tell")
        cutter.when = "after"
    return str(request.param)


@pytest.mark.usefixtures("commit")
def test_hooks_run_in_order_and_those_of_a_savepoint_that_was_rolled_back_do_not(work: Work, pair: Pair) -> None:
    told: list[str] = []

    def on_commit(what: str) -> None:
        transaction.on_commit(lambda: told.append(what), using=work.alias)

    def adds() -> None:
        told.append("adds")
        on_commit("added")

    def more() -> None:
        on_commit("first")
        with contextlib.suppress(ValueError), transaction.atomic(using=work.alias):
            on_commit("never")
            raise ValueError
        with transaction.atomic(using=work.alias):
            on_commit("second")
            transaction.on_commit(adds, using=work.alias)
        on_commit("third")

    work.meanwhile = more
    assert run(work, using=work.alias) == "call 1"
    assert told == ["first", "second", "adds", "added", "third"]
    assert (work.rows(pair), work.hooks) == (1, [1])


@pytest.mark.usefixtures("commit")
def test_a_hook_may_query(work: Work) -> None:
    told: list[Any] = []
    work.meanwhile = lambda: transaction.on_commit(
        lambda: told.append(ask(work.wrapper, f"SELECT count(*) FROM ledger WHERE worker = 66 AND n = {work.key[2]}")),
        using=work.alias,
    )
    run(work, using=work.alias)
    assert told == [1]


@pytest.mark.usefixtures("commit")
@pytest.mark.parametrize("robust", [False, True])
def test_a_hook_that_fails_is_its_own_affair_and_nothing_is_called_again(
    robust: bool, work: Work, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise bgpool.SwitchoverInterrupted("of another database")

    work.meanwhile = lambda: transaction.on_commit(fail, using=work.alias, robust=robust)
    if robust:
        assert run(work, using=work.alias) == "call 1"
        assert "of another database" in caplog.text
    else:
        with pytest.raises(bgpool.SwitchoverInterrupted, match="of another database"):
            run(work, using=work.alias)
    assert (work.calls, work.rows(pair), work.hooks) == (1, 1, [1])
    assert work.ask() == 1


@pytest.mark.usefixtures("commit")
def test_a_hook_may_run_a_unit(work: Work, pair: Pair) -> None:
    inner = Work(work.alias)
    work.meanwhile = lambda: transaction.on_commit(lambda: run(inner, using=work.alias), using=work.alias)
    run(work, using=work.alias)
    assert (work.rows(pair), inner.rows(pair), work.hooks, inner.hooks) == (1, 1, [1], [1])


@WAYS
def test_a_hook_may_commit_where_a_switchover_has_begun_behind_the_units_commit(
    way: dict[str, Any], deployment: Deployment, make_work: MakeWork, pair: Pair
) -> None:
    """It waits, and has a connection that is not the unit's."""
    work = make_work(**way)
    inner = Work(work.alias)
    deployment.phase(Phase.PREPARATION)
    timer = threading.Timer(0.2, deployment.roll_back)

    def write() -> None:
        with transaction.atomic(using=work.alias):
            inner()

    def begin() -> None:
        transaction.on_commit(write, using=work.alias)
        deployment.phase(Phase.IN_PROGRESS)
        timer.start()

    work.meanwhile = begin
    assert run(work, using=work.alias) == "call 1"
    timer.join()
    assert (work.rows(pair), inner.rows(pair), work.hooks, inner.hooks) == (1, 1, [1], [1])


# -- what the function does with its transaction -------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
def test_set_rollback_rolls_back_and_the_function_is_not_called_again(work: Work, pair: Pair) -> None:
    work.meanwhile = lambda: transaction.set_rollback(True, using=work.alias)
    assert run(work, using=work.alias) == "call 1"
    assert (work.rows(pair), work.hooks) == (0, [])


@pytest.mark.usefixtures("prepared")
def test_an_error_in_a_nested_block_may_be_caught(work: Work, pair: Pair) -> None:
    def insert_again() -> None:
        with contextlib.suppress(DatabaseError), transaction.atomic(using=work.alias):
            ask(work.wrapper, "SELECT nothing FROM nowhere")

    work.meanwhile = insert_again
    assert run(work, using=work.alias) == "call 1"
    assert (work.rows(pair), work.hooks) == (1, [1])


@pytest.mark.usefixtures("prepared")
def test_a_failed_statement_that_was_swallowed_is_no_silent_rollback(kit: Kit, work: Work, pair: Pair) -> None:
    def fail() -> None:
        with contextlib.suppress(DatabaseError):
            ask(work.wrapper, "SELECT nothing FROM nowhere")

    work.meanwhile = fail
    if kit.engine is Engine.POSTGRESQL:
        with pytest.raises(DatabaseError, match="the function went on"):
            run(work, using=work.alias)
        assert (work.rows(pair), work.hooks) == (0, [])
    else:
        assert run(work, using=work.alias) == "call 1"
        assert (work.rows(pair), work.hooks) == (1, [1])
    assert work.calls == 1


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("nested", [False, True])
def test_a_models_error_that_was_caught_is_as_in_djangos_atomic(nested: bool, work: Work, pair: Pair) -> None:
    """The whole transaction is rolled back, unless a nested block was around it."""

    def save() -> None:
        block = transaction.atomic(using=work.alias) if nested else contextlib.nullcontext()
        with contextlib.suppress(IntegrityError), block:
            entry_model()(worker=None, thread=8, n=5).save(using=work.alias, force_insert=True)

    work.meanwhile = save
    assert run(work, using=work.alias) == "call 1"
    assert (work.rows(pair), work.hooks) == ((1, [1]) if nested else (0, []))


@pytest.mark.usefixtures("prepared")
def test_the_function_must_neither_close_its_connection_nor_end_the_transaction(work: Work, pair: Pair) -> None:
    def by_text() -> None:
        with work.wrapper.cursor() as cursor:
            cursor.execute("ROLLBACK")

    for end in (lambda: work.wrapper.close(), by_text):
        work.meanwhile = end
        with pytest.raises(DjangoError, match="by its runner"):
            run(work, using=work.alias)
        assert (work.rows(pair), work.hooks) == (0, [])
    assert work.calls == 2
    work.meanwhile = lambda: None
    assert run(work, using=work.alias) == "call 3"


@pytest.mark.usefixtures("prepared")
def test_another_database_may_be_used_and_a_cut_there_begins_the_unit_again(
    work: Work, make_database: MakeDatabase, pair: Pair
) -> None:
    other: Any = connections[make_database()]

    def elsewhere() -> None:
        ask(other)
        if work.calls == 1:
            with transaction.atomic(using=other.alias):
                ask(other)
                pair.blue.cut_clients()
                ask(other)

    work.meanwhile = elsewhere
    assert run(work, using=work.alias) == "call 2"
    assert (work.rows(pair), work.hooks) == (1, [2])


# -- where it is called --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("deployment")
def test_it_is_no_part_of_another_transaction(work: Work) -> None:
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic(using=work.alias):
        run(work, using=work.alias)
    work.meanwhile = lambda: run(lambda: None, using=work.alias)
    with pytest.raises(RuntimeError, match="durable"):
        run(work, using=work.alias)
    work.meanwhile = lambda: None
    work.wrapper.set_autocommit(False)
    with pytest.raises(bgpool.ConfigurationError, match="autocommit"):
        run(work, using=work.alias)
    work.wrapper.set_autocommit(True)


@WAYS
@pytest.mark.usefixtures("deployment")
def test_a_database_whose_settings_turn_autocommit_off_is_refused_before_it_connects(
    way: dict[str, Any], make_work: MakeWork
) -> None:
    work = make_work(AUTOCOMMIT=False, **way)
    with pytest.raises(bgpool.ConfigurationError, match="AUTOCOMMIT"):
        run(work, using=work.alias)
    assert (work.calls, work.wrapper.connection) == (0, None)


def test_a_database_without_a_bg_id_is_refused_without_autocommit_as_well(
    make_work: MakeWork, database: dict[str, Any]
) -> None:
    del database["OPTIONS"]["bg_id"]
    work = make_work(AUTOCOMMIT=False)
    with pytest.raises(bgpool.ConfigurationError, match="AUTOCOMMIT"):
        run(work, using=work.alias)
    assert work.calls == 0


@pytest.mark.usefixtures("prepared")
def test_a_pool_that_has_since_been_closed_does_not_matter(make_work: MakeWork, pair: Pair) -> None:
    work = make_work(**POOLED)
    work.ask()
    work.wrapper.close_pool()
    assert run(work, using=work.alias) == "call 1"
    assert (work.rows(pair), work.hooks) == (1, [1])


def test_a_unit_that_is_held_when_its_pool_is_closed_goes_on_with_the_next_one(
    deployment: Deployment, pair: Pair, make_work: MakeWork
) -> None:
    """Celery closes it after each task, whichever thread used it."""
    work = make_work(**POOLED)
    work.ask()
    pool = work.wrapper.pool.pool
    work.wrapper.close()

    def unit() -> tuple[str, int]:
        try:
            return run(work, using=work.alias), work.ask()
        finally:
            connections[work.alias].close()

    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(unit)
        wait_until(lambda: pool.stats().held == 1, timeout_s=10, what="the hold")
        work.wrapper.close_pool()
        deployment.roll_back()
        assert held.result(20) == ("call 1", 1)
    assert (work.rows(pair), work.hooks) == (1, [1])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commits_outcome_is_queried_on_the_next_pool_if_the_units_pool_was_closed(
    when: Any, kit: Kit, pair: Pair, cutter: CommitCutter, make_work: MakeWork
) -> None:
    if kit.engine is Engine.MYSQL:
        pytest.skip("a server of MySQL's cannot be asked")
    work = make_work(**POOLED)
    # Of the same settings, as another thread's.
    work.meanwhile = lambda: sources.close_pools(work.alias)
    cutter.when = when
    calls = 1 if when == "after" else 2
    assert run(work, using=work.alias) == f"call {calls}"
    assert (work.rows(pair), work.hooks) == (1, [calls])


@WAYS
@pytest.mark.usefixtures("prepared")
def test_a_unit_belongs_to_the_database_that_the_settings_name_now(
    way: dict[str, Any], kit: Kit, make_work: MakeWork, pair: Pair
) -> None:
    work = make_work(**way)
    work.ask()
    work.wrapper.settings_dict["NAME"] = other_database(kit)
    asked: list[str] = []

    def cut_once() -> None:
        asked.append(ask(work.wrapper, NAME[kit.name]))
        if len(asked) == 1:
            pair.blue.cut_clients()
            work.ask()

    run(cut_once, using=work.alias)
    assert asked == [other_database(kit)] * 2


@pytest.mark.usefixtures("prepared")
def test_in_a_test_case_it_is_part_of_the_tests_transaction(work: Work, pair: Pair) -> None:
    of_the_test: Any = transaction.atomic(using=work.alias)
    of_the_test._from_testcase = True
    with contextlib.suppress(ZeroDivisionError), of_the_test:
        with TestCase.captureOnCommitCallbacks(using=work.alias, execute=True) as callbacks:
            assert run(work, using=work.alias) == "call 1"
        assert (len(callbacks), work.hooks) == (1, [1])
        _ = 1 / 0
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
def test_each_thread_has_units_of_its_own(make_work: MakeWork, pair: Pair) -> None:
    alias = make_work().alias
    together = threading.Barrier(4)
    works = [Work(alias) for _ in range(4)]

    def go(work: Work) -> None:
        def meet() -> None:
            if work.calls == 1:
                if together.wait(20) == 0:
                    pair.blue.cut_clients()
                together.wait(20)
                work.ask()

        work.meanwhile = meet
        run(work, using=alias)
        work.wrapper.close()

    threads = [threading.Thread(target=go, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert [work.rows(pair) for work in works] == [1] * 4
    assert [work.hooks for work in works] == [[work.calls] for work in works]


@pytest.mark.usefixtures("prepared")
def test_views_can_be_units_under_atomic_requests(make_work: MakeWork, pair: Pair) -> None:
    work = make_work(ATOMIC_REQUESTS=True)
    work.meanwhile = cut_in_call_1(work, pair)

    @transactional(using=work.alias)
    def function(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.method} {work()}")

    @method_decorator(transactional(using=work.alias), name="dispatch")
    class Class(View):
        def post(self, request: HttpRequest) -> HttpResponse:
            return function.__wrapped__(request)  # type: ignore[attr-defined,no-any-return]  # of functools.wraps

    handler: Any = BaseHandler()
    request = RequestFactory().post("/")
    assert handler.make_view_atomic(function)(request).content == b"POST call 2"
    assert work.hooks == [2]
    work.calls, work.key = 0, (66, 3, next(_numbers))
    assert handler.make_view_atomic(Class.as_view())(request).content == b"POST call 2"
    assert (work.rows(pair), work.hooks) == (1, [2, 2])


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("deployment")
def test_what_would_run_after_its_transaction_is_refused(work: Work) -> None:
    async def coroutine() -> None:
        pass

    def generator() -> Iterator[int]:
        yield 1

    for function in (coroutine, generator):
        with pytest.raises(TypeError, match="plain function"):
            run(function, using=work.alias)
    assert asyncio.run(coroutine()) is None
    assert work.ask() == 1


@pytest.mark.usefixtures("prepared")
def test_a_retry_decorator_knows_by_is_interrupted(pair: Pair, work: Work) -> None:
    work.meanwhile = cut_in_call_1(work, pair)

    def again() -> str:
        # As tenacity does it.
        for _ in range(3):
            try:
                with transaction.atomic(using=work.alias, durable=True):
                    return work()
            except OperationalError as error:
                if not is_interrupted(error):
                    raise
        raise AssertionError

    assert again() == "call 2"
    assert (work.rows(pair), work.hooks) == (1, [2])
    assert not is_interrupted(None)
    assert not is_interrupted(OperationalError("any"))


@WAYS
def test_a_unit_that_begins_in_the_hold_waits_for_its_end(
    way: dict[str, Any], kit: Kit, deployment: Deployment, pair: Pair, make_work: MakeWork
) -> None:
    work = make_work(**way)
    work.ask()
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    timer = threading.Timer(0.2, deployment.roll_back)
    timer.start()
    assert run(work, using=work.alias) == "call 1"
    timer.join()
    assert (work.rows(pair), work.hooks) == (1, [1])
    assert kit.where(work.wrapper.connection) == pair.blue.address


def test_a_unit_is_held_no_longer_than_its_time(deployment: Deployment, make_work: MakeWork) -> None:
    work = make_work()
    work.ask()
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    with pytest.raises(bgpool.SwitchoverHoldTimeout):
        run(work, using=work.alias, timeout=0.1)
    assert work.calls == 0

"""Receipts with Django: the key decides, hooks run once, and instances keep the keys of the call that was applied."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

import bgpool
from bgpool.core.engine import Engine
from bgpool.integrations.django import run, transactional
from bgpool.lab import Pair
from tests.django.models import parcel_models
from tests.django.test_connections import WAYS, MakeDatabase, ask
from tests.django.test_instances import names
from tests.django.test_units import MakeWork, Work, cut_in_call_1, make_work, plain_options
from tests.engines import Kit
from tests.pools.proxy import CommitCutter
from tests.pools.test_receipts import TABLE, create, receipts, run_sql

__all__ = ["make_work", "plain_options"]

pytestmark = pytest.mark.lab

WITH_TABLE = {"bg_receipts_table": TABLE}


@pytest.fixture
def table(pair: Pair) -> Iterator[str]:
    """The receipts table, empty."""
    create(pair)
    yield TABLE
    run_sql(pair, f"DROP TABLE IF EXISTS {TABLE}")


@pytest.fixture
def work(make_work: MakeWork, table: str) -> Work:
    """A function on a database with the table, whose connections Django keeps."""
    del table
    return make_work(WITH_TABLE)


def of_way(way: dict[str, Any], **more: str) -> dict[str, Any]:
    """Options and settings of a database with the table, one of WAYS."""
    return {**way, "options": {**way.get("options", {}), **WITH_TABLE, **more}}


# -- in a switchover -----------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.usefixtures("prepared", "table")
@pytest.mark.parametrize(("when", "applied"), [("after", 1), ("before", 2)])
def test_a_key_decides_and_the_hooks_of_the_call_that_was_applied_run_once(
    way: dict[str, Any], when: Any, applied: int, make_work: MakeWork, pair: Pair, cutter: CommitCutter
) -> None:
    work = make_work(**of_way(way))
    cutter.when = when
    assert run(work, using=work.alias) == f"call {applied}"
    assert (work.calls, work.rows(pair), work.hooks, len(receipts(pair))) == (applied, 1, [applied], 1)
    assert work.ask() == 1
    wrapper = work.wrapper
    assert (wrapper.run_on_commit, wrapper.needs_rollback, wrapper.closed_in_transaction) == ([], False, False)
    assert (wrapper.in_atomic_block, wrapper.get_autocommit(), wrapper.bgpool_listener) == (False, True, None)


@pytest.mark.usefixtures("prepared")
def test_a_claim_that_is_cut_keeps_the_state_of_the_call_in_doubt(work: Work, pair: Pair, cutter: CommitCutter) -> None:
    """Neither its result nor its hooks, though two more attempts have begun since."""
    claims: list[bytes] = []

    def is_claim(data: bytes) -> bool:
        if TABLE.encode() in data and b"INSERT" in data:
            claims.append(data)
            return True
        return False

    def cut_the_claim() -> None:
        cutter.on_cut, cutter.when = lambda: None, "before"
        cutter._is_moment = is_claim

    cutter.when, cutter.on_cut = "after", cut_the_claim
    assert run(work, using=work.alias) == "call 1"
    assert len(claims) == 2
    assert (work.calls, work.rows(pair), work.hooks) == (1, 1, [1])


@pytest.mark.usefixtures("prepared")
def test_what_was_cut_before_and_in_its_commit_runs_the_hooks_of_its_last_call(
    work: Work, pair: Pair, cutter: CommitCutter
) -> None:
    work.meanwhile = cut_in_call_1(work, pair)
    cutter.when = "after"
    assert run(work, using=work.alias) == "call 2"
    assert (work.calls, work.rows(pair), work.hooks, len(receipts(pair))) == (2, 1, [2], 1)


@pytest.mark.usefixtures("prepared")
def test_a_kept_connection_is_as_it_was_where_the_key_was_there(work: Work, pair: Pair, table: str) -> None:
    """Nothing was cut: the transaction is rolled back, and the connection serves the next query."""
    work.ask()
    drivers = work.wrapper.connection
    run_sql(pair, f"INSERT INTO {table} (id, unit) VALUES ('task-1', 'another')")
    assert run(work, using=work.alias, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert (work.calls, work.wrapper.connection is drivers, work.wrapper.get_autocommit()) == (0, True, True)
    assert run(work, using=work.alias) == "call 1"
    assert work.wrapper.connection is drivers
    assert (work.rows(pair), work.hooks) == (1, [1])


@pytest.mark.usefixtures("prepared")
def test_hooks_of_a_unit_that_another_run_has_applied_do_not_run(
    work: Work, pair: Pair, cutter: CommitCutter, table: str
) -> None:
    """The task queue has started the task twice, and the other one was faster."""

    def another() -> None:
        run_sql(pair, f"INSERT INTO {table} (id, unit) VALUES ('task-1', 'another')")

    cutter.when, cutter.on_cut = "before", another
    assert run(work, using=work.alias, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert (work.calls, work.rows(pair), work.hooks) == (1, 0, [])
    assert work.wrapper.run_on_commit == []


# -- instances -----------------------------------------------------------------------------------------------------


@pytest.fixture
def parcels(work: Work) -> Iterator[str]:
    """The alias of a database with the table of parcels as well."""
    with connections[work.alias].schema_editor() as editor:
        editor.create_model(parcel_models()[0])
    yield work.alias
    with connections[work.alias].schema_editor() as editor:
        editor.delete_model(parcel_models()[0])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["after", "before"])
def test_an_instance_has_the_key_of_the_call_that_was_applied(when: Any, parcels: str, cutter: CommitCutter) -> None:
    parcel = parcel_models()[0](name="mine")
    keys: list[int] = []

    def save() -> None:
        parcel.save(using=parcels)
        keys.append(parcel.pk)

    cutter.when = when
    run(save, using=parcels)
    assert (parcel.pk, parcel._state.adding, parcel._state.db) == (keys[-1], False, parcels)
    assert names(parcels) == {keys[-1]: "mine"}
    assert len(keys) == (1 if when == "after" else 2)


@pytest.mark.usefixtures("prepared")
def test_an_instance_of_a_unit_that_another_run_has_applied_is_new(
    parcels: str, cutter: CommitCutter, pair: Pair, table: str
) -> None:
    parcel = parcel_models()[0](name="mine")

    def another() -> None:
        run_sql(pair, f"INSERT INTO {table} (id, unit) VALUES ('task-1', 'another')")

    cutter.when, cutter.on_cut = "before", another
    run(lambda: parcel.save(using=parcels), using=parcels, receipt_id="task-1")
    assert (parcel.pk, parcel._state.adding, names(parcels)) == (None, True, {})


@pytest.mark.usefixtures("prepared")
def test_an_instance_is_new_where_no_later_attempt_came_as_far_as_the_function(
    parcels: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel = parcel_models()[0](name="mine")

    def save() -> None:
        parcel.save(using=parcels)
        monkeypatch.setattr(connections[parcels], "get_new_connection", fail)
        pair.blue.cut_clients()
        ask(connections[parcels])

    def fail(_params: object) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        run(save, using=parcels)
    assert (parcel.pk, parcel._state.adding) == (None, True)


# -- an id of the caller's -----------------------------------------------------------------------------------------


@WAYS
@pytest.mark.usefixtures("deployment", "table")
def test_a_second_run_with_the_same_id_is_not_applied(way: dict[str, Any], make_work: MakeWork, pair: Pair) -> None:
    work = make_work(**of_way(way))
    assert run(work, using=work.alias, receipt_id="task-1") == "call 1"
    assert run(work, using=work.alias, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert run(work, using=work.alias, receipt_id=None, timeout=30) == "call 2"
    assert (work.calls, work.rows(pair), work.hooks) == (2, 2, [1, 2])
    assert [key for key, _ in receipts(pair)] == ["task-1"]


def test_what_was_rolled_back_can_be_run_with_its_id_again(work: Work, pair: Pair) -> None:
    def fail() -> None:
        raise LookupError

    work.meanwhile = fail
    with pytest.raises(LookupError):
        run(work, using=work.alias, receipt_id="task-1")
    work.meanwhile = lambda: transaction.set_rollback(True, using=work.alias)
    assert run(work, using=work.alias, receipt_id="task-1") == "call 2"
    assert receipts(pair) == []
    work.meanwhile = lambda: None
    assert run(work, using=work.alias, receipt_id="task-1") == "call 3"
    assert (work.rows(pair), work.hooks) == (1, [3])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_a_unit_with_an_id_that_is_cut_in_its_commit_has_its_own_result(
    when: Any, answer: str, work: Work, pair: Pair, cutter: CommitCutter
) -> None:
    cutter.when = when
    assert run(work, using=work.alias, receipt_id="task-1") == answer
    assert run(work, using=work.alias, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert (work.rows(pair), work.hooks) == (1, [int(answer[-1])])


def test_a_run_that_begins_while_another_one_is_at_it_waits_for_it(work: Work, pair: Pair) -> None:
    may_end, answers = threading.Event(), []

    def hold() -> None:
        thread.start()
        assert may_end.wait(20)

    def second() -> None:
        answers.append(run(other, using=work.alias, receipt_id="task-1"))
        other.wrapper.close()

    other = Work(work.alias)
    thread = threading.Thread(target=second)
    work.meanwhile = hold
    timer = threading.Timer(0.5, may_end.set)
    timer.start()
    assert run(work, using=work.alias, receipt_id="task-1") == "call 1"
    thread.join(20)
    assert answers == [bgpool.AlreadyApplied("task-1")]
    assert (other.calls, other.rows(pair), work.rows(pair)) == (0, 0, 1)


def test_a_lock_that_is_not_free_in_time_is_djangos_error(kit: Kit, work: Work, table: str, pair: Pair) -> None:
    limit = {
        Engine.POSTGRESQL: "SET statement_timeout = '500ms'",
        Engine.MYSQL: "SET SESSION innodb_lock_wait_timeout = 1",
    }[kit.engine]
    with work.wrapper.cursor() as cursor:
        cursor.execute(limit)
    with kit.connect(pair) as connection:
        kit.execute(connection, f"INSERT INTO {table} (id, unit) VALUES ('task-1', 'another')")
        with pytest.raises(DatabaseError):
            run(work, using=work.alias, receipt_id="task-1", timeout=1.5)
        connection.rollback()
    assert (work.calls, work.ask()) == (0, 1)
    assert run(work, using=work.alias, receipt_id="task-1") == "call 1"


def test_a_decorated_function_has_its_id_chosen_for_each_call(work: Work, pair: Pair) -> None:
    @transactional(using=work.alias, receipt_id=lambda item, *, count: f"{item}-{count}")
    def order(item: str, *, count: int) -> str:
        return f"{count} {item}"

    assert order("tea", count=2) == "2 tea"
    assert order("tea", count=2) == bgpool.AlreadyApplied("tea-2")
    assert order("tea", count=3) == "3 tea"
    assert len(receipts(pair)) == 2


def test_a_view_may_have_an_id(work: Work) -> None:
    @transactional(using=work.alias, receipt_id=lambda request: request.headers["Idempotency-Key"])
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.method} {work()}")

    request = RequestFactory().post("/", headers={"Idempotency-Key": "4711"})
    answer = view(request)
    assert isinstance(answer, HttpResponse)
    assert answer.content == b"POST call 1"
    assert view(request) == bgpool.AlreadyApplied("4711")


def test_what_is_no_id_and_an_id_without_a_table_are_refused(make_work: MakeWork, work: Work) -> None:
    for wrong in ("", "two words", 7):
        with pytest.raises(bgpool.ConfigurationError, match=r"receipt_id=.* is allowed"):
            run(work, using=work.alias, receipt_id=wrong)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(bgpool.ConfigurationError, match="receipt_id=str; a function"):
        transactional(using=work.alias, receipt_id="task-1")  # type: ignore[call-overload]  # what is refused
    without = make_work()
    of_a_test: Any = transaction.atomic(using=without.alias)
    of_a_test._from_testcase = True
    for block in (contextlib.nullcontext(), of_a_test):
        with block, pytest.raises(bgpool.ConfigurationError, match=r"receipt_id='task-1' needs .* bg_receipts_table"):
            run(without, using=without.alias, receipt_id="task-1")
    assert (work.calls, without.calls) == (0, 0)


def test_in_the_transaction_of_a_test_case_the_function_is_called_each_time(work: Work, pair: Pair) -> None:
    of_the_test: Any = transaction.atomic(using=work.alias)
    of_the_test._from_testcase = True
    with of_the_test:
        with pytest.raises(bgpool.ConfigurationError, match="is allowed"):
            run(work, using=work.alias, receipt_id="two words")
        assert run(work, using=work.alias, receipt_id="task-1") == "call 1"
        work.key = (work.key[0], 1, work.key[2])
        assert run(work, using=work.alias, receipt_id="task-1") == "call 2"
        transaction.set_rollback(True, using=work.alias)
    assert (work.rows(pair), receipts(pair)) == (0, [])


@pytest.mark.parametrize("foreign", [True, False], ids=["foreign engine", "no bg_id"])
def test_without_bgpools_connections_an_id_is_checked_and_said_to_be_of_no_use(
    foreign: bool, make_database: MakeDatabase, database: dict[str, Any], pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    database["OPTIONS"] = {}
    foreigner = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    alias = make_database(**(foreigner if foreign else {"HOST": pair.blue.address}))
    calls: list[int] = []
    for _ in range(2):
        run(calls.append, 1, using=alias, receipt_id="task-1")
    with pytest.raises(bgpool.ConfigurationError, match="is allowed"):
        run(calls.append, 1, using=alias, receipt_id="two words")
    assert calls == [1, 1]
    said = [record.getMessage() for record in caplog.records if "receipt_id" in record.getMessage()]
    assert len(said) == 1
    assert "each run of a unit of work is applied" in said[0]


# -- at all times, and a table that is of no use -------------------------------------------------------------------


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(("when", "applied"), [("after", 1), ("before", 2)])
def test_with_always_a_key_decides_without_a_deployment(
    when: Any, applied: int, make_work: MakeWork, pair: Pair, cutter: CommitCutter
) -> None:
    """The host is no endpoint. The parameters are text, as in a DATABASE_URL."""
    options = {**WITH_TABLE, "bg_receipts": "always", "bg_receipts_retention_s": "3600", "bg_resolver": "system"}
    work = make_work(options, HOST=cutter.address)
    cutter.when = when
    assert run(work, using=work.alias) == f"call {applied}"
    assert (work.calls, work.rows(pair), work.hooks, len(receipts(pair))) == (applied, 1, [applied], 1)


@pytest.mark.usefixtures("prepared")
def test_without_the_table_units_go_on_and_it_is_said_once(
    make_work: MakeWork, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    work = make_work(WITH_TABLE)
    with caplog.at_level(logging.WARNING, logger="bgpool"):
        assert [run(work, using=work.alias, receipt_id="task-1") for _ in range(2)] == ["call 1", "call 2"]
        assert run(work, using=work.alias) == "call 3"
    assert (work.rows(pair), work.hooks) == (3, [1, 2, 3])
    said = [record.getMessage() for record in caplog.records if "receipts" in record.getMessage()]
    assert len(said) == 1, said
    assert "does not exist" in said[0]


@WAYS
@pytest.mark.usefixtures("prepared", "table")
def test_a_transaction_that_is_read_only_has_nothing_to_be_applied_twice(
    way: dict[str, Any], kit: Kit, make_work: MakeWork, pair: Pair
) -> None:
    own: dict[str, str] = {
        Engine.POSTGRESQL: {"options": "-c default_transaction_read_only=on"},
        Engine.MYSQL: {"init_command": "SET SESSION TRANSACTION READ ONLY"},
    }[kit.engine]
    work = make_work(**of_way(way, **own))
    for _ in range(2):
        assert run(work.ask, using=work.alias, receipt_id="task-1") == 1
    assert run(work.ask, using=work.alias) == 1
    assert receipts(pair) == []

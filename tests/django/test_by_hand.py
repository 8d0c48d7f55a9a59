"""Transactions that the user begins and ends by hand, without autocommit, when a switchover comes in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import Error, OperationalError, connections, transaction

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError, SwitchoverInterrupted
from bgpool.integrations.django import run
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.django.test_connections import ask, switch_over
from tests.engines import Kit

pytestmark = [pytest.mark.lab]

MakeDatabase = Callable[..., str]


def put(wrapper: Any, n: int) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(f"INSERT INTO ledger (worker, thread, n) VALUES (67, 6, {n})")


@pytest.fixture
def rows(kit: Kit, pair: Pair) -> Iterator[Callable[[], list[int]]]:
    """Return the committed rows on blue."""

    def read() -> list[int]:
        with kit.connect(pair) as connection:
            found = kit.execute(connection, "SELECT n FROM ledger WHERE worker = 67 ORDER BY n")
            return [n for (n,) in found]

    yield read
    with kit.connect(pair) as connection:
        kit.execute(connection, "DELETE FROM ledger WHERE worker = 67")
        connection.commit()


def go_there_and_back(deployment: Deployment) -> None:
    """Replace every connection, and stay on blue."""
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    deployment.roll_back()


def test_autocommit_turned_on_by_hand_is_on_for_the_connection_that_follows(
    deployment: Deployment, make_database: MakeDatabase, rows: Callable[[], list[int]]
) -> None:
    wrapper: Any = connections[make_database(AUTOCOMMIT=False)]
    ask(wrapper)
    wrapper.rollback()
    go_there_and_back(deployment)
    wrapper.set_autocommit(True)
    put(wrapper, 1)
    wrapper.close()
    assert rows() == [1]


def test_an_atomic_block_whose_hooks_are_not_held(
    deployment: Deployment, make_database: MakeDatabase, rows: Callable[[], list[int]]
) -> None:
    wrapper: Any = connections[make_database(AUTOCOMMIT=False)]
    ran: list[int] = []
    wrapper.set_autocommit(True)
    deployment.phase(Phase.PREPARATION)
    with transaction.atomic(using=wrapper.alias):
        put(wrapper, 1)
        transaction.on_commit(lambda: ran.append(1), using=wrapper.alias)
        deployment.phase(Phase.IN_PROGRESS)
    assert ran == [1]
    deployment.roll_back()
    put(wrapper, 2)
    wrapper.close()
    assert rows() == [1, 2]


def test_a_request_begins_as_the_settings_say(deployment: Deployment, make_database: MakeDatabase) -> None:
    wrapper: Any = connections[make_database(AUTOCOMMIT=False)]
    wrapper.set_autocommit(True)
    deployment.phase(Phase.PREPARATION)
    with transaction.atomic(using=wrapper.alias):
        ask(wrapper)
        deployment.phase(Phase.IN_PROGRESS)
    assert wrapper.connection is None
    deployment.roll_back()
    wrapper.close_if_unusable_or_obsolete()
    assert wrapper.get_autocommit() is False


def test_a_unit_of_work_is_refused_where_the_next_connection_is_to_have_no_autocommit(
    deployment: Deployment, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper: Any = connections[make_database()]
    wrapper.set_autocommit(False)
    switch_over(deployment)

    def fail(*_: object) -> None:
        raise OperationalError("not to be reached")

    with monkeypatch.context() as patch:
        patch.setattr(type(wrapper), "get_new_connection", fail)
        with pytest.raises(OperationalError, match="not to be reached"):
            ask(wrapper)
    with pytest.raises(ConfigurationError, match="autocommit"):
        run(lambda: None, using=wrapper.alias)
    assert ask(wrapper) == 1
    assert wrapper.get_autocommit() is False


def test_a_transaction_that_was_cut_does_not_end_as_if_it_were_committed(
    kit: Kit, pair: Pair, deployment: Deployment, make_database: MakeDatabase, rows: Callable[[], list[int]]
) -> None:
    wrapper: Any = connections[make_database()]
    ran: list[int] = []
    wrapper.set_autocommit(False)
    put(wrapper, 1)
    wrapper.commit()
    deployment.phase(Phase.PREPARATION)
    with transaction.atomic(using=wrapper.alias):
        put(wrapper, 2)
        transaction.on_commit(lambda: ran.append(2), using=wrapper.alias)
    kit.kill(pair, kit.session(wrapper.connection))
    with pytest.raises(OperationalError):
        put(wrapper, 3)
    with pytest.raises(Error):
        wrapper.set_autocommit(True)
    assert ran == []
    wrapper.rollback()
    wrapper.set_autocommit(True)
    assert (ran, rows()) == ([], [1])


def test_hooks_of_what_was_committed_by_hand_run_on_the_connection_that_follows(
    deployment: Deployment, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database()]
    ran: list[int] = []
    wrapper.set_autocommit(False)
    with transaction.atomic(using=wrapper.alias):
        ask(wrapper)
        transaction.on_commit(lambda: ran.append(1), using=wrapper.alias)
    wrapper.commit()
    switch_over(deployment)
    ask(wrapper)
    wrapper.commit()
    wrapper.set_autocommit(True)
    assert ran == [1]


@pytest.mark.parametrize("savepoint", [True, False])
def test_an_atomic_block_begins_on_a_new_connection(
    savepoint: bool, kit: Kit, deployment: Deployment, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(AUTOCOMMIT=False)]
    ask(wrapper)
    wrapper.rollback()
    switch_over(deployment)
    while not wrapper.connection.bgpool_cut:
        time.sleep(0.01)
    with transaction.atomic(using=wrapper.alias, savepoint=savepoint):
        ask(wrapper)
    wrapper.commit()
    assert kit.where(wrapper.connection)


@pytest.fixture
def cut(kit: Kit, pair: Pair, deployment: Deployment, make_database: MakeDatabase) -> Any:
    """A database whose connection a switchover has cut in a transaction by hand, in which row 1 was put."""
    wrapper: Any = connections[make_database()]
    wrapper.set_autocommit(False)
    put(wrapper, 1)
    deployment.phase(Phase.PREPARATION)
    kit.kill(pair, kit.session(wrapper.connection))
    return wrapper


def test_an_atomic_block_that_cannot_begin_leaves_the_transaction_to_be_rolled_back(
    cut: Any, rows: Callable[[], list[int]]
) -> None:
    with pytest.raises(OperationalError), transaction.atomic(using=cut.alias):
        put(cut, 2)
    cut.rollback()
    with transaction.atomic(using=cut.alias), transaction.atomic(using=cut.alias):
        put(cut, 3)
    cut.commit()
    cut.set_autocommit(True)
    assert rows() == [3]


def test_the_end_of_a_request_is_not_held(deployment: Deployment, make_database: MakeDatabase) -> None:
    wrapper: Any = connections[make_database(AUTOCOMMIT=False, options={"bg_connect_timeout_ms": "60000"})]
    ask(wrapper)
    wrapper.rollback()
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    began = time.monotonic()
    wrapper.close_if_unusable_or_obsolete()
    assert time.monotonic() - began < 20
    assert wrapper.connection is None


def test_a_rollback_that_finds_the_connection_gone_has_rolled_back(cut: Any, rows: Callable[[], list[int]]) -> None:
    cut.rollback()
    put(cut, 2)
    cut.commit()
    cut.set_autocommit(True)
    assert rows() == [2]


def test_a_transaction_whose_write_was_refused_does_not_go_on_elsewhere(
    kit: Kit, pair: Pair, deployment: Deployment, make_database: MakeDatabase, rows: Callable[[], list[int]]
) -> None:
    if kit.engine is Engine.MYSQL:
        pytest.skip("there the transaction stays open")
    wrapper: Any = connections[make_database()]
    wrapper.set_autocommit(False)
    deployment.phase(Phase.PREPARATION)
    pair.blue.set_read_only(True)
    try:
        with pytest.raises(OperationalError) as refused:
            put(wrapper, 1)
    finally:
        pair.blue.set_read_only(False)
    assert isinstance(refused.value.__cause__, SwitchoverInterrupted)
    with pytest.raises(Error):
        put(wrapper, 2)
    wrapper.rollback()
    put(wrapper, 3)
    wrapper.commit()
    wrapper.set_autocommit(True)
    assert rows() == [3]

"""Functions that commit by themselves within a unit of work: committed work is not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from tests.engines import Kit
from tests.pools.conftest import Work

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]

OWN: dict[Engine, tuple[tuple[str, ...], ...]] = {
    Engine.POSTGRESQL: (
        ("COMMIT",),
        ("/* over */ END; BEGIN",),
        ("COMMIT AND CHAIN",),
        ("SELECT 1; COMMIT",),
    ),
    Engine.MYSQL: (
        ("CREATE TABLE IF NOT EXISTS of_the_unit (n int)",),
        ("CALL ends_unit()",),
        ("SET autocommit = 1", "SET autocommit = 0"),
        ("PREPARE s FROM 'COMMIT'", "EXECUTE s"),
    ),
}


@pytest.fixture
def procedure(kit: Kit, pair: Pair) -> Iterator[None]:
    if kit.engine is Engine.MYSQL:
        pair.blue.execute("CREATE PROCEDURE app.ends_unit() BEGIN COMMIT; START TRANSACTION; END")
    yield
    if kit.engine is Engine.MYSQL:
        pair.blue.execute("DROP PROCEDURE app.ends_unit")
        pair.blue.execute("DROP TABLE IF EXISTS app.of_the_unit")


@pytest.mark.usefixtures("prepared", "procedure")
@pytest.mark.parametrize("which", range(4))
def test_work_that_a_function_committed_is_not_applied_twice(
    kit: Kit, make_runner: MakePool, pair: Pair, work: Work, which: int
) -> None:
    def commit(conn: Any) -> None:
        for text in OWN[kit.engine][which]:
            kit.execute(conn, text)
        kit.write(conn)
        if work.calls == 1:
            pair.blue.cut_clients()
            kit.execute(conn, "SELECT 1")

    work.meanwhile = commit
    with pytest.raises(bgpool.CommitOutcomeUnknown):
        make_runner().run(work)
    assert work.calls == work.rows(pair) == 1


KEEPS: dict[Engine, tuple[str, ...]] = {
    Engine.POSTGRESQL: ("SAVEPOINT s", "ROLLBACK TO s", "rollback work to savepoint s", "SELECT 'COMMIT'"),
    Engine.MYSQL: (
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "SET @commit = 1",
        "CREATE TEMPORARY TABLE IF NOT EXISTS of_the_unit (n int)",
        "DO 1",
    ),
}


@pytest.mark.usefixtures("prepared")
def test_a_function_that_keeps_its_transaction_is_called_again(
    kit: Kit, make_runner: MakePool, pair: Pair, work: Work
) -> None:
    def go_on(conn: Any) -> None:
        for text in KEEPS[kit.engine]:
            kit.execute(conn, text)
        if work.calls == 1:
            pair.blue.cut_clients()
            kit.execute(conn, "SELECT 1")

    work.meanwhile = go_on
    assert make_runner().run(work) == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
def test_a_function_that_closes_its_connection_is_called_once(kit: Kit, make_runner: MakePool, work: Work) -> None:
    work.meanwhile = lambda conn: conn.close()
    with pytest.raises(kit.programming_error, match=r"closed|ended"):
        make_runner().run(work)
    assert work.calls == 1

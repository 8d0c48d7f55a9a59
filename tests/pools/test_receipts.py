"""Receipts: a key in the database decides the outcome of a COMMIT that was cut."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.mysql import receipts as mysql
from bgpool.pools.pool import Pool
from bgpool.pools.postgres import receipts as postgres
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller
from tests.pools.conftest import Work
from tests.pools.proxy import CommitCutter
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full
ON_ASYNCPG = True

MakePool = Callable[..., Pool[Any]]

TABLE = "bgpool_receipts"


def run_sql(pair: Pair, sql: str) -> list[tuple[Any, ...]]:
    """Run statements that end with a semicolon, as superuser in the application's database; return their rows."""
    rows: list[tuple[Any, ...]] = []
    for statement in filter(None, map(str.strip, sql.split(";"))):
        rows = pair.blue.execute(statement, database="app")
    return rows


def create(pair: Pair, table: str = TABLE) -> None:
    """Create the receipts table as users do."""
    module = mysql if pair.engine is Engine.MYSQL else postgres
    user = "'app'@'%'" if pair.engine is Engine.MYSQL else "app"
    run_sql(pair, module.DDL.format(table=module.quoted(table), user=user))


@pytest.fixture
def table(pair: Pair) -> Iterator[str]:
    """The table, empty."""
    create(pair)
    yield TABLE
    run_sql(pair, f"DROP TABLE IF EXISTS {TABLE}")


def receipts(pair: Pair) -> list[tuple[Any, ...]]:
    """Return the rows of the table: id and unit."""
    return run_sql(pair, f"SELECT id, unit FROM {TABLE} ORDER BY created_at, id")


@pytest.fixture
def pool(make_pool: MakePool, table: str) -> Pool[Any]:
    """A pool of one connection whose units leave receipts in a switchover."""
    return make_pool(max_size=1, bg_receipts_table=table)


@pytest.fixture
def runner(make_runner: MakePool, table: str) -> Pool[Any]:
    """A runner of units with receipts, for each way to run units of work."""
    return make_runner(max_size=1, bg_receipts_table=table)


# -- in a switchover -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_a_key_decides_the_outcome_of_a_commit(
    runner: Pool[Any], pair: Pair, cutter: CommitCutter, work: Work, when: Any, answer: str
) -> None:
    cutter.when = when
    assert runner.run(work) == answer
    assert (work.rows(pair), len(receipts(pair))) == (1, 1)
    assert cutter.when == "never"


@pytest.mark.usefixtures("prepared")
def test_a_unit_cut_in_two_commits_is_applied_once(
    runner: Pool[Any], pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    cutter.when = "before"

    def again() -> None:
        cutter.when, cutter.on_cut = "after", lambda: None

    cutter.on_cut = again
    assert runner.run(work) == "call 2"
    assert (work.calls, work.rows(pair), len(receipts(pair))) == (2, 1, 1)


@pytest.mark.usefixtures("prepared")
def test_a_unit_that_wrote_nothing_leaves_no_receipt_and_is_run_again(
    kit: Kit, runner: Pool[Any], pair: Pair, cutter: CommitCutter
) -> None:
    calls = []

    def look(conn: Any) -> int:
        calls.append(kit.read(conn))
        return len(calls)

    assert runner.run(look) == 1
    cutter.when = "after"
    assert runner.run(look) == 3
    assert receipts(pair) == []


@pytest.mark.usefixtures("prepared", "cutter")
def test_a_unit_in_a_switchover_leaves_a_receipt(runner: Pool[Any], pair: Pair, work: Work) -> None:
    assert [runner.run(work) for _ in range(3)] == ["call 1", "call 2", "call 3"]
    rows = receipts(pair)
    assert len(rows) == 3
    assert all(unit.startswith(key) for key, unit in rows)


def test_no_receipt_is_left_without_a_switchover(
    deployment: Deployment, runner: Pool[Any], pair: Pair, work: Work
) -> None:
    assert runner.run(work) == "call 1"
    assert receipts(pair) == []
    deployment.phase(Phase.PREPARATION)
    assert runner.run(work) == "call 2"
    assert len(receipts(pair)) == 1


@pytest.mark.usefixtures("prepared")
@pytest.mark.threads
def test_a_commit_that_is_still_under_way_is_waited_for(
    kit: Kit, make_pool: MakePool, cutter: CommitCutter, work: Work, table: str
) -> None:
    """The server continues it although its client is gone."""
    pool = make_pool(max_size=2, bg_receipts_table=table)
    pool.run(lambda conn: kit.read(conn))
    begun, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with_lock = Work(kit)

        # The row that the cut attempt would commit, held open by another transaction on the same server.
        def meanwhile(conn: Any) -> None:
            kit.execute(conn, f"INSERT INTO {table} (id, unit) VALUES ('job-1', 'another')")
            begun.set()
            let_go.wait(PATIENCE_S)

        with_lock.meanwhile = meanwhile
        with pool.connection() as conn:
            with_lock(conn)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(PATIENCE_S)
    caller = Caller(lambda: pool.run(work, receipt_id="job-1"))
    caller.join(0.5)
    assert caller.is_alive()
    let_go.set()
    assert caller.wait() == bgpool.AlreadyApplied("job-1")
    assert work.calls == 0
    thread.join()
    assert cutter.when == "never"


# -- the caller's own id -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("deployment")
def test_a_second_run_with_the_same_id_is_not_applied(runner: Pool[Any], pair: Pair, work: Work) -> None:
    assert runner.run(work, receipt_id="task-1") == "call 1"
    assert runner.run(work, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert runner.run(work, receipt_id="Task-1") == "call 2"
    assert (work.calls, work.rows(pair)) == (2, 2)
    assert {key for key, _ in receipts(pair)} == {"task-1", "Task-1"}


@pytest.mark.usefixtures("deployment")
def test_a_failed_unit_can_be_run_again_with_its_id(kit: Kit, runner: Pool[Any], pair: Pair, work: Work) -> None:
    def fail(_conn: Any) -> None:
        raise LookupError

    work.meanwhile = fail
    with pytest.raises(LookupError):
        runner.run(work, receipt_id="task-1")
    assert receipts(pair) == []
    work.meanwhile = lambda conn: kit.read(conn)
    assert runner.run(work, receipt_id="task-1") == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_a_unit_with_an_id_that_is_cut_in_its_commit_has_its_own_result(
    runner: Pool[Any], cutter: CommitCutter, work: Work, when: Any, answer: str
) -> None:
    cutter.when = when
    assert runner.run(work, receipt_id="task-1") == answer
    assert runner.run(work, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")


@pytest.mark.usefixtures("prepared")
def test_the_result_of_another_run_is_not_returned(
    runner: Pool[Any], pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    """The task queue has started the task twice, and the other run was faster."""
    cutter.when = "before"

    def another() -> None:
        run_sql(pair, f"INSERT INTO {TABLE} (id, unit) VALUES ('task-1', 'another')")

    cutter.on_cut = another
    assert runner.run(work, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
def test_a_row_that_arrives_late_still_decides(
    kit: Kit, pool: Pool[Any], pair: Pair, cutter: CommitCutter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example by replication: the attempt that found no row was itself cut before its COMMIT."""
    left: list[tuple[str, str]] = []
    unit = pool._unit_class
    leave = unit.awrite_receipt

    async def note(self: Any, connection: Any) -> None:
        await leave(self, connection)
        left.append((self._id, self._writer()))

    def arrive(conn: Any) -> None:
        if work.calls == 2:
            kit.kill(pair, kit.session(conn))
            run_sql(pair, "INSERT INTO {} (id, unit) VALUES ('{}', '{}')".format(TABLE, *left[0]))
            kit.read(conn)

    monkeypatch.setattr(unit, "awrite_receipt", note)
    cutter.when, work.meanwhile = "before", arrive
    assert pool.run(work) == "call 1"
    assert (work.calls, len(receipts(pair))) == (2, 1)


@pytest.mark.usefixtures("prepared", "cutter")
def test_an_attempt_that_may_still_be_open_is_not_waited_for(
    kit: Kit, pool: Pool[Any], pair: Pair, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its COMMIT was never sent; the server has not noticed that its client is gone."""
    left: list[str] = []
    unit = pool._unit_class
    leave = unit.awrite_receipt

    async def cut_behind(self: Any, connection: Any) -> None:
        await leave(self, connection)
        left.append(self._id)
        if len(left) == 1:
            kit.kill(pair, kit.session(connection))

    monkeypatch.setattr(unit, "awrite_receipt", cut_behind)
    work.meanwhile = lambda _conn: None
    with contextlib.suppress(bgpool.CommitOutcomeUnknown):
        pool.run(work, timeout=10.0)
    assert len(receipts(pair)) == 1


def test_the_receipt_is_inserted_last_if_it_cannot_be_first(
    kit: Kit, make_pool: MakePool, pair: Pair, work: Work, table: str
) -> None:
    """The role's transactions are read-only, but the function makes its own one writable."""
    if kit.engine is Engine.MYSQL:
        pool = make_pool(max_size=1, bg_receipts_table=table)
        work.meanwhile = lambda conn: kit.read(conn)
    else:
        pool = make_pool(max_size=1, bg_receipts_table=table, kwargs={"options": "-c default_transaction_read_only=on"})

    def write(conn: Any) -> str:
        if kit.engine is Engine.POSTGRESQL:
            kit.execute(conn, "SET TRANSACTION READ WRITE")
        return work(conn)

    assert pool.run(write, receipt_id="task-1") == "call 1"
    assert pool.run(write, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert (work.rows(pair), len(receipts(pair))) == (1, 1)


@pytest.mark.threads
def test_a_decorated_function_has_its_id_chosen_for_each_call(kit: Kit, pool: Pool[Any], pair: Pair) -> None:
    del kit

    @bgpool.transactional(pool, receipt_id=lambda item, *, count: f"{item}-{count}")
    def order(conn: Any, item: str, *, count: int) -> str:
        del conn
        return f"{count} {item}"

    assert order("tea", count=2) == "2 tea"
    assert order("tea", count=2) == bgpool.AlreadyApplied("tea-2")
    assert order("tea", count=3) == "3 tea"
    assert len(receipts(pair)) == 2


def test_an_invalid_id_is_refused(pool: Pool[Any], work: Work) -> None:
    refused: list[Any] = ["", "two words", "it's", "back\\slash", "a" * 201, "naïve", 7, b"task"]
    for receipt_id in refused:
        with pytest.raises(bgpool.ConfigurationError, match=r"receipt_id=.* is allowed"):
            pool.run(work, receipt_id=receipt_id)
    assert work.calls == 0


def test_a_unit_is_not_run_for_longer_than_receipts_are_kept(make_pool: MakePool, work: Work) -> None:
    pool = make_pool(bg_receipts_table=TABLE, bg_receipts_retention_s=600)
    with pytest.raises(bgpool.ConfigurationError, match=r"timeout=601: .* bg_receipts_retention_s=600 is allowed"):
        pool.run(work, timeout=601)
    assert work.calls == 0


def test_an_id_needs_a_table(make_runner: MakePool, work: Work) -> None:
    runner = make_runner()
    with pytest.raises(bgpool.ConfigurationError, match=r"receipt_id='task-1' needs .* bg_receipts_table"):
        runner.run(work, receipt_id="task-1")
    assert work.calls == 0


@pytest.mark.threads
def test_a_decorator_requires_a_function_for_the_id(pool: Pool[Any]) -> None:
    with pytest.raises(bgpool.ConfigurationError, match="receipt_id=str; a function"):
        bgpool.transactional(pool, receipt_id="task-1")  # type: ignore[call-overload]  # must be refused


# -- always, not only in a switchover ------------------------------------------------------------------------------


@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_with_always_a_key_decides_without_a_deployment(
    make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work, table: str, when: Any, answer: str
) -> None:
    dsn = pair.dsn_of(cutter.address)
    runner = make_runner(dsn, max_size=1, bg_resolver="system", bg_receipts_table=table, bg_receipts="always")
    cutter.when = when
    assert runner.run(work) == answer
    assert (work.rows(pair), len(receipts(pair))) == (1, 1)


def test_with_always_a_unit_that_was_cut_before_its_commit_is_run_again(
    kit: Kit, make_runner: MakePool, pair: Pair, work: Work, table: str
) -> None:
    runner = make_runner(max_size=1, bg_receipts_table=table, bg_receipts="always")

    def cut(conn: Any) -> None:
        if work.calls == 1:
            kit.kill(pair, kit.session(conn))
            kit.read(conn)

    work.meanwhile = cut
    assert runner.run(work) == "call 2"
    assert work.rows(pair) == 1


def test_with_always_a_read_only_transaction_leaves_no_receipt(
    kit: Kit, make_pool: MakePool, pair: Pair, table: str, own_log: pytest.LogCaptureFixture
) -> None:
    """The server is not taken for a read-only server, either."""
    pool = make_pool(max_size=1, bg_receipts_table=table, bg_receipts="always")

    def look(conn: Any) -> int:
        if kit.engine is Engine.POSTGRESQL:
            kit.execute(conn, "SET TRANSACTION READ ONLY")
        return kit.read(conn)

    sessions = set()

    def session(conn: Any) -> None:
        sessions.add(kit.session(conn))
        look(conn)

    with own_log.at_level(logging.WARNING, logger="bgpool"):
        for _ in range(3):
            pool.run(session)
    assert receipts(pair) == []
    assert len(sessions) == 1
    assert own_log.records == []


# -- an unusable table -----------------------------------------------------------------------------------------------

#: MySQL's error for this key is the same as for an existing id.
ANOTHER_KEY = "ALTER TABLE {t} ALTER created_at SET DEFAULT '2020-01-01 00:00:00', ADD UNIQUE (created_at)"

#: Possible defects of the table, by engine: the statement that causes each, and the logged text.
WRONG = {
    Engine.POSTGRESQL: {
        "missing": ("", "does not exist"),
        "no key": ("ALTER TABLE {t} DROP CONSTRAINT {t}_pkey", "no primary key"),
        "unlogged": ("ALTER TABLE {t} SET UNLOGGED", "no ordinary, logged table"),
        "its own": ("REVOKE INSERT ON {t} FROM app", "not granted"),
        "too short": ("ALTER TABLE {t} ALTER id TYPE varchar(20)", "no column id varchar"),
        "another column": ("ALTER TABLE {t} RENAME unit TO writer", "no column unit"),
        "refuses": ("ALTER TABLE {t} ADD CHECK (id = 'none')", "cannot be used"),
        "diverted": ("CREATE RULE away AS ON INSERT TO {t} DO INSTEAD NOTHING", "has a rule"),
    },
    Engine.MYSQL: {
        "missing": ("", "does not exist"),
        "no key": ("ALTER TABLE {t} DROP PRIMARY KEY", "no primary or unique key"),
        "unlogged": ("ALTER TABLE {t} ENGINE=MyISAM", "engine MyISAM"),
        "too short": (
            "ALTER TABLE {t} MODIFY id varchar(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
            "column id",
        ),
        "another column": ("ALTER TABLE {t} CHANGE unit writer varchar(32) NOT NULL", "column unit"),
        "refuses": ("ALTER TABLE {t} ADD CHECK (id = 'none')", "cannot be used"),
        "diverted": (ANOTHER_KEY, "cannot be used"),
        "its own": (
            "ALTER TABLE {t} MODIFY id varchar(200) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL",
            "ascii_bin",
        ),
    },
}


@pytest.mark.usefixtures("prepared", "cutter")
@pytest.mark.parametrize("wrong", list(WRONG[Engine.MYSQL]))
def test_an_unusable_table_fails_no_unit_and_is_logged_once(
    kit: Kit, make_pool: MakePool, pair: Pair, work: Work, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, said = WRONG[kit.engine][wrong]
    if change:
        create(pair)
        run_sql(pair, change.format(t=TABLE))
    try:
        pool = make_pool(max_size=1, bg_receipts_table=TABLE)
        with caplog.at_level(logging.WARNING, logger="bgpool"):
            assert [pool.run(work) for _ in range(3)] == ["call 1", "call 2", "call 3"]
            assert pool.run(work, receipt_id="task-1") == "call 4"
        assert work.rows(pair) == 4
        lines = [record.getMessage() for record in caplog.records if "receipts" in record.getMessage()]
        assert len(lines) == 1, lines
        assert said in lines[0]
        assert "bgpool receipts --sql" in lines[0]
    finally:
        run_sql(pair, f"DROP TABLE IF EXISTS {TABLE}")


@pytest.mark.usefixtures("deployment")
@pytest.mark.threads
def test_a_skipped_insert_is_not_taken_for_an_existing_key(kit: Kit, pool: Pool[Any], pair: Pair, work: Work) -> None:
    """A unit that was never applied is not reported as applied."""
    if kit.engine is Engine.MYSQL:
        run_sql(pair, ANOTHER_KEY.format(t=TABLE))
    assert pool.run(work, receipt_id="task-1") == "call 1"
    if kit.engine is Engine.POSTGRESQL:
        # After the pool has checked the table.
        run_sql(pair, f"CREATE RULE away AS ON INSERT TO {TABLE} WHERE id = 'task-2' DO INSTEAD NOTHING")
    assert pool.run(work, receipt_id="task-2") == "call 2"
    assert (work.rows(pair), len(receipts(pair))) == (2, 1)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("unusual", [False, True])
def test_receipts_work_with_any_setup_of_the_connection(
    kit: Kit, make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, table: str, unusual: bool
) -> None:
    on_postgres = kit.engine is Engine.POSTGRESQL
    kwargs = {"autocommit": unusual} if on_postgres else {"use_unicode": not unusual}
    pool = make_pool(max_size=1, bg_receipts_table=f"{'public' if on_postgres else 'app'}.{table}", kwargs=kwargs)
    cutter.when = "after"
    assert pool.run(work) == "call 1"
    assert work.rows(pair) == 1


@pytest.fixture
def elsewhere(kit: Kit, pair: Pair, table: str) -> Iterator[str]:
    """A statement after which a session finds names in a schema that has a table of the same name."""
    del table
    on_postgres = kit.engine is Engine.POSTGRESQL
    run_sql(pair, "CREATE SCHEMA tenant")
    run_sql(pair, "GRANT USAGE ON SCHEMA tenant TO app" if on_postgres else "GRANT ALL ON tenant.* TO 'app'@'%'")
    create(pair, f"tenant.{TABLE}")
    yield "SET search_path = tenant, public" if on_postgres else "USE tenant"
    run_sql(pair, "DROP SCHEMA tenant CASCADE" if on_postgres else "DROP SCHEMA tenant")


@pytest.mark.usefixtures("prepared")
def test_the_same_table_is_used_with_any_search_path(
    kit: Kit, pool: Pool[Any], pair: Pair, cutter: CommitCutter, work: Work, elsewhere: str
) -> None:
    work.meanwhile = lambda conn: kit.execute(conn, elsewhere)
    cutter.when = "after"
    assert pool.run(work) == "call 1"
    assert work.rows(pair) == 1


@pytest.mark.threads
def test_a_claim_waits_no_longer_than_the_unit(kit: Kit, make_pool: MakePool, work: Work, table: str) -> None:
    """Afterwards the session's own limit applies again."""
    pool = make_pool(max_size=2, bg_receipts_table=table)
    limit = "SHOW lock_timeout" if kit.engine is Engine.POSTGRESQL else "SELECT @@SESSION.innodb_lock_wait_timeout"
    before = pool.run(lambda conn: kit.execute(conn, limit))
    with pool.connection() as conn:
        kit.execute(conn, f"INSERT INTO {table} (id, unit) VALUES ('job-1', 'another')")
        began = time.monotonic()
        with pytest.raises(kit.error):
            pool.run(work, receipt_id="job-1", timeout=1.0)
        assert time.monotonic() - began < 20
        assert pool.run(lambda conn: kit.execute(conn, limit)) == before
        assert work.calls == 0


def test_an_invalid_table_name_is_refused(make_pool: MakePool) -> None:
    refused: list[Any] = ["", "a b", "a.b.c", "x;y", 'q"q', "x" * 64, 7]
    for given in refused:
        with pytest.raises(bgpool.ConfigurationError, match=r"bg_receipts_table=.* is allowed"):
            make_pool(bg_receipts_table=given)

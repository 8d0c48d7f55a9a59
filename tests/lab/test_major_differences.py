"""The differences of a major upgrade's green for an application: measured on a real pair, for docs/major-upgrade.md.

All tests use one course of events on one pair: a schema, green made from it, changes on blue, a switchover. The
measured values are printed at the end of the run.
"""

from __future__ import annotations

import contextlib
import enum
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum

from bgpool.lab import Pair, Server
from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.trial import Trial
from bgpool.lab.waiting import wait_until
from tests.lab.majors import major_options

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.full]

SCHEMA: Final = """
CREATE TYPE mood AS ENUM ('a', 'b');
CREATE TYPE pair AS (x text, y int);
CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE items (id serial PRIMARY KEY, made int GENERATED ALWAYS AS IDENTITY, mood mood, pair pair);
INSERT INTO items (mood) SELECT 'a' FROM generate_series(1, 40);
CREATE UNLOGGED TABLE cache (n int);
INSERT INTO cache SELECT generate_series(1, 200);
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM items;
CREATE TABLE keyless (n int);
INSERT INTO keyless VALUES (1);
CREATE TABLE skewed (a int, b int);
INSERT INTO skewed
    SELECT CASE WHEN n % 200 = 0 THEN n % 1400 / 200 ELSE 7 END, n % 200 FROM generate_series(1, 20000) n;
CREATE STATISTICS both_columns ON a, b FROM skewed;
ANALYZE;
"""


class Mood(enum.Enum):
    """A type that blue had before green was made."""

    a = 1
    b = 2


class Late(enum.Enum):
    """A type that was made by hand on both sides after the clone."""

    a = 1


Facts = dict[str, Any]
"""What was found, by what it is about; two values are blue's and green's."""

#: The expected facts, without versions and without numbers of types and transactions.
EXPECTED: Final[Facts] = {
    "unlogged": (200, 0),
    "large objects": (1, 1),
    "columns with statistics": (2, 2),
    "extended statistics": (1, 0),
    "slots": (1, 0),
    "temporary table on a read-only green": "25006",
    "nextval on a read-only green": "25006",
    "refresh on a read-only green": "25006",
    "insert without key": "",
    "update without key": "55000",
    "delete without key": "55000",
    "replication stops: column": (
        'logical replication target relation "public.items" is missing replicated column: "note"'
    ),
    "replication stops: label": 'invalid input value for enum public.mood: "c"',
    "replication stops: table": 'logical replication target relation "public.later" does not exist',
    "rows of a table made on both: blue's, green's before REFRESH, and after": (2, 0, 1),
    "rows after TRUNCATE": 0,
    "inserts that statistics count": (20000, 0),
    "advisory lock is free on green": True,
    "listener is told": "SwitchoverInterrupted",
    "large object made after the clone": "42704",
    "materialized view": (41, 40),
    "materialized view is right once refreshed": True,
}


def one(server: Server, query: Any, *params: object) -> Any:
    """Return the first column of the first row."""
    return server.execute(query, params, database="app")[0][0]


def refused(server: Server, query: Any) -> str:
    """Return the SQLSTATE with which *server* refuses it, or an empty text."""
    try:
        server.execute(query, database="app")
    except psycopg.Error as error:
        return error.sqlstate or type(error).__name__
    return ""


@contextlib.contextmanager
def session(pair: Pair, server: Server) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(
        host=server.address, port=pair.port, user="app", password=pair.app_password, dbname="app", autocommit=True
    ) as connection:
        yield connection


def caught_up(pair: Pair) -> None:
    pair.green.wait_replayed(pair.blue.position(), timeout_s=20)


def stopped(pair: Pair, *, since: int) -> str:
    """Return the error that stops replication: the worker's last error in green's log after *since* characters."""

    def errors() -> list[str]:
        return re.findall(r"ERROR:  (.*)", pair.green.log_file.read_text()[since:])

    wait_until(lambda: bool(errors()), timeout_s=10, what="replication stops")
    return errors()[-1]


def burn(pair: Pair, count: int) -> None:
    """Use up transaction ids without any effect on the replica."""
    with session(pair, pair.blue) as connection:
        for _ in range(count):
            connection.execute("BEGIN")
            connection.execute("SELECT pg_current_xact_id()")
            connection.execute("ROLLBACK")


@pytest.fixture(autouse=True, scope="module")
def adapters() -> Iterator[None]:
    """Restore Psycopg's adapters for all connections at the end: other tests' types may have the same numbers."""
    kept = [dict(loaders) for loaders in psycopg.adapters._loaders]
    yield
    psycopg.adapters._loaders[:] = kept


@pytest.fixture(scope="module")
def facts() -> Facts:
    facts: Facts = {}
    options = {"configure": configure, "max_size": 4}
    with Trial(workers=0, pair_options=major_options(), schedule=FAST, pool_options=options) as trial:
        pair = trial.pair
        with session(pair, pair.blue) as connection:
            connection.execute(SCHEMA)
        one(pair.blue, "SELECT lo_create(101)")
        pair.blue.execute("SELECT pg_create_logical_replication_slot('capture', 'pgoutput')", database="app")
        pair.catch_up_definitions()
        before(pair, facts)
        meanwhile(pair, facts)
        caught_up(pair)
        cross_over(trial, facts)
    return facts


def configure(connection: Any) -> None:
    """Configure a connection as the pool does for each of its connections."""
    for name, python in (("mood", Mood), ("late_of_connection", Late)):
        info = EnumInfo.fetch(connection, name)
        if info is not None:
            register_enum(info, connection, python)
    connection.commit()


def before(pair: Pair, facts: Facts) -> None:
    """Record facts of the new green."""
    blue, green = pair.blue, pair.green
    for name, query in {
        "type": "SELECT 'mood'::regtype::oid::int",
        "composite": "SELECT 'pair'::regtype::oid::int",
        "label": "SELECT oid::int FROM pg_enum WHERE enumlabel = 'b'",
        "table": "SELECT 'items'::regclass::oid::int",
        "role": "SELECT 'app'::regrole::oid::int",
        "database": "SELECT oid::int FROM pg_database WHERE datname = 'app'",
        "function": "SELECT 'one()'::regprocedure::oid::int",
    }.items():
        facts[f"oid of {name}"] = (one(blue, query), one(green, query))
    for name, query in {
        "unlogged": "SELECT count(*) FROM cache",
        "large objects": "SELECT count(*) FROM pg_largeobject_metadata",
        "columns with statistics": "SELECT count(*) FROM pg_stats WHERE tablename = 'skewed'",
        "extended statistics": "SELECT count(*) FROM pg_statistic_ext_data",
        "estimate of a rare value": "EXPLAIN (FORMAT JSON) SELECT * FROM skewed WHERE a = 3",
        "slots": "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'capture'",
    }.items():
        found = [one(server, query) for server in (blue, green)]
        facts[name] = tuple(plan[0]["Plan"]["Plan Rows"] if isinstance(plan, list) else plan for plan in found)
    with session(pair, green) as connection:
        for name, query in {
            "temporary table": "CREATE TEMPORARY TABLE t (n int)",
            "nextval": "SELECT nextval('items_id_seq')",
            "refresh": "REFRESH MATERIALIZED VIEW counted",
        }.items():
            with pytest.raises(psycopg.Error) as error:
                connection.execute(query)
            facts[f"{name} on a read-only green"] = error.value.sqlstate


def meanwhile(pair: Pair, facts: Facts) -> None:
    """Make changes on blue before the switchover."""
    blue, green = pair.blue, pair.green
    # A table without a primary key refuses this as soon as it is in a publication.
    facts["insert without key"] = refused(blue, "INSERT INTO keyless VALUES (2)")
    facts["update without key"] = refused(blue, "UPDATE keyless SET n = 3")
    facts["delete without key"] = refused(blue, "DELETE FROM keyless")
    one(blue, "SELECT lo_create(102)")
    blue.execute("INSERT INTO items (mood) VALUES ('b')", database="app")
    blue.execute("REFRESH MATERIALIZED VIEW counted", database="app")

    # DDL: replication stops at the first row that needs it, and continues once green has had the same DDL.
    def alter(what: str, change: str, row: str) -> None:
        caught_up(pair)
        begin = len(green.log_file.read_text())
        for statement in (change, row):
            blue.execute(statement.encode(), database="app")
        facts[f"replication stops: {what}"] = stopped(pair, since=begin)
        green.execute(change.encode(), database="app")

    alter("column", "ALTER TABLE items ADD COLUMN note text", "INSERT INTO items (note) VALUES ('n')")
    alter("label", "ALTER TYPE mood ADD VALUE 'c'", "INSERT INTO items (mood) VALUES ('c')")
    caught_up(pair)
    begin = len(green.log_file.read_text())
    table = "CREATE TABLE later (n int PRIMARY KEY)"
    blue.execute(table.encode(), database="app")
    blue.execute("INSERT INTO later VALUES (1)", database="app")
    facts["replication stops: table"] = stopped(pair, since=begin)
    green.execute(table.encode(), database="app")
    time.sleep(1.0)
    skipped = one(green, "SELECT count(*) FROM later")
    green.execute("ALTER SUBSCRIPTION bgpool_lab REFRESH PUBLICATION WITH (copy_data = false)", database="app")
    blue.execute("INSERT INTO later VALUES (2)", database="app")
    caught_up(pair)
    facts["rows of a table made on both: blue's, green's before REFRESH, and after"] = (
        one(blue, "SELECT count(*) FROM later"), skipped, one(green, "SELECT count(*) FROM later"),
    )  # fmt: skip
    blue.execute("TRUNCATE later", database="app")
    caught_up(pair)
    facts["rows after TRUNCATE"] = one(green, "SELECT count(*) FROM later")
    # Types that are created by hand on both sides, with another type in between on one of them.
    green.execute("CREATE TYPE in_between AS (n int)", database="app")
    pair.define(
        "CREATE TYPE late_of_connection AS ENUM ('a')", "CREATE TYPE late_of_all AS ENUM ('a')",
        "CREATE TYPE late_pair AS (s text, n int)",
    )  # fmt: skip
    facts["oid of a late type"] = tuple(one(s, "SELECT 'late_of_all'::regtype::oid::int") for s in (blue, green))
    facts["inserts that statistics count"] = tuple(
        one(s, "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'skewed'") for s in (blue, green)
    )


def read(connection: Any) -> dict[str, Any]:
    """Read the application's values on one connection of the pool."""
    with connection.cursor() as cursor:

        def value(query: str) -> Any:
            cursor.execute(query)
            return cursor.fetchone()[0]

        for _ in range(8):  # psycopg prepares a statement at its sixth execution
            value("SELECT count(*) FROM items")
        return {
            "mood": value("SELECT 'a'::mood"),
            "late of the connection": value("SELECT 'a'::late_of_connection"),
            "late of all": value("SELECT 'a'::late_of_all"),
            "late pair": value("SELECT ('s', 1)::late_pair"),
            "server_version": connection.info.server_version,
            "prepared": value("SELECT count(*) FROM pg_prepared_statements"),
            "txid": value("SELECT pg_current_xact_id()::text::bigint"),
            "id": value("INSERT INTO items DEFAULT VALUES RETURNING id"),
            "identity": value("INSERT INTO items DEFAULT VALUES RETURNING made"),
        }


def cross_over(trial: Trial, facts: Facts) -> None:
    """Switch over, under an application with a listener and an advisory lock."""
    pair, pool = trial.pair, trial.pool
    with session(pair, pair.blue) as connection:
        register_enum(found(EnumInfo.fetch(connection, "late_of_all")), None, Late)
        register_composite(found(CompositeInfo.fetch(connection, "late_pair")), None)
    trial.director.create_deployment()
    facts["read before"] = pool.run(read)
    burn(pair, 400)
    facts["txid of blue"] = one(pair.blue, "SELECT pg_current_xact_id()::text::bigint")
    trial.wait_ready()
    listener, keeper = pool.getconn(), pool.getconn()
    for lent in (listener, keeper):
        lent.autocommit = True
    listener.execute("LISTEN news")
    keeper.execute("SELECT pg_advisory_lock(7)")
    facts["advisory lock is free on green"] = one(pair.green, "SELECT pg_try_advisory_lock(7)")

    def listen() -> None:
        try:
            for _ in listener.notifies(timeout=10):
                pass
        except Exception as error:  # the application would get any of these
            facts["listener is told"] = type(error).__name__

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    trial.direct(trial.director.run)
    thread.join(15)
    for lent in (listener, keeper):
        pool.putconn(lent)
    facts["read after"] = pool.run(read)
    blue, green = pair.blue, pair.green
    facts["large object made after the clone"] = refused(green, "SELECT lo_get(102)")
    facts["materialized view"] = tuple(one(server, "SELECT n FROM counted") for server in (blue, green))
    green.execute("REFRESH MATERIALIZED VIEW counted", database="app")
    facts["materialized view is right once refreshed"] = one(
        green, "SELECT n = (SELECT count(*) FROM items) FROM counted"
    )
    facts["versions"] = tuple(one(server, "SHOW server_version_num") for server in (blue, green))


def found(info: Any) -> Any:
    assert info is not None
    return info


def test_the_differences_are_the_expected_ones(facts: Facts, record_property: Callable[[str, object], None]) -> None:
    for name, value in facts.items():
        record_property("told", f"{name}: {value}")
    assert {name: facts[name] for name in EXPECTED} == EXPECTED


@pytest.mark.parametrize("what", ["type", "composite", "label", "table", "role", "database"])
def test_oids_are_kept(facts: Facts, what: str) -> None:
    blue, green = facts[f"oid of {what}"]
    assert blue == green


def test_oids_of_functions_and_later_types_differ(facts: Facts) -> None:
    for what in ("a late type", "function"):
        blue, green = facts[f"oid of {what}"]
        assert blue != green


def test_adapters_of_one_connection_work_and_global_ones_lose_effect(facts: Facts) -> None:
    before, after = facts["read before"], facts["read after"]
    assert (before["mood"], before["late of the connection"], before["late of all"]) == (Mood.a, Late.a, Late.a)
    assert (after["mood"], after["late of the connection"], after["late of all"]) == (Mood.a, Late.a, "a")
    assert (before["late pair"], after["late pair"]) == (("s", 1), "(s,1)")


def test_new_connections_have_the_new_version_and_prepare_again(facts: Facts) -> None:
    before, after = facts["read before"], facts["read after"]
    assert (str(before["server_version"]), str(after["server_version"])) == facts["versions"]
    assert after["server_version"] // 10000 > before["server_version"] // 10000
    assert after["prepared"] > 0


def test_sequences_continue_and_transaction_ids_restart_lower(facts: Facts) -> None:
    before, after = facts["read before"], facts["read after"]
    assert (after["id"], after["identity"]) == (before["id"] + 2, before["identity"] + 2)
    assert after["txid"] < facts["txid of blue"]
    blue, green = facts["estimate of a rare value"]
    assert blue == green

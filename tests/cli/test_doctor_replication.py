"""The doctor finds what logical replication leaves out, on real servers: each check with an object that violates it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.phase import Role
from bgpool.doctor import Case, Finding, Result, replication_checks
from bgpool.doctor.minimums import of_django
from bgpool.doctor.receipts_checks import of_application
from bgpool.doctor.replication import Replication
from bgpool.doctor.schemas import Column, SchemaObject, compare, first_few
from bgpool.doctor.server import Server
from bgpool.lab import Director, Pair, metadata
from bgpool.lab.pair import DATABASE
from bgpool.lab.upgrade import PUBLICATION, SUBSCRIPTION
from bgpool.pools.postgres.receipts import DDL
from tests.pools.callers import wait_until

PUBLISH = f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"
#: Gone once it is tried.
UPDATE = "BEGIN; INSERT INTO test.{name} VALUES (1); UPDATE test.{name} SET n = 1; ROLLBACK"


def on(server: Any, *statements: str) -> None:
    """Run them in the applications' database, as the superuser, who owns what is made."""
    for statement in statements:
        server.execute(statement, database=DATABASE)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A major upgrade without a switchover."""
    with Pair("rds", upgrade="major") as pair:
        Director(pair).create_deployment()
        yield pair


@pytest.fixture
def both(pair: Pair) -> Iterator[Sequence[Any]]:
    """Blue and green, with whatever a test makes there gone after it."""
    yield pair.blue, pair.green
    for server in pair.servers:
        on(server, "DROP SCHEMA IF EXISTS test CASCADE", "DROP EXTENSION IF EXISTS vector CASCADE")
        on(server, "SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


def ask(pair: Pair, more: str = "", *, of_django: bool = False) -> dict[str, Finding]:
    """Return the doctor's findings by check; *more* is added to the DSN."""
    case = Case(f"{pair.dsn}&bg_resolver={pair.resolver}{more}", of_django=of_django)
    names = pair.names.blue.primary, pair.names.green.primary
    blue, green = (Server(case, role, name, pair.port) for role, name in zip(Role, names, strict=True))
    servers = [blue, green]
    try:
        for server in servers:
            server.open()
        subject = Replication(blue, green)
        found = replication_checks.checks_of(subject).run(subject, "replication")
    finally:
        for server in servers:
            server.close()
    return {finding.check: finding for finding in found}


@pytest.mark.lab
class TestLogicalGreen:
    def test_one_in_order_is_said_to_be_logical_and_nothing_else(self, pair: Pair) -> None:
        found = ask(pair)
        assert {name for name, finding in found.items() if finding.result is not Result.OK} == {"kind"}, found
        assert found["kind"].result is Result.WARNING
        assert "a logical replica (blue PostgreSQL 16." in found["kind"].text
        assert ", green PostgreSQL 18." in found["kind"].text
        assert found["kind"].text.endswith("; units of work ask old blue")
        kind = ask(pair, more="&bg_receipts_table=receipts")["kind"]
        decides = "receipts in receipts decide it: see receipts"
        assert (kind.result, kind.text.rpartition("; ")[2]) == (Result.OK, decides)

    def test_a_receipts_table_that_green_lacks_would_stop_the_replication(
        self, pair: Pair, both: Sequence[Any]
    ) -> None:
        def of_green() -> Finding:
            case = Case(f"{pair.dsn}&bg_resolver={pair.resolver}&bg_receipts_table=test.late")
            with closing(Server(case, Role.TARGET, pair.names.green.primary, pair.port)) as green:
                return next(found for found in of_application(case, green) if found.check == "receipts")

        ddl = "CREATE SCHEMA test; GRANT USAGE ON SCHEMA test TO app; " + DDL.format(table="test.late", user="app")
        on(both[0], ddl)
        stops = of_green()
        assert stops.result is Result.FAILED
        assert stops.text.endswith("it does not exist: the first receipt on blue stops the replication to green")
        on(both[1], ddl)
        assert "green's subscription does not receive it" in of_green().text

    def test_tables_without_a_key(self, pair: Pair, both: Sequence[Any]) -> None:
        blue, _ = both
        on(
            blue,
            "CREATE SCHEMA test",
            "CREATE TABLE test.a_bare (n int)",
            "CREATE TABLE test.b_nothing (n int PRIMARY KEY); ALTER TABLE test.b_nothing REPLICA IDENTITY NOTHING",
            "CREATE TABLE test.c_deferrable (n int PRIMARY KEY DEFERRABLE)",
            "CREATE TABLE test.d_root (n int) PARTITION BY RANGE (n)",
            "CREATE TABLE test.d_one PARTITION OF test.d_root FOR VALUES FROM (1) TO (2)",
            "CREATE TABLE test.d_two PARTITION OF test.d_root FOR VALUES FROM (2) TO (3)",
            # Those that are in order.
            "CREATE TABLE test.keyed (n int PRIMARY KEY)",
            'CREATE TABLE test."Full" (n int); ALTER TABLE test."Full" REPLICA IDENTITY FULL',
            "CREATE TABLE test.indexed (n int NOT NULL UNIQUE);"
            " ALTER TABLE test.indexed REPLICA IDENTITY USING INDEX indexed_n_key",
            "CREATE TABLE test.root (n int PRIMARY KEY) PARTITION BY RANGE (n);"
            " CREATE TABLE test.leaf PARTITION OF test.root FOR VALUES FROM (1) TO (2)",
            "CREATE UNLOGGED TABLE test.unlogged (n int)",
            "CREATE VIEW test.view AS SELECT 1 AS n",
            "CREATE FOREIGN DATA WRAPPER test; CREATE SERVER test FOREIGN DATA WRAPPER test;"
            " CREATE FOREIGN TABLE test.distant (n int) SERVER test",
        )
        bad = ["a_bare", "b_nothing", "c_deferrable", "d_root"]
        try:
            # PostgreSQL itself is of the same opinion.
            for name in bad:
                with pytest.raises(
                    psycopg.errors.ObjectNotInPrerequisiteState, match="does not have a replica identity"
                ):
                    on(blue, UPDATE.format(name=name))
            for name in ('"Full"', "keyed", "indexed", "root", "unlogged"):
                on(blue, UPDATE.format(name=name))
            keys = ask(pair)["keys"]
            assert keys.result is Result.FAILED
            assert keys.text == (
                "4 tables of database app without a primary key or replica identity, published by bgpool_lab, so that "
                "UPDATE and DELETE on blue fail there now (55000): test.a_bare, test.b_nothing, test.c_deferrable, "
                "test.d_root"
            )
            on(blue, f"DROP PUBLICATION {PUBLICATION}")
            on(blue, UPDATE.format(name="a_bare"))
            keys = ask(pair)["keys"]
            assert keys.result is Result.WARNING
            assert keys.text.startswith("4 tables of database app without a primary key")
            # Of those that a publication names, a partition by way of its root.
            on(blue, "CREATE PUBLICATION other FOR TABLE test.d_root WITH (publish_via_partition_root)")
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                on(blue, UPDATE.format(name="d_root"))
            assert ask(pair)["keys"].text.endswith(
                "by other, so that UPDATE and DELETE on blue fail there now (55000): test.d_root"
            )
            on(blue, "ALTER PUBLICATION other SET (publish = 'insert')")
            assert ask(pair)["keys"].result is Result.WARNING
        finally:
            on(blue, "DROP PUBLICATION IF EXISTS other", f"DROP PUBLICATION IF EXISTS {PUBLICATION}", PUBLISH)
            on(blue, "DROP FOREIGN DATA WRAPPER IF EXISTS test CASCADE")

    def test_what_green_has_not_or_has_as_it_was(self, pair: Pair, both: Sequence[Any]) -> None:
        for server in both:
            on(
                server,
                "CREATE SCHEMA test",
                "CREATE UNLOGGED TABLE test.cache (n int PRIMARY KEY)",
                "CREATE TEMP TABLE temporary (n int)",
                "CREATE MATERIALIZED VIEW test.totals AS SELECT 1 AS n",
            )
        on(both[0], "SELECT lo_create(0), lo_create(0)")
        found = ask(pair)
        assert {name for name, finding in found.items() if finding.result is Result.FAILED} == set()
        for check, says in (
            ("unlogged", "1 unlogged table in database app, empty on green: test.cache"),
            ("large objects", "2 large objects in database app; those made or changed since green was made"),
            ("materialized", "1 materialized view in database app: test.totals; green has them as they were"),
        ):
            assert found[check].result is Result.WARNING
            assert found[check].text.startswith(says), found[check]

    def test_slots_of_others(self, pair: Pair, both: Sequence[Any]) -> None:
        blue, green = both
        assert ask(pair)["slots"].text == "none that green lacks", "the deployment's own is no offence"
        on(blue, "SELECT pg_create_logical_replication_slot('capture', 'pgoutput')")
        on(blue, "SELECT pg_create_physical_replication_slot('standby')")
        try:
            slots = ask(pair)["slots"]
            assert (slots.result, "1 logical replication slot on blue that green neither" in slots.text) == (
                Result.WARNING,
                True,
            )
            assert slots.text.endswith(": capture (database app)")
            # One that is on green, too, by PostgreSQL's own means or by hand.
            on(green, "SELECT pg_create_logical_replication_slot('capture', 'pgoutput')")
            assert ask(pair)["slots"].result is Result.OK
        finally:
            for server in both:
                on(server, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                   " WHERE slot_name IN ('capture', 'standby')")  # fmt: skip

    def test_schemas_that_differ(self, pair: Pair, both: Sequence[Any]) -> None:
        blue, green = both
        for server in both:
            on(
                server,
                "CREATE SCHEMA test",
                "CREATE TYPE test.mood AS ENUM ('good')",
                "CREATE TABLE test.orders (id int PRIMARY KEY, total int)",
            )
        on(
            blue,
            "ALTER TABLE test.orders ADD note text",
            "ALTER TYPE test.mood ADD VALUE 'bad'",
            "CREATE TABLE test.later (id serial PRIMARY KEY)",
        )
        on(
            green,
            "ALTER TABLE test.orders ALTER total TYPE bigint",
            "ALTER TABLE test.orders ADD must int NOT NULL",
            "ALTER TABLE test.orders ADD extra int NOT NULL DEFAULT 0",
            "CREATE VIEW test.shown AS SELECT 1 AS n",
        )
        schema = ask(pair)["schema"]
        assert schema.result is Result.FAILED
        assert schema.text == (
            "5 missing on green in database app: table test.later, sequence test.later_id_seq, enum label "
            "test.mood.bad, column test.orders.note, a default for column test.orders.must, which is NOT NULL and on "
            "green alone; also different: test.orders.total is integer on blue and bigint on green, column "
            "test.orders.extra on green alone, view test.shown on green alone"
        )
        on(blue, "DROP TABLE test.later", "ALTER TABLE test.orders DROP note", "DROP TYPE test.mood")
        on(green, "ALTER TABLE test.orders DROP must")
        schema = ask(pair)["schema"]
        assert schema.result is Result.WARNING
        assert schema.text.startswith("database app differs in 4: test.orders.total is integer")

    def test_a_table_that_green_ignores_and_a_subscription_that_is_off(self, pair: Pair, both: Sequence[Any]) -> None:
        _, green = both
        for server in both:
            on(
                server,
                "CREATE SCHEMA test",
                "CREATE TABLE test.twice (id int PRIMARY KEY)",
                "CREATE TABLE test.root (n int PRIMARY KEY) PARTITION BY RANGE (n)",
                "CREATE TABLE test.leaf PARTITION OF test.root FOR VALUES FROM (1) TO (2)",
            )
        on(green, "CREATE TABLE test.own (id int PRIMARY KEY)")
        found = ask(pair)
        assert found["schema"].result is Result.WARNING, "for green's own table"
        subscription = found["subscription"]
        assert subscription.result is Result.FAILED
        assert subscription.text.startswith("bgpool_lab leaves out 2 tables that both sides have")
        assert subscription.text.endswith("do not reach green: test.leaf, test.twice")
        on(
            green,
            "SET default_transaction_read_only = off",
            f"ALTER SUBSCRIPTION {SUBSCRIPTION} REFRESH PUBLICATION WITH (copy_data = false)",
        )
        on(green, f"ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE")
        try:
            found = ask(pair)
            assert found["subscription"].result is Result.FAILED
            assert found["subscription"].text == "bgpool_lab is disabled: green receives nothing and falls behind"
        finally:
            on(green, f"ALTER SUBSCRIPTION {SUBSCRIPTION} ENABLE")
        wait_until(lambda: ask(pair)["subscription"].result is Result.OK)

    def test_replication_that_has_stopped(self, pair: Pair, both: Sequence[Any]) -> None:
        blue, green = both
        table = "CREATE TABLE test.later (n int PRIMARY KEY)"
        on(green, "CREATE SCHEMA test")
        on(blue, "CREATE SCHEMA test", table, "INSERT INTO test.later VALUES (1)")
        # Green tries it again and again.
        wait_until(
            lambda: ask(pair)["subscription"].text.startswith("green does not read its slot on blue, bgpool_lab,")
        )
        on(green, table)
        wait_until(lambda: ask(pair)["subscription"].text.startswith("bgpool_lab leaves out 1 table"))

    def test_extensions_that_differ(self, pair: Pair, both: Sequence[Any]) -> None:
        blue, green = both
        on(blue, "CREATE EXTENSION vector")
        extensions = ask(pair)["extensions"]
        assert extensions.result is Result.FAILED
        assert extensions.text.startswith("on blue alone in database app: vector 0.")
        # As pg_upgrade leaves it.
        on(green, "CREATE EXTENSION vector", "UPDATE pg_extension SET extversion = '0.7.0' WHERE extname = 'vector'")
        found = ask(pair)
        extensions = found["extensions"]
        assert extensions.result is Result.WARNING
        assert " on blue, 0.7.0 on green, which offers 0.8" in extensions.text
        assert "ALTER EXTENSION vector UPDATE;" in extensions.remedy
        assert found["schema"].result is Result.OK, "what an extension brings is its own affair"
        on(blue, "DROP EXTENSION vector")
        assert "vector 0.7.0 on green alone" in ask(pair)["extensions"].text

    def test_before_there_is_a_green_and_after_the_switchover(self, pair: Pair, both: Sequence[Any]) -> None:
        blue, _ = both
        on(blue, "CREATE SCHEMA test", "CREATE MATERIALIZED VIEW test.totals AS SELECT 1 AS n")
        director = Director(pair)
        director.publish(metadata.IN_PROGRESS)
        try:
            found = ask(pair)
        finally:
            director.publish(metadata.AVAILABLE)
        assert found["kind"].result is Result.NOT_CHECKED
        assert "the deployment is not AVAILABLE" in found["kind"].text
        for check in ("schema", "subscription", "extensions"):
            assert found[check].result is Result.NOT_CHECKED
        assert "if green becomes a logical replica" in found["materialized"].text

    def test_the_doctors_command_has_them(self, pair: Pair, both: Sequence[Any], tmp_path: Path) -> None:
        on(both[0], "CREATE SCHEMA test", "CREATE TABLE test.later (n int)")
        environment = {"BGPOOL_RESOLVER": pair.resolver, "BGPOOL_RUN_DIR": str(tmp_path / "run")}
        result = CliRunner().invoke(app, ["doctor", "--json", pair.dsn], env=environment)
        found = {
            item["check"]: item for item in json.loads(result.stdout)["findings"] if item["where"] == "replication"
        }
        assert result.exit_code == 1
        assert {name for name, item in found.items() if item["result"] == "failed"} == {"keys", "schema"}


@pytest.mark.lab
def test_a_physical_green_lacks_nothing_but_unlogged_tables_and_slots(postgres_pair: Pair) -> None:
    pair = postgres_pair
    Director(pair).create_deployment()
    on(
        pair.blue,
        "CREATE SCHEMA test",
        "CREATE TABLE test.bare (n int)",
        "CREATE UNLOGGED TABLE test.cache (n int)",
        "CREATE MATERIALIZED VIEW test.totals AS SELECT 1 AS n",
        "SELECT lo_create(4242)",
    )
    try:
        found = ask(pair)
    finally:
        on(pair.blue, "DROP SCHEMA test CASCADE", "SELECT lo_unlink(4242)")
        for server in pair.servers:
            metadata.withdraw(server)
    assert {name for name, finding in found.items() if finding.result is not Result.OK} == {"unlogged"}, found
    assert found["kind"].text.startswith("a physical replica")
    assert "1 table of database app without a primary key" in found["keys"].text
    assert "1 large object in database app; a physical replica has them" in found["large objects"].text


@pytest.mark.lab
def test_mysql(mysql_pair: Pair) -> None:
    pair = mysql_pair
    found = ask(pair)
    assert {name for name, finding in found.items() if finding.result is not Result.OK} == {"kind"}, found
    assert found["kind"].text.endswith("and it is CommitOutcomeUnknown")
    assert ask(pair, more="&bg_receipts_table=receipts")["kind"].result is Result.OK
    on(
        pair.blue,
        "CREATE TABLE a_bare (n int)",
        "CREATE TABLE b_null (n int UNIQUE)",
        "CREATE TABLE c_unique (n int NOT NULL UNIQUE)",
        "CREATE TABLE d_kept (n int PRIMARY KEY) ENGINE=MyISAM",
        "CREATE VIEW e_view AS SELECT 1 AS n",
    )
    try:
        found = ask(pair)
        assert found["keys"].result is Result.WARNING
        assert found["keys"].text.partition("; ")[0].endswith("without NULL: app.a_bare, app.b_null")
        assert found["engines"].result is Result.WARNING
        assert "not transactional: app.d_kept (MyISAM);" in found["engines"].text
        # Whose grant is for the metadata alone.
        own = f"&blue-green-monitoring-user=monitor&blue-green-monitoring-password={pair.lab_password}"
        found = ask(pair, more=own)
        assert found["keys"].result is found["engines"].result is Result.NOT_CHECKED
        assert "'monitor'@'%' sees no table" in found["keys"].text
    finally:
        on(pair.blue, "DROP VIEW e_view", "DROP TABLE a_bare, b_null, c_unique, d_kept")


# -- as functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("django", "server", "needed", "enough"),
    [
        ("5.2.19", "PostgreSQL 13.21", "PostgreSQL 14", False),
        ("5.2.19", "PostgreSQL 14.1 (Debian 14.1-1)", "PostgreSQL 14", True),
        ("6.1.3", "PostgreSQL 14.18", "PostgreSQL 15", False),
        ("6.0", "version 10.5.12-MariaDB-log", "MariaDB 10.6", False),
        ("6.1.3", "version 10.11.19-MariaDB", "MariaDB 10.11", True),
        ("6.1.3", "version 8.0.40", "MySQL 8.4", False),
        ("5.2.19", "version 8.0.11", "MySQL 8.0.11", True),
    ],
)
def test_what_django_needs(django: str, server: str, needed: str, enough: bool) -> None:
    needs = of_django(django, server)
    assert needs is not None
    assert (needs.needed, needs.enough) == (needed, enough)


def test_a_django_or_a_server_that_is_not_known() -> None:
    assert of_django("7.0", "PostgreSQL 16.1") is None
    assert of_django("dev", "PostgreSQL 16.1") is None
    assert of_django("5.2", "PostgreSQL devel") is None


@pytest.mark.lab
def test_a_server_that_django_would_refuse(postgres_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.doctor.minimums._DJANGO", {(5, 2): {"PostgreSQL": (99,)}})
    monkeypatch.setattr("importlib.metadata.version", lambda _: "5.2.1")
    django = ask(postgres_pair)["django"]
    assert django.result is Result.WARNING
    assert django.text.startswith("Django 5.2.1 needs PostgreSQL 99; blue PostgreSQL 1")
    django = ask(postgres_pair, of_django=True)["django"]
    assert (django.result, django.remedy) == (Result.FAILED, "upgrade blue and green, or use an older Django")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "7.0")
    assert ask(postgres_pair)["django"].result is Result.NOT_CHECKED


def test_what_is_the_same_does_not_differ() -> None:
    table = SchemaObject("r", (Column("id", "integer", required=True),))
    assert compare({"a.t": table}, {"a.t": table}) == compare({}, {})
    # Partitions are what green may have got instead, and a label is no column.
    found = compare(
        {"a.t": table, "a.e": SchemaObject("e")},
        {"a.t": SchemaObject("p", table.columns), "a.e": SchemaObject("e", (Column("x"),))},
    )
    assert found.missing == ()
    assert found.other == (
        "a.t is a table on blue and a partitioned table on green",
        "enum label a.e.x on green alone",
    )
    assert compare({"a.t": table}, {"a.t": SchemaObject("v")}).other == ("a.t is a table on blue and a view on green",)


def test_only_the_first_names_are_listed() -> None:
    assert first_few(["a", "b", "c", "d", "e"]) == "a, b, c, d, e"
    assert first_few(["a", "b", "c", "d", "e", "f", "g"]) == "a, b, c, d, e and 2 more"

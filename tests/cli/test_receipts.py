"""bgpool receipts: what it prints the servers take, and it says what units of work would make of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.lab import Pair

pytestmark = pytest.mark.lab


@pytest.fixture(params=list(Engine), ids=lambda engine: engine.value)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    found: Pair = request.getfixturevalue("mysql_pair" if request.param is Engine.MYSQL else "postgres_pair")
    monkeypatch.setenv("BGPOOL_RESOLVER", found.resolver)
    return found


def on(pair: Pair, sql: str) -> None:
    """Run the statements in the application's database, as an administrator."""
    lines = [line for line in sql.splitlines() if not line.startswith("--")]
    for statement in filter(None, map(str.strip, "\n".join(lines).split(";"))):
        pair.blue.execute(statement, database="app")


@pytest.fixture
def table(pair: Pair) -> Iterator[str]:
    """The name of a table that is not there, and is gone after the test."""
    yield "kept"
    on(pair, "DROP TABLE IF EXISTS kept")
    if pair.engine is Engine.MYSQL:
        on(pair, "DROP USER IF EXISTS keeper")


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["receipts", *arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def check(dsn: str) -> tuple[int, dict[str, Any]]:
    status, output = run("--check", "--json", dsn)
    return status, {item["check"]: item for item in json.loads(output)["findings"]}


def test_what_is_printed_makes_a_table_that_can_be_used(pair: Pair, table: str) -> None:
    dsn = f"{pair.dsn}&bg_receipts_table={table}"
    status, found = check(dsn)
    assert (status, found["receipts"]["result"]) == (1, "failed")
    assert "does not exist" in found["receipts"]["finding"]
    assert "bgpool receipts --sql" in found["receipts"]["remedy"]
    status, ddl = run("--sql", "-", stdin=dsn)
    assert status == 0
    on(pair, ddl)
    status, found = check(dsn)
    assert (status, {name: item["result"] for name, item in found.items()}) == (
        0,
        {"receipts": "ok", "old receipts": "ok"},
    ), found
    status, output = run("--check", dsn)
    assert (status, "2 ok" in output) == (0, True)
    assert pair.app_password not in ddl + output


#: 10,000 numbers, on every server.
_TEN = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(10))
_NUMBERS = "SELECT a.n * 1000 + b.n * 100 + c.n * 10 + d.n AS n FROM " + ", ".join(f"({_TEN}) AS {x}" for x in "abcd")
OLD = {
    Engine.POSTGRESQL: "INSERT INTO kept SELECT 'old-' || n, 'u', now() - interval '86460 s'",
    Engine.MYSQL: "INSERT INTO kept SELECT CONCAT('old-', n), 'u', NOW() - INTERVAL 86460 SECOND",
}


@pytest.mark.parametrize(
    ("rows", "result", "says"), [(20, "ok", "; 20 are older"), (10_000, "warning", "10000 or more")]
)
def test_old_rows_are_counted_as_far_as_it_matters(pair: Pair, table: str, rows: int, result: str, says: str) -> None:
    dsn = f"{pair.dsn}&bg_receipts_table={table}"
    on(pair, run("--sql", dsn)[1])
    on(pair, f"{OLD[pair.engine]} FROM ({_NUMBERS}) AS numbers WHERE n < {rows}")
    status, found = check(dsn)
    assert (status, found["old receipts"]["result"]) == (0, result)
    assert "the oldest 24 h old; kept for 24 h; " in found["old receipts"]["finding"]
    assert says in found["old receipts"]["finding"]


@pytest.mark.parametrize("missing", ["index", "right"])
def test_rows_that_are_never_deleted_are_a_warning(pair: Pair, table: str, missing: str) -> None:
    dsn = f"{pair.dsn}&bg_receipts_table={table}"
    on(pair, run("--sql", dsn)[1])
    if missing == "right":
        if pair.engine is Engine.MYSQL:
            # The lab's own user has every right in its database.
            on(pair, f"CREATE USER keeper IDENTIFIED BY '{pair.app_password}'; GRANT SELECT, INSERT ON kept TO keeper")
            dsn = dsn.replace("//app:", "//keeper:")
        else:
            on(pair, "REVOKE DELETE ON kept FROM app")
    else:
        on(
            pair,
            "DROP INDEX kept_created_at_idx" if pair.engine is Engine.POSTGRESQL else "DROP INDEX created_at ON kept",
        )
    status, found = check(dsn)
    assert (status, found["receipts"]["result"], found["old receipts"]["result"]) == (0, "ok", "warning"), found
    assert {"index": "no index on created_at", "right": "not granted"}[missing] in found["old receipts"]["finding"]


def test_a_login_that_is_refused_fails_and_tells_no_password(pair: Pair) -> None:
    dsn = pair.dsn.replace(pair.app_password, "anotherpassword")
    status, found = check(dsn)
    assert (status, found["login"]["result"]) == (1, "failed")
    assert "anotherpassword" not in str(found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["postgresql://app@h/app"], "either --sql or --check is needed"),
        (["--sql", "--check", "postgresql://app@h/app"], "either --sql or --check is needed"),
        (["--sql", "--json", "postgresql://app@h/app"], "--json goes with --check"),
        (["--sql", "http://app:topsecret@h/app"], "scheme 'http' is not supported"),
        (["--check", "postgresql://app:topsecret@h/app?bg_receipts_table=a%20b"], "is allowed"),
    ],
)
def test_a_wrong_call(arguments: list[str], says: str) -> None:
    status, output = run(*arguments)
    assert status == 2
    assert says in output
    assert "topsecret" not in output


def test_names_are_quoted() -> None:
    assert 'TO "a""b";' in run("--sql", 'host=h dbname=app user=a"b')[1]
    assert "ON `it``s`.`bgpool_receipts` TO 'o''hara'@'%';" in run("--sql", "mysql://o%27hara@h/it%60s")[1]
    ddl = run("--sql", "postgresql://app@h/app?bg_receipts_table=ops.kept")[1]
    assert 'CREATE TABLE "ops"."kept" (' in ddl
    assert ddl.endswith('GRANT USAGE ON SCHEMA "ops" TO "app";\n')

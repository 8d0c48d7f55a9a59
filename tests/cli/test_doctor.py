"""Every prerequisite that is missing is found missing, on real servers; and what is there is found to be there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.phase import Role
from bgpool.doctor import Case, Finding, Result, endpoints, examine
from bgpool.doctor.findings import EarlyVerdict
from bgpool.doctor.server import QueryFailed, Server
from bgpool.lab import Director, Pair, metadata
from bgpool.lab.pair import MONITOR_ROLE
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

ENGINES = ("postgresql", "mysql")


@pytest.fixture(scope="module", params=ENGINES)
def running(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Pair("rds", engine=request.param) as pair:
        yield pair


@pytest.fixture
def pair(running: Pair, place: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return ready(running, place, monkeypatch)


@pytest.fixture
def postgres(running: Pair, pair: Pair) -> Pair:
    if running.engine.value != "postgresql":
        pytest.skip("PostgreSQL's own")
    return pair


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The path of the run directory, which does not exist."""
    return tmp_path / "run"


def ready(pair: Pair, place: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setenv("BGPOOL_RESOLVER", pair.resolver)
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(place))
    Director(pair).create_deployment()
    return pair


def run(*arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, str]], str]:
    """Exit status, findings by place and name, and all that was printed."""
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    found = json.loads(result.stdout)["findings"] if result.stdout else []
    return result.exit_code, {(item["where"], item["check"]): item for item in found}, result.output


def failures(found: dict[tuple[str, str], dict[str, str]]) -> set[tuple[str, str]]:
    return {key for key, item in found.items() if item["result"] == "failed"}


def by_name(findings: list[Finding]) -> dict[tuple[str, str], Finding]:
    return {(finding.where, finding.check): finding for finding in findings}


def with_password(pair: Pair, password: str) -> str:
    return pair.dsn.replace(pair.app_password, password)


def test_the_receipts_table_is_looked_at_on_both_sides(pair: Pair) -> None:
    dsn = f"{pair.dsn}&bg_receipts_table=kept"
    _, found, _ = run(dsn)
    assert {("blue", "receipts"), ("green", "receipts")} <= failures(found)
    ddl = CliRunner().invoke(app, ["receipts", "--sql", dsn]).stdout.partition("\n")[2]
    try:
        for statement in filter(None, map(str.strip, ddl.split(";"))):
            pair.blue.execute(statement, database="app")
        wait_until(lambda: not failures(run(dsn)[1]), 15)
        _, found, _ = run(dsn)
        assert [found[side, "receipts"]["result"] for side in ("blue", "green")] == ["ok", "ok"]
        assert found["green", "old receipts"]["result"] == "ok"
    finally:
        pair.blue.execute("DROP TABLE kept", database="app")


# -- all is well -------------------------------------------------------------------------------------------------


def test_a_deployment_in_order_passes_and_nothing_is_left_behind(pair: Pair, place: Path) -> None:
    status, found, output = run(pair.dsn)
    assert failures(found) == set()
    assert status == 0
    for colour in ("blue", "green"):
        for check in ("login", "version", "grants", "metadata", "status", "writes", "connections", "reachable", "dns"):
            assert found[colour, check]["result"] == "ok", found[colour, check]
        # Not the side: that of blue would be a fault.
        assert found[colour, "login"]["finding"].endswith(", in a read-only session of the doctor's own")
    assert pair.names.green.primary in found["deployment", "green"]["finding"]
    assert pair.app_password not in output
    assert list(place.parent.iterdir()) == []


def test_the_documented_grants_are_all_that_a_user_for_monitoring_needs(pair: Pair) -> None:
    own = f"&blue-green-monitoring-user={MONITOR_ROLE}&blue-green-monitoring-password={pair.lab_password}"
    status, found, _ = run(pair.dsn + own)
    assert (status, failures(found)) == (0, set())
    if pair.engine.value == "mysql":
        for server in pair.servers:
            grants = [grant for (grant,) in server.execute(f"SHOW GRANTS FOR '{MONITOR_ROLE}'@'%'")]
            assert grants[0].startswith("GRANT USAGE ON *.* TO"), "the right to log in"
            assert [grant.replace("`", "").partition(" TO ")[0] for grant in grants[1:]] == [
                "GRANT SELECT ON mysql.rds_topology"
            ]


@pytest.mark.parametrize("engine", ENGINES)
def test_aurora_with_readers_and_tls(engine: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair("aurora", engine=engine, readers=1, tls=True) as pair:  # type: ignore[arg-type]  # a parameter is any str
        ready(pair, place, monkeypatch)
        status, found, _ = run(pair.dsn)
        assert (status, failures(found)) == (0, set())
        assert "Aurora" in found["blue", "version"]["finding"]
        assert found["parameters", "tls"]["result"] == "ok"
        for colour, names in (("blue", pair.names.blue), ("green", pair.names.green)):
            assert names.primary in found[colour, "certificate"]["finding"]
            for name in names.all:
                assert name in found[colour, "reachable"]["finding"]
                assert name in found[colour, "dns"]["finding"]


def test_what_is_not_rds_is_said_to_be_none(pair: Pair) -> None:
    _, found, _ = run(pair.dsn)
    engine = found["blue", "engine"]
    assert engine["result"] == "warning"
    mysql = ("not RDS: MariaDB 1", "not RDS: its basedir is not /rdsdbbin")
    expected = mysql if pair.engine.value == "mysql" else "not RDS: it has no role rdsadmin"
    assert engine["finding"].startswith(expected)


def test_a_program_reads_the_dsn_from_its_input_and_prints_plain_lines(pair: Pair) -> None:
    program = [sys.executable, "-c", "from bgpool.cli import main; main()", "doctor", "-", "--workers", "3"]
    done = subprocess.run(program, input=pair.dsn + "\n", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    # What has to be done comes first, so that a place may be named more than once.
    places = {line for line in lines[:-1] if not line.startswith(" ")}
    assert places == {"parameters", "this host", "deployment", "blue", "green", "replication"}
    assert " 0 failed" in lines[-1]
    assert "\x1b" not in done.stdout
    assert "3 processes x max_size 4" in done.stdout
    assert pair.app_password not in done.stdout


def test_sessions_are_read_only(pair: Pair) -> None:
    server = Server(Case(pair.dsn), Role.SOURCE, pair.names.blue.primary, pair.port)
    server.open()
    try:
        with pytest.raises(QueryFailed) as caught:
            # On MySQL in a database: the session has none.
            server.query(f"CREATE TABLE {'app' if pair.engine.value == 'mysql' else 'public'}.doctor (n int)")
        assert caught.value.code in ("25006", "1792"), caught.value
    finally:
        server.close()


# -- what is missing ---------------------------------------------------------------------------------------------


def test_a_missing_grant_is_named_with_the_statements_to_run(pair: Pair) -> None:
    pair.blue.revoke_metadata("app")
    try:
        status, found, _ = run(pair.dsn)
    finally:
        pair.blue.grant_metadata("app")
    assert status == 1
    assert {("blue", "grants"), ("blue", "metadata")} <= failures(found)
    remedy = found["blue", "grants"]["remedy"]
    if pair.engine.value == "postgresql":
        assert "GRANT USAGE ON SCHEMA rds_tools TO app;" in remedy
        assert "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rds_tools TO app;" in remedy
        assert "in database app" in remedy
    else:
        assert "GRANT SELECT ON mysql.rds_topology TO 'app'@'%';" in remedy
    assert found["deployment", "green"]["result"] == "not checked"
    assert found["blue", "writes"]["result"] == "ok", "the others go on"


def test_a_grant_that_green_alone_lacks(pair: Pair) -> None:
    if pair.engine.value == "postgresql":
        pytest.skip("grants of a replica are its primary's")
    pair.green.revoke_metadata("app")
    try:
        _, found, _ = run(pair.dsn)
    finally:
        pair.green.grant_metadata("app")
    assert failures(found) == {("green", "grants"), ("green", "metadata")}
    assert "on green" in found["green", "grants"]["remedy"]


def test_the_monitors_own_user_is_the_one_that_needs_the_grant(pair: Pair) -> None:
    pair.blue.revoke_metadata(MONITOR_ROLE)
    own = f"&blue-green-monitoring-user={MONITOR_ROLE}&blue-green-monitoring-password={pair.lab_password}"
    try:
        _, found, output = run(pair.dsn + own)
    finally:
        pair.blue.grant_metadata(MONITOR_ROLE)
    assert ("blue", "grants") in failures(found)
    assert MONITOR_ROLE in found["blue", "grants"]["remedy"]
    assert found["blue", "reachable"]["result"] == "ok", "the application's user"
    assert pair.lab_password not in output


@pytest.mark.parametrize("engine", ENGINES)
def test_what_tells_the_status_is_missing(engine: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair("rds", engine=engine) as pair:  # type: ignore[arg-type]  # a parameter is any str
        ready(pair, place, monkeypatch)
        pair.blue.drop_metadata()
        status, found, _ = run(pair.dsn)
    assert status == 1
    if engine == "postgresql":
        assert failures(found) == {("blue", "extension"), ("blue", "metadata")}
        assert "in database app: CREATE EXTENSION rds_tools;" in found["blue", "extension"]["remedy"]
    else:
        assert failures(found) >= {("blue", "metadata")}
        assert "mysql.rds_topology" in found["blue", "metadata"]["finding"]


def test_no_deployment(pair: Pair) -> None:
    for server in pair.servers:
        metadata.withdraw(server)
    status, found, _ = run(pair.dsn)
    assert (status, failures(found)) == (1, {("blue", "metadata")})
    assert "no deployment" in found["blue", "metadata"]["finding"]
    assert not [where for where, _ in found if where == "green"]


def test_a_switchover_under_way_and_one_that_is_over(pair: Pair) -> None:
    director = Director(pair)
    director.publish(metadata.IN_PROGRESS)
    assert "under way" in run(pair.dsn)[1]["blue", "status"]["finding"]
    director.publish("SOMETHING_NEW")
    assert "not a status" in run(pair.dsn)[1]["blue", "status"]["finding"]


def test_metadata_that_fail(pair: Pair) -> None:
    metadata.publish_broken(pair.blue)
    _, found, _ = run(pair.dsn)
    assert "fails" in found["blue", "metadata"]["finding"]


# -- who is not there --------------------------------------------------------------------------------------------


def test_green_is_not_reachable_and_blue_is_checked_all_the_same(pair: Pair) -> None:
    pair.green.stop()
    try:
        status, found, output = run(pair.dsn)
    finally:
        pair.green.start()
    assert status == 1
    assert failures(found) == {("green", "login"), ("green", "reachable")}
    assert "refused" in found["green", "reachable"]["finding"]
    assert found["green", "version"]["result"] == "not checked"
    assert found["blue", "connections"]["result"] == "ok"
    assert pair.app_password not in output


def test_a_wrong_password_fails_and_is_not_repeated(pair: Pair) -> None:
    status, found, output = run(with_password(pair, "s3cret-and-wrong"))
    assert status == 1
    assert failures(found) == {("blue", "login"), ("blue", "reachable")}
    assert "TCP connects" in found["blue", "reachable"]["finding"]
    assert "if the application's password comes with each connection" in found["blue", "login"]["remedy"]
    assert "s3cret" not in output


def test_a_frozen_server_costs_only_its_own_time_limit(pair: Pair) -> None:
    pair.blue.freeze()
    try:
        began = time.monotonic()
        found = by_name(examine(Case(pair.dsn, timeout_s=2)))
        took_s = time.monotonic() - began
    finally:
        pair.blue.thaw()
    assert took_s < 30
    for check in ("login", "reachable"):
        assert found["blue", check].result is Result.FAILED, found["blue", check]
    assert found["this host", "software"].result is Result.OK


def test_a_server_that_freezes_between_two_questions(pair: Pair) -> None:
    server = Server(Case(pair.dsn, timeout_s=2), Role.SOURCE, pair.names.blue.primary, pair.port)
    server.open()
    assert server.query("SELECT 1") == [(1,)]
    pair.blue.freeze()
    try:
        for expected in (Result.FAILED, Result.NOT_CHECKED):
            with pytest.raises(EarlyVerdict) as caught:
                server.query("SELECT 1")
            assert caught.value.verdict.result is expected
    finally:
        pair.blue.thaw()
        server.close()


# -- names -------------------------------------------------------------------------------------------------------


def test_a_name_that_does_not_resolve(pair: Pair) -> None:
    address = pair.hosts.read()[pair.names.green.primary]
    pair.hosts.remove(pair.names.green.primary)
    try:
        _, found, _ = run(pair.dsn)
    finally:
        pair.hosts.set(pair.names.green.primary, address)
    assert failures(found) == {("green", "login"), ("green", "dns"), ("green", "reachable")}


def test_the_dsn_names_green(pair: Pair) -> None:
    _, found, _ = run(pair.dsn_of(pair.names.green.primary))
    assert ("deployment", "part") in failures(found)
    assert pair.names.blue.primary in found["deployment", "part"]["remedy"]


def test_an_address_takes_no_part_unless_the_endpoint_is_stated(pair: Pair) -> None:
    _, found, _ = run(pair.direct_dsn(pair.blue))
    assert failures(found) == {("parameters", "alias"), ("deployment", "part")}
    assert f"endpoint={pair.names.blue.primary}" in found["deployment", "part"]["remedy"]
    status, found, _ = run(f"{pair.direct_dsn(pair.blue)}&endpoint={pair.names.blue.primary}")
    assert (status, failures(found)) == (0, set())


@pytest.mark.parametrize(
    ("name", "result", "word"),
    [
        ("ledger.global-abc123.global.rds.amazonaws.com", "warning", "has not been tried"),
        ("ledger.cluster-abc.us-east-1.rds.amazonaws.com", "failed", "Multi-AZ"),
    ],
)
def test_deployments_that_are_untried_or_not_supported(pair: Pair, name: str, result: str, word: str) -> None:
    pair.hosts.set(name, pair.blue.address)
    try:
        _, found, _ = run(pair.dsn_of(name))
    finally:
        pair.hosts.remove(name)
    assert found["blue", "deployment"]["result"] == result
    assert word in found["blue", "deployment"]["finding"]


def test_an_alias_is_followed_and_a_long_ttl_is_warned_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair("rds", dns=True) as pair:
        ready(pair, place, monkeypatch)
        assert pair.dns is not None
        pair.dns.alias("db.shop.example", pair.names.blue.primary)
        dsn = pair.dsn_of("db.shop.example")
        status, found, _ = run(dsn)
        assert (status, failures(found)) == (0, set())
        assert f"alias of {pair.names.blue.primary}" in found["parameters", "alias"]["finding"]
        assert "5 s at most" in found["blue", "dns ttl"]["finding"]
        pair.dns.ttl_s = 300
        assert run(dsn)[1]["blue", "dns ttl"]["result"] == "warning"
        pair.dns.failing = True
        status, found, _ = run(dsn)
        assert status == 1
        assert "cannot be determined" in found["parameters", "alias"]["finding"]
        assert ("blue", "dns") in failures(found)


def test_a_silent_resolver_delays_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def resolve(self, _name: str) -> tuple[str, ...]:
            time.sleep(60)
            return ()

    case = Case("postgresql://app@ledger.c0.eu-west-1.rds.amazonaws.com/app?bg_resolver=hosts:/none", timeout_s=2)
    monkeypatch.setattr(case, "resolver", Silent())
    one, other = endpoints.unique([("one.example", 1), ("other.example", 1)])
    began = time.monotonic()
    endpoints.look_up(case, [one, other])
    assert time.monotonic() - began < 20
    assert one.unresolved == other.unresolved == "no answer within 2 s"


# -- sizes, parameters -------------------------------------------------------------------------------------------


def test_pools_that_are_too_large(pair: Pair) -> None:
    status, found, _ = run(pair.dsn, "--workers", "100", "--max-size", "5")
    assert (status, failures(found)) == (1, {("blue", "connections"), ("green", "connections")})
    assert "502 of 1" in found["blue", "connections"]["finding"]
    assert "max_size=1 at most with 100 processes" in found["blue", "connections"]["remedy"]


def test_the_users_own_limit_counts(postgres: Pair) -> None:
    postgres.blue.execute("ALTER ROLE app CONNECTION LIMIT 20")
    try:
        _, found, _ = run(postgres.dsn, "--workers", "10")
    finally:
        postgres.blue.execute("ALTER ROLE app CONNECTION LIMIT -1")
    assert "42 of 20" in found["blue", "connections"]["finding"]


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:s3cret@db/app?connect_timeout=0",
        "mysql://app:s3cret@db/app?read_timeout=0",
        "oracle://app:s3cret@db/app",
        "postgresql://app:s3cret@db/app?bg_interval_high_ms=0",
        "",
    ],
)
def test_a_dsn_that_cannot_be_used_is_a_wrong_call(dsn: str) -> None:
    status, found, output = run(dsn)
    assert (status, found) == (2, {})
    assert output.strip()
    assert "s3cret" not in output


def text_of(item: Any) -> str:
    return f"{item['finding']} {item['remedy']}"


def test_parameters_that_are_unusual(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, _ = run(f"{pair.dsn}&bg_interval_high_ms=5000&bg_connect_timeout_ms=0")
    assert found["parameters", "intervals"]["result"] == "warning"
    assert "bg_interval_high_ms from 50 to 500" in text_of(found["parameters", "intervals"])
    assert found["parameters", "hold"]["result"] == "warning"
    assert found["parameters", "tls"]["result"] == "warning"
    if pair.engine.value == "postgresql":
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "0")
        status, found, output = run(pair.dsn.replace("connect_timeout=5", ""))
        assert (status, found) == (2, {})
        assert "PGCONNECT_TIMEOUT" in output


def test_a_hostile_run_directory_is_refused_and_left_alone(pair: Pair, place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)
    before = place.stat()
    status, found, _ = run(pair.dsn)
    assert (status, failures(found)) == (1, {("this host", "run directory")})
    assert f"chmod 0700 {place}" in found["this host", "run directory"]["remedy"]
    assert place.stat().st_mode == before.st_mode
    assert list(place.iterdir()) == []

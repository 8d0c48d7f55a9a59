"""The pair of a major upgrade: blue PostgreSQL of one version, green its logical replica of the next version."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.lab import Director, LabError, Pair, ProgramsError, Schedule, TruthProbe, faults, ledger
from bgpool.lab.binaries import UPGRADE_PROGRAMS, find_programs, find_upgrade
from bgpool.lab.rehearsal import Plan, UnusablePlanError
from bgpool.lab.rehearsal.plan import check
from bgpool.lab.scenarios import CATALOGUE, catalogue_of, find, play
from bgpool.lab.scenarios.scenario import Scenario
from bgpool.lab.server_factories import find_servers
from bgpool.lab.templates import template
from tests.lab.clients import Refused, connect
from tests.lab.majors import major_options
from tests.lab.test_programs import programs_that_say
from tests.lab.test_scenarios import loaded_s

INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (%s, %s, %s)"
#: The other scenarios are run by ``make test-full``.
QUICK = {"commits-unanswered"}

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair("aurora", **major_options()) as pair:
        ledger.create(pair)
        yield pair


def keys(server: Any) -> list[ledger.Key]:
    return [row.key for row in ledger.read(server)]


def version(server: Any) -> int:
    return int(server.execute("SHOW server_version_num")[0][0]) // 10000


# These tests use one pair, in this order.


def test_green_is_newer_follows_blue_and_takes_no_writes(pair: Pair) -> None:
    assert version(pair.blue) < version(pair.green)
    pair.blue.execute(INSERT, (1, 1, 1), database="app")
    pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
    assert ledger.read(pair.green) == ledger.read(pair.blue)
    with connect(pair, pair.green) as client, pytest.raises(Refused) as refused:
        client.execute(INSERT, (1, 1, 2))
    assert refused.value.code == "25006"
    assert pair.green.execute("SELECT pg_is_in_recovery()") == [(False,)]
    systems = {server.execute("SELECT system_identifier FROM pg_control_system()")[0] for server in pair.servers}
    assert len(systems) == 2


def test_metadata_are_those_of_the_server_and_its_own(pair: Pair) -> None:
    query = "SELECT DISTINCT status FROM pg_catalog.get_blue_green_fast_switchover_metadata('test')"
    director = Director(pair)
    director.create_deployment()
    director.publish("SWITCHOVER_IN_PROGRESS", to=pair.green)
    with connect(pair, pair.blue) as blue, connect(pair, pair.green) as green:
        assert blue.execute(query) == [("AVAILABLE",)]
        assert green.execute(query) == [("SWITCHOVER_IN_PROGRESS",)]


def test_a_table_that_green_does_not_have_stops_the_switchover(pair: Pair) -> None:
    pair.blue.execute("CREATE TABLE forgotten (n int PRIMARY KEY)", database="app")
    with pytest.raises(LabError, match=r"public\.forgotten: made on blue after green was"):
        pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
    with pytest.raises(LabError, match=r"public\.forgotten"):
        pair.define("CREATE TABLE remembered (n int PRIMARY KEY)")
    pair.blue.execute("DROP TABLE forgotten", database="app")
    pair.define("CREATE TABLE defined (n int PRIMARY KEY)")
    pair.blue.execute("INSERT INTO defined VALUES (7)", database="app")
    pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
    assert pair.green.execute("SELECT n FROM defined", database="app") == [(7,)]


@pytest.mark.slow
def test_a_switchover_continues_with_rows_and_sequences(pair: Pair) -> None:
    director = Director(pair, Schedule(scale=0.1))
    director.create_deployment()
    with TruthProbe(pair) as truth:
        truth.wait_writing()
        director.rollback_from("IN_PROGRESS")
        pair.blue.execute(INSERT, (1, 1, 3), database="app")
        director.run()
        truth.wait_green(10)
    with connect(pair, pair.green) as client:
        client.execute(INSERT, (1, 1, 4))
    with connect(pair, pair.blue) as old, pytest.raises(Refused) as refused:
        old.execute(INSERT, (9, 9, 9))
    assert refused.value.code == "25006"
    assert ledger.judge(pair, [(1, 1, 1), (1, 1, 3), (1, 1, 4)]).clean
    assert [row.seq for row in ledger.read(pair.green)] == [1, 2, 3]
    assert pair.blue.execute("SELECT slot_name FROM pg_replication_slots") == []
    assert pair.green.execute("SELECT subname FROM pg_subscription") == []


@pytest.mark.full
@pytest.mark.slow
def test_old_blue_becomes_a_new_logical_green(pair: Pair) -> None:
    """This test depends on the test before."""
    before, newer = keys(pair.green), version(pair.green)
    pair.renew()
    assert (version(pair.blue), version(pair.green)) == (newer, newer)
    pair.blue.execute(INSERT, (2, 1, 1), database="app")
    pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
    assert keys(pair.green) == [*before, (2, 1, 1)]


@pytest.mark.full
@pytest.mark.slow
def test_a_green_that_is_recreated_has_the_current_definitions() -> None:
    with Pair(**major_options()) as pair:
        pair.blue.execute("CREATE TABLE orders (n serial); INSERT INTO orders DEFAULT VALUES", database="app")
        with pytest.raises(LabError, match=r"public\.orders"):
            pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
        pair.catch_up_definitions()
        pair.blue.execute("INSERT INTO orders DEFAULT VALUES", database="app")
        pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
        assert pair.green.execute("SELECT n FROM orders ORDER BY n", database="app") == [(1,), (2,)]
        faults.drop_metadata(pair)


def scenarios() -> list[Any]:
    """Return every scenario for this pair."""
    return [
        pytest.param(scenario, id=name, marks=() if name in QUICK else pytest.mark.full)
        for name, scenario in catalogue_of(Engine.POSTGRESQL, "major").items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", scenarios())
def test_scenario(scenario: Scenario) -> None:
    outcome = play(dataclasses.replace(scenario, release_s=loaded_s(scenario)), Engine.POSTGRESQL, major_options())
    assert outcome.findings == ()
    assert outcome.report.verdict.acknowledged > 100


# -- refused pairs and plans --------------------------------------------------------------------------------------


def test_scenarios_that_need_a_physical_replica_are_refused() -> None:
    left_out = CATALOGUE.keys() - catalogue_of(Engine.POSTGRESQL, "major").keys()
    of_mysql = {name for name, scenario in CATALOGUE.items() if scenario.engines == (Engine.MYSQL,)}
    with_readers = {name for name, scenario in CATALOGUE.items() if "readers" in scenario.trial.get("pair_options", {})}
    assert left_out == of_mysql | with_readers
    with pytest.raises(ValueError, match="no scenario 'rds-replicas' for a major upgrade of postgresql: there are rds"):
        find("rds-replicas", Engine.POSTGRESQL, "major")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"upgrade": "patch"}, "upgrade must be one of 'minor', 'major', not 'patch'"),
        ({"upgrade": "major", "engine": "mysql"}, "upgrade must be 'minor' for MySQL"),
        ({"upgrade": "major", "readers": 1}, "readers must be 0 with upgrade='major', not 1"),
        ({"upgrade": "major", "readers": (0, 2)}, r"readers must be 0 with upgrade='major', not \(0, 2\)"),
    ],
)
def test_an_unsupported_pair_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pair(**options)


@pytest.mark.parametrize("command", ["demo", "lab run", "lab chaos", "rehearse"])
def test_commands_refuse_an_unsupported_pair_before_anything_starts(command: str, tmp_path: Path) -> None:
    rest = ["--log", str(tmp_path / "log"), "true"] if command == "rehearse" else []
    for pair, said in (("mayor", "mayor"), ("major", "for MySQL")):
        done = CliRunner().invoke(app, [*command.split(), "--engine", "mysql", "--pair", pair, *rest])
        assert done.exit_code == 2
        assert said in done.stderr


def test_an_unknown_pair_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnusablePlanError, match="no pair 'mayor': there are minor, major"):
        check(Plan(("true",), upgrade="mayor"))


def test_programs_of_one_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGPOOL_LAB_POSTGRESQL", raising=False)
    older, newer = find_upgrade()
    assert older == dataclasses.replace(find_programs(), product=older.product)
    assert find_servers(Engine.POSTGRESQL, None, "major") == f"{older.product} -> {newer.version}"
    with pytest.raises(ProgramsError, match=rf"the programs of two major versions .* there is {older.product} in"):
        find_upgrade(older.bin_dir)
    other = programs_that_say(tmp_path / "new", "postgres (PostgreSQL) 19beta1", *UPGRADE_PROGRAMS)
    assert find_servers(Engine.POSTGRESQL, f"{older.bin_dir}:{other}", "major") == f"{older.product} -> 19beta1"
    with pytest.raises(ProgramsError, match="'gone' is not a directory"):
        find_upgrade(f"{older.bin_dir}:gone")


# -- the template of a pair ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bgpool"


def test_a_template_is_made_once_for_concurrent_users(folder: Path, tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.2)
        (path / "data").write_text("all of it")

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(template("a", make, tmp_path / "no"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert set(found) == {folder / "template-a"}
    assert (found[0] / "data").read_text() == "all of it"
    assert template("b", make, tmp_path / "no") == folder / "template-b"
    assert len(made) == 2


def test_a_template_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "data").write_text("half of it")
        raise LabError("no")

    with pytest.raises(LabError):
        template("a", fail, tmp_path / "spare")
    assert [path.name for path in folder.iterdir()] == ["template-a.lock"]


def test_a_template_that_others_may_write_is_not_used(folder: Path, tmp_path: Path) -> None:
    def make(path: Path) -> None:
        (path / "data").write_text("ours")

    kept = template("a", make, tmp_path / "spare-0")
    (kept / "data").write_text("theirs")
    kept.chmod(0o777)
    assert (template("a", make, tmp_path / "spare-1") / "data").read_text() == "ours"
    kept.chmod(0o700)
    folder.chmod(0o777)
    assert template("a", make, tmp_path / "spare-2") == tmp_path / "spare-2"
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(kept, 1, 1)
        assert template("a", make, tmp_path / "spare-3") == tmp_path / "spare-3"


def test_unused_templates_are_removed(folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        kept = template(str(number), lambda _: None, tmp_path / "spare")
        os.utime(kept, (number, number))
    template("now", lambda _: None, tmp_path / "spare")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["template-4", "template-now"]

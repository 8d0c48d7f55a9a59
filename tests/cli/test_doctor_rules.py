"""The doctor's rules as functions, and its findings on a host without servers."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bgpool.cli import doctor as command
from bgpool.cli.app import app
from bgpool.core.observations import Observation, Visibility
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.doctor import Case, Finding, Result, exit_code, host_checks, kernel_checks, replication_checks
from bgpool.doctor.bounded import side_by_side
from bgpool.doctor.endpoints import endpoints_checks
from bgpool.doctor.examination import deployment_checks
from bgpool.doctor.findings import Checks, Verdict, ok
from bgpool.doctor.minimums import (
    AURORA_MYSQL,
    AURORA_POSTGRES,
    RDS_MYSQL,
    RDS_POSTGRES,
    extension_will_do,
    minimum,
    version_will_do,
)
from bgpool.doctor.parameter_checks import parameter_checks
from bgpool.doctor.server_checks import server_checks
from bgpool.doctor.sizes import Room, judge_room
from bgpool.segment import wake
from bgpool.segment.paths import prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.writer import Writer

DSN = "postgresql://app:s3cret@ledger.c0.eu-west-1.rds.amazonaws.com/app"
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def host(case: Case) -> dict[str, Finding]:
    return {finding.check: finding for finding in host_checks.host_checks.run(case, "this host")}


def kernel(case: Case) -> dict[str, Finding]:
    return {finding.check: finding for finding in kernel_checks.kernel_checks.run(case, "this host")}


# -- versions and sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "least"),
    [
        (AURORA_POSTGRES, "17.5 16.9 15.13 14.18 13.21"),
        (RDS_POSTGRES, "17.1 16.5 15.9 14.14 13.17 12.21"),
        (AURORA_MYSQL, "3.07"),
    ],
)
def test_minimums(product: str, least: str) -> None:
    for version in least.split():
        major, minor = version.split(".")
        assert version_will_do(product, version)
        assert version_will_do(product, f"{major}.{int(minor) + 1}")
        assert not version_will_do(product, f"{major}.{int(minor) - 1}")
        assert version in minimum(product)
    newest, oldest = int(least.split(".")[0]), int(least.split()[-1].split(".")[0])
    assert version_will_do(product, f"{newest + 1}.0")
    assert not version_will_do(product, f"{oldest - 1}.99")


def test_versions_as_servers_write_them() -> None:
    assert version_will_do(RDS_POSTGRES, "16.14 (Debian 16.14-1.pgdg120+1)")
    assert version_will_do(RDS_POSTGRES, "19beta1")
    assert version_will_do(AURORA_MYSQL, "3.10.0")
    assert not version_will_do(AURORA_MYSQL, "3.06.1")
    assert not version_will_do(AURORA_MYSQL, "2.12.4")
    assert version_will_do(AURORA_MYSQL, "8.0.mysql_aurora.3.07.1")
    assert not version_will_do(AURORA_MYSQL, "5.7.mysql_aurora.2.11.2")
    assert version_will_do(AURORA_POSTGRES, "devel") is None
    assert version_will_do(RDS_MYSQL, "5.7.44")
    assert minimum(RDS_MYSQL) == "no minimum"


def test_versions_of_the_extension() -> None:
    assert extension_will_do("1.7")
    assert extension_will_do("1.10")
    assert extension_will_do("2.0")
    assert not extension_will_do("1.6")
    assert extension_will_do("?") is None


def test_room() -> None:
    room = Room(most=100, reserved=10, of_user=None, in_use=0)
    assert judge_room(room, workers=22, max_size=4, ours=0).result is Result.OK, "88 and 2 of 90"
    too_many = judge_room(room, workers=23, max_size=4, ours=0)
    assert too_many.result is Result.FAILED
    assert "max_size=3 at most with 23 processes" in too_many.remedy
    assert "fewer than 100 processes" in judge_room(room, workers=100, max_size=4, ours=0).remedy


def test_who_is_there_already_counts_unless_it_is_the_pools_themselves() -> None:
    room = Room(most=100, reserved=10, of_user=None, in_use=60)
    assert judge_room(room, workers=10, max_size=4, ours=40).result is Result.OK
    crowded = judge_room(room, workers=10, max_size=4, ours=0)
    assert crowded.result is Result.WARNING
    assert "60 of them not by pools on this host" in crowded.text
    assert "max_size=2 at most" in crowded.remedy


def test_a_users_own_limit_is_the_one_that_counts() -> None:
    room = Room(most=1000, reserved=10, of_user=20, in_use=0)
    assert judge_room(room, workers=4, max_size=4, ours=0).result is Result.OK
    assert judge_room(room, workers=5, max_size=4, ours=0).result is Result.FAILED


# -- how checks are made -----------------------------------------------------------------------------------------


def test_a_check_that_fails_itself_keeps_no_other_back_and_tells_no_text() -> None:
    checks: Checks[str] = Checks()

    @checks.check("one", "?")
    def _one(_subject: str) -> Verdict:
        raise KeyError("s3cret")

    @checks.check("two", "?")
    def _two(subject: str) -> Verdict:
        return ok(subject)

    one, two = checks.run("fine", "here")
    assert (one.result, two.result, two.text) == (Result.FAILED, Result.OK, "fine")
    assert "s3cret" not in one.text
    assert exit_code([one, two]) == 1
    assert exit_code([two]) == 0


def test_a_job_that_hangs_delays_no_other() -> None:
    began = time.monotonic()
    assert side_by_side([lambda: True, lambda: threading.Event().wait(60), lambda: False], 0.3) == [True, None, False]
    assert time.monotonic() - began < 20


def test_every_check_is_in_the_docs() -> None:
    text = DOCS.read_text(encoding="utf-8")
    lists = (
        parameter_checks,
        host_checks.host_checks,
        kernel_checks.kernel_checks,
        deployment_checks,
        server_checks,
        endpoints_checks,
        replication_checks.postgres_checks,
        replication_checks.mysql_checks,
    )
    names = [name for checks in lists for name, _, _ in checks._checks]
    assert len(names) > 25
    assert [name for name in names if f"| `{name}` |" not in text] == []


def test_a_driver_that_quotes_a_password_is_not_quoted() -> None:
    case = Case(f"{DSN}?blue-green-monitoring-password=othersecret")
    assert case.without_secrets("password s3cret, othersecret!") == "password ***, ***!"
    assert "s3cret" not in repr(case)


# -- this host ---------------------------------------------------------------------------------------------------


def test_the_kernel_does_what_is_needed_and_nothing_stays(place: Path) -> None:
    found = kernel(Case(DSN))
    assert {name: finding.result for name, finding in found.items() if name != "clock"} == {
        "wake": Result.OK,
        "locks": Result.OK,
        "kernel": Result.OK,
    }, found
    assert found["clock"].result in (Result.OK, Result.WARNING)
    assert list(place.parent.iterdir()) == []


def test_a_wake_up_that_does_not_come_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not place.exists()
    monkeypatch.setattr(wake, "wake_all", lambda _address: None)
    monkeypatch.setattr(kernel_checks, "WAKE_S", 0.1)
    assert kernel(Case(DSN))["wake"].result is Result.FAILED


def test_locks_that_do_not_hold_are_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not place.exists()
    monkeypatch.setattr(kernel_checks, "workers", lambda _files: ())
    assert kernel(Case(DSN))["locks"].result is Result.FAILED


@pytest.mark.parametrize("kind", ["file", "link", "open to all", "of a parent that is no directory"])
def test_run_directories_that_cannot_be_used(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "file":
        place.write_text("")
    elif kind == "link":
        (place.parent / "real").mkdir(mode=0o700)
        place.symlink_to("real")
    elif kind == "open to all":
        place.mkdir()
        place.chmod(0o755)
    else:
        place.write_text("")
        monkeypatch.setenv("BGPOOL_RUN_DIR", str(place / "below"))
    finding = host(Case(DSN))["run directory"]
    assert finding.result is Result.FAILED
    assert "BGPOOL_RUN_DIR" in finding.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_what_to_do_about_a_strangers_directory_can_be_done_by_the_user(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    finding = host(Case(DSN))["run directory"]
    assert finding.result is Result.FAILED
    assert "chmod" not in finding.remedy, "which is for the owner alone"
    named = re.search(r"set BGPOOL_RUN_DIR=(\S+)", finding.remedy)
    assert named
    monkeypatch.setenv("BGPOOL_RUN_DIR", named[1])
    assert host(Case(DSN))["run directory"].result is Result.OK


@pytest.mark.parametrize(("value", "result"), [("", "ok"), ("0", "ok"), ("1", "failed"), ("maybe", "failed")])
def test_a_host_where_bgpool_is_disabled(place: Path, monkeypatch: pytest.MonkeyPatch, value: str, result: str) -> None:
    assert not place.exists()
    monkeypatch.setenv("BGPOOL_DISABLE", value)
    finding = host(Case(DSN))["disabled"]
    assert finding.result is Result(result)
    assert "unset BGPOOL_DISABLE" in finding.remedy or result == "ok"


def test_no_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not place.exists()
    monkeypatch.setattr(host_checks, "NEEDED_BYTES", 2**62)
    assert host(Case(DSN))["room"].result is Result.FAILED


def test_file_systems(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not place.exists()
    for kind, expected in (("tmpfs", Result.OK), ("ext4", Result.WARNING), ("nfs4", Result.FAILED)):
        monkeypatch.setattr(host_checks, "_file_system_of", lambda _path, kind=kind: kind)
        assert host(Case(DSN))["file system"].result is expected


def test_dev_shm_is_in_memory() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    assert host_checks._file_system_of(Path("/dev/shm")) == "tmpfs"


def test_a_monitor_that_lives_one_that_is_silent_and_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_run_dir(place)
    case = Case(DSN)
    found = host(case)
    assert (found["monitor"].result, found["ready"].result) == (Result.NOT_CHECKED, Result.NOT_CHECKED)
    presence = Presence(case.files)
    case = Case(DSN)
    assert host(case)["monitor"].result is Result.FAILED, "a worker and no monitor"
    assert case.processes == 1
    writer = Writer(case.files, 1, Snapshot("1", Phase.CREATED, ready=False))
    writer.beat()
    monkeypatch.setattr(host_checks, "HEARTBEAT_STALE_S", 3600.0)
    found = host(Case(DSN))
    assert (found["monitor"].result, found["ready"].result) == (Result.OK, Result.WARNING)
    assert found["monitor"].text == f"pid {os.getpid()}, term 1, processes: 1"
    blue = Case(DSN).dsn.endpoint
    fit = Snapshot("1", Phase.CREATED, ready=True, source_read_only=False, hosts=(Host(blue, 5432, Role.SOURCE),))
    writer.publish(fit)
    assert host(Case(DSN))["ready"].result is Result.OK
    assert host(Case(DSN))["ready"].text == "CREATED, blue endpoints with their green ones: 0"
    for other, reason in (
        (replace(fit, hold_until_ns=2**62), "an operator holds every checkout"),
        (replace(fit, phase=Phase.COMPLETED), "the switchover is over, and no new deployment is seen"),
        (replace(fit, phase=Phase.IN_PROGRESS), "a switchover is under way: IN_PROGRESS"),
        (replace(fit, source_read_only=None), "blue does not answer the monitor"),
    ):
        writer.publish(other)
        finding = host(Case(DSN))["ready"]
        assert finding.result is Result.WARNING
        assert reason in finding.text, "as bgpool status --ready says it"
    writer.publish(Snapshot("1", Phase.CREATED, ready=True, hosts=(Host("orders.c0.eu.rds", 5432, Role.SOURCE),)))
    finding = host(Case(DSN))["ready"]
    assert finding.result is Result.FAILED, "it is another deployment that is ready"
    assert f"does not watch {blue}, but orders.c0.eu.rds" in finding.text
    assert "bg_id" in finding.remedy
    assert host(Case(DSN))["parameters"].result is Result.NOT_CHECKED
    mine, others = Case(DSN).config.parameters, Case(DSN).config.parameters._replace(database="other")
    blind, seen = Observation(mine, Visibility.MISSING, 1), Observation(others, Visibility.SEEN, 1)
    writer.publish(Snapshot("1", Phase.CREATED, observations=(blind, seen)))
    finding = host(Case(DSN))["parameters"]
    assert (finding.result, str(mine) in finding.text, str(others) in finding.text) == (Result.WARNING, True, True)
    writer.publish(Snapshot("1", Phase.CREATED, observations=(blind, replace(seen, parameters=mine))[1:]))
    assert host(Case(DSN))["parameters"].result is Result.OK
    monkeypatch.setattr(host_checks, "HEARTBEAT_STALE_S", -1.0)
    assert host(Case(DSN))["monitor"].result is Result.FAILED
    presence.close()
    assert host(Case(DSN))["monitor"].result is Result.NOT_CHECKED


def test_a_table_that_is_broken_is_left_as_it_is(place: Path) -> None:
    prepare_run_dir(place)
    case = Case(DSN)
    case.files.workers.write_bytes(b"not a table")
    case.files.workers.chmod(0o600)
    before = case.files.workers.stat()
    assert case.rows == ()
    host(case)
    assert case.files.workers.stat() == before


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_what_has_to_be_done_comes_first(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: one failed check among twenty that were fine, on the second page."""
    results = [Result.OK, Result.FAILED, Result.WARNING, Result.NOT_CHECKED, Result.FAILED, Result.OK]
    found = [Finding("blue", f"check-{n}", "?", result, "text") for n, result in enumerate(results)]
    monkeypatch.setattr(command, "examine", lambda _: found)
    done = CliRunner().invoke(app, ["doctor", "postgresql://app@127.0.0.1:1/app", *options])
    assert re.findall(r"check-(\d)", done.output) == ["1", "4", "2", "3", "0", "5"]
    assert done.exit_code == 1

"""Without monitoring, a pool becomes a plain pool and logs this once; invalid input is refused with a clear error."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bgpool
import bgpool.testing
from bgpool.lab import Director, Pair
from bgpool.segment.layout import FILE_BYTES

pytestmark = pytest.mark.lab

MakePool = Callable[..., bgpool.Pool[Any]]
WaitUntil = Callable[..., None]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def get_pool(pair: Pair, tmp_path: Path) -> Iterator[MakePool]:
    made: list[bgpool.Pool[Any]] = []

    def get(**options: Any) -> bgpool.Pool[Any]:
        usual: dict[str, Any] = {
            "bg_id": tmp_path.name,
            "bg_resolver": pair.resolver,
            "bg_run_dir": tmp_path / "run",
            "min_size": 1,
        }
        made.append(bgpool.get_pool(pair.dsn, **(usual | options)))
        return made[-1]

    yield get
    for pool in made:
        pool.close()


def works(pool: bgpool.Pool[Any]) -> bool:
    with pool.connection() as conn:
        return bool(conn.execute("SELECT 1").fetchone() == (1,))


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_a_run_directory_that_others_can_read_gives_a_plain_pool(
    get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    pool = get_pool()
    assert works(pool)
    assert works(pool)
    (line,) = lines(caplog, "plain pool")
    assert str(tmp_path / "run") in line
    assert "0755" in line


def test_a_mount_that_others_can_write_to_gets_a_private_directory(
    get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    """An emptyDir, which a container's user cannot chmod: the monitor uses a private directory in it."""
    caplog.set_level(logging.INFO, logger="bgpool")
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    pools = [get_pool(), get_pool(max_size=2)]
    assert all(map(works, pools))
    wait_until(lambda: pools[0].stats().phase is not None)
    own = tmp_path / "run" / f"bgpool-{os.geteuid()}"
    (line,) = lines(caplog, "created run directory")
    assert str(own) in line
    assert lines(caplog, "plain pool") == []
    status = bgpool.status(tmp_path.name, tmp_path / "run")
    assert (status.run_dir, status.monitor.state) == (str(own), "alive")


def test_a_run_directory_that_is_a_file_gives_a_plain_pool(
    get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("")
    assert works(get_pool())
    assert len(lines(caplog, "plain pool")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_run_directory_of_another_user_gives_a_plain_pool(
    get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 12345, 12345)
    assert works(get_pool())
    (line,) = lines(caplog, "plain pool")
    assert "12345" in line
    assert "BGPOOL_RUN_DIR" in line, "the remedy is missing"


def test_a_corrupt_segment_is_refused_and_replaced(
    get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    segment = run / f"{tmp_path.name}.segment"
    segment.write_bytes(b"\xff" * FILE_BYTES)
    segment.chmod(0o600)
    pool = get_pool()
    assert works(pool)
    (line,) = lines(caplog, "segment is refused")
    assert "magic" in line
    wait_until(lambda: pool.stats().phase is not None)
    assert works(pool)
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600


def test_a_monitor_without_grants_logs_the_missing_grant(
    pair: Pair, get_pool: MakePool, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    caplog.set_level(logging.INFO, logger="bgpool")
    pair.blue.execute("REVOKE USAGE ON SCHEMA rds_tools FROM app", database="app")
    try:
        pool = get_pool()
        assert works(pool)
        wait_until(lambda: lines(caplog, "no blue/green metadata"))
    finally:
        pair.blue.execute('GRANT USAGE ON SCHEMA rds_tools TO "app"', database="app")
    (line,) = lines(caplog, "no blue/green metadata")
    assert 'GRANT USAGE ON SCHEMA rds_tools TO "app"' in line
    assert pool.stats().phase is bgpool.Phase.NOT_CREATED


def test_readiness_is_logged_once_with_the_hosts(
    pair: Pair, get_pool: MakePool, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    caplog.set_level(logging.INFO, logger="bgpool")
    Director(pair).create_deployment()
    pool = get_pool()
    assert works(pool)
    wait_until(lambda: lines(caplog, "ready for a switchover"))
    (line,) = lines(caplog, "ready for a switchover")
    assert f"{pair.names.blue.primary} ({pair.blue.address})" in line
    assert f"{pair.names.green.primary} ({pair.green.address})" in line


def test_no_secret_in_argv_files_or_logs(
    pair: Pair, get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    caplog.set_level(logging.DEBUG)
    pool = get_pool()
    assert works(pool)
    wait_until(lambda: pool.stats().phase is not None)
    secret = pair.app_password
    assert secret not in caplog.text
    assert secret not in repr(pool)
    for file in (tmp_path / "run").iterdir():
        # A socket stores no data.
        assert file.is_socket() or secret.encode() not in file.read_bytes()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secret.encode() not in process.read_bytes()
        except OSError:
            continue


def test_options_are_passed_through_and_unknown_ones_refused(get_pool: MakePool) -> None:
    pool = get_pool(min_size=2, max_size=3, timeout=7.0, name="mine")
    assert works(pool)
    assert (pool.stats().driver["pool_min"], pool.stats().driver["pool_max"], pool.timeout) == (2, 3, 7.0)
    with pytest.raises(bgpool.ConfigurationError, match=r"'maxsize'.*max_size"):
        get_pool(maxsize=3)
    with pytest.raises(bgpool.ConfigurationError, match="min_size=-1: a whole number from 0"):
        get_pool(min_size=-1)


def test_the_same_arguments_give_the_same_pool(get_pool: MakePool) -> None:
    assert get_pool(kwargs={"autocommit": True}) is get_pool(kwargs={"autocommit": True})
    assert get_pool() is not get_pool(max_size=9)


def test_a_disabled_process_has_plain_pools(
    get_pool: MakePool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BGPOOL_DISABLE", "1")
    # A process logs it once, and an earlier test may have caused this line.
    monkeypatch.setattr("bgpool.pools.participant._told_in", 0)
    assert works(get_pool())
    assert works(get_pool(bg_id=f"{tmp_path.name}-2"))
    assert not (tmp_path / "run").exists(), "a monitor or a row exists"
    (line,) = lines(caplog, "plain pool")
    assert line.startswith("BGPOOL_DISABLE=1 is set: ")
    assert "unset it" in line


def test_a_disabled_pool_is_not_held(get_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPOOL_DISABLE", "yes")
    with bgpool.testing.deployment(tmp_path / "run", bg_id=tmp_path.name) as deployment:
        deployment.phase(bgpool.Phase.IN_PROGRESS)
        pool = get_pool(endpoint=None)
        assert works(pool)
        assert pool.stats().phase is None


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_an_invalid_value_of_the_variable_is_refused(
    get_pool: MakePool, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("BGPOOL_DISABLE", value)
    with pytest.raises(bgpool.ConfigurationError, match=rf"\$BGPOOL_DISABLE='{value}': true or false is allowed"):
        get_pool()

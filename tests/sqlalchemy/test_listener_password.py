"""A password that a do_connect listener brings: the application connects, the monitor cannot, both say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url

import bgpool
from bgpool.core.observations import Visibility
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect
from bgpool.lab import Pair
from bgpool.lab.pair import MONITOR_ROLE, ROLE
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

MakeEngine = Callable[..., sqlalchemy.Engine]


@pytest.fixture
def bare(pair: Pair, tmp_path: Path) -> URL:
    """The URL of blue without a password, with a monitor of its own."""
    plain = make_url(pair.dsn)
    own = {"bg_resolver": pair.resolver, "bg_run_dir": str(tmp_path / "run"), "bg_id": f"listener-{os.getpid()}"}
    return URL.create(
        f"{plain.drivername}+bgpool",
        plain.username,
        None,
        plain.host,
        plain.port,
        plain.database,
        {**plain.query, **own},
    )


@pytest.fixture
def make_engine(pair: Pair) -> Iterator[MakeEngine]:
    """Makes engines whose password a listener brings."""
    engines: list[sqlalchemy.Engine] = []

    def make(url: URL, **options: Any) -> sqlalchemy.Engine:
        engine = sqlalchemy.create_engine(url, **options)
        engines.append(engine)

        @event.listens_for(engine, "do_connect")
        def bring(_dialect: object, _entry: object, _args: object, params: dict[str, Any]) -> None:
            params["password"] = pair.app_password

        return engine

    yield make
    for engine in engines:
        engine.dispose()
        assert isinstance(engine.dialect, BgpoolDialect)
        assert engine.dialect.bgpool_connector is not None
        engine.dialect.bgpool_connector.close()


#: The findings of a monitor after a successful login, if there is no deployment.
LET_IN = (Visibility.MISSING.text, Visibility.EMPTY.text)


def missing(url: URL, run_dir: Path) -> str:
    return " ".join(bgpool.status(str(url.query["bg_id"]), run_dir).missing)


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if vars(record).get("event") == name]


def test_application_and_monitor_say_what_to_do(
    bare: URL, pair: Pair, make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(bare)
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        engine.dispose()
    (said,) = events(caplog, "monitor_lacks_password")
    assert f"user {ROLE!r} comes with each connection, but the monitor is a process of its own and has none" in said
    assert "monitoring={'user': ..., 'password': ...}; with SQLAlchemy, both belong in connect_args" in said
    wait_until(
        lambda: (
            "comes with each connection (from a do_connect listener), the monitor does not have it"
            in missing(bare, tmp_path / "run")
        )
    )
    wait_until(lambda: bool(events(caplog, "server_not_answering")))
    for told in (*events(caplog, "server_not_answering"), missing(bare, tmp_path / "run")):
        assert "bgpool.auth.RdsIam()" in told
        assert "with SQLAlchemy, both belong in connect_args" in told
    assert pair.app_password not in caplog.text
    # Another monitor with the same parameters would be refused as well.
    assert isinstance(engine.dialect, BgpoolDialect)
    assert engine.dialect.bgpool_connector is not None
    with engine.connect():
        usage = engine.dialect.bgpool_connector.usage()
    assert (usage.in_use, usage.offer) == (1, Visibility.NONE)


def test_a_monitor_with_a_login_of_its_own_needs_none(
    bare: URL, pair: Pair, make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own: Mapping[str, str] = {
        "blue-green-monitoring-user": MONITOR_ROLE,
        "blue-green-monitoring-password": pair.lab_password,
    }
    with make_engine(bare.update_query_dict(own)).connect() as connection:
        connection.execute(text("SELECT 1"))
    # It was let in: the server has told it that it has nothing to show.
    wait_until(lambda: bgpool.status(str(bare.query["bg_id"]), tmp_path / "run").monitor.visibility in LET_IN)
    assert "blue does not answer" not in missing(bare, tmp_path / "run")
    assert events(caplog, "monitor_lacks_password") == events(caplog, "server_not_answering") == []


def test_it_wins_over_a_password_and_over_a_callable(bare: URL, make_engine: MakeEngine) -> None:
    for url, password in ((bare.set(password="stale"), None), (bare, never)):
        engine = make_engine(url, connect_args={} if password is None else {"password": password})
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1


def never(_host: str, _port: int, _user: str) -> str:
    raise AssertionError("the listener's password wins")

"""Before a switchover a pool tries its own login on green, and readiness depends on the result."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.events import Resolved
from bgpool.core.phase import Phase, Role
from bgpool.lab import Pair
from bgpool.lab.pair import ROLE
from bgpool.monitor.probe import now
from bgpool.pools import green_login
from bgpool.pools.green_login import GreenLogin
from bgpool.pools.receipts import Receipts
from bgpool.testing import Deployment
from tests.pools.callers import wait_until

ENGINES = (Engine.POSTGRESQL, Engine.MYSQL)

pytestmark = pytest.mark.lab


def let_in(pair: Pair) -> None:
    pair.green._refused_roles.discard(ROLE)  # type: ignore[attr-defined]  # servers of all engines have it
    pair.green.admit_clients()


@pytest.fixture
def locked(pair: Pair) -> Iterator[None]:
    """The application's account exists on green, but cannot log in there."""
    pair.green.lock_out(ROLE)
    yield
    let_in(pair)


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if vars(record).get("event") == "green_login_refused"]


@pytest.mark.usefixtures("locked")
def test_an_account_locked_on_green_is_reported_until_it_is_unlocked(
    pair: Pair,
    deployment: Deployment,
    make_pool: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(green_login, "LOGIN_TRIAL_RETRY_S", 0.1)
    pool = make_pool()
    with pool.connection():
        pass
    wait_until(lambda: pool.usage().locked_out == 1)
    wait_until(lambda: pool.participant.locked_out_workers() == [os.getpid()])

    def missing() -> str:
        return " ".join(bgpool.status("1", deployment.run_dir).missing)

    wait_until(lambda: "the login of 1 of 1 workers does not work on green: pid" in missing())
    with pool.connection():
        pass  # the trial is logged, and prevents no checkout
    let_in(pair)
    wait_until(lambda: pool.usage().locked_out == 0)
    wait_until(lambda: "does not work on green" not in missing())
    (record,) = logged(caplog)
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert f"user 'app' at {pair.names.green.primary}:{pair.port}: OperationalError" in text
    assert "as on blue: account" in text
    assert pair.app_password not in text


def test_a_login_that_works_is_tried_once_and_leaves_nothing(
    pair: Pair,
    deployment: Deployment,
    make_pool: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    pool = make_pool()
    log_in = pool._recipe.try_login

    def count(decision: Any, table: str | None) -> bool:
        tried.append(decision.names[0])
        return bool(log_in(decision, table))

    monkeypatch.setattr(pool._recipe, "try_login", count)
    with pool.connection():
        pass
    wait_until(lambda: tried == [pair.names.green.primary])
    deployment.tell(Resolved(now(), {}))
    wait_until(lambda: pair.application_connections("green") == 0)
    assert (pool.usage().locked_out, len(tried), logged(caplog)) == (0, 1, [])


class Recipe:
    """The part of a recipe that a trial needs."""

    cache_warning = ""
    given_password = False

    def __init__(self, pool: Any, outcome: Exception | None = None) -> None:
        self.endpoint, self.dsn, self.settings = pool._endpoint, pool._recipe.dsn, pool._settings
        self.outcome = outcome
        self.decisions: list[Any] = []
        self.reaches: bool | None = True

    def try_login(self, decision: Any, table: str | None) -> bool | None:
        self.decisions.append(decision)
        if self.outcome is not None:
            raise self.outcome
        return self.reaches if table is not None else False


class Workers:
    """The processes of a host: this one and those that green refuses."""

    def __init__(self, *locked_out: int) -> None:
        self.locked_out = list(locked_out)

    def count_workers(self) -> int:
        return 0

    def locked_out_workers(self) -> list[int]:
        return self.locked_out


def tried(
    recipe: Recipe, deployment: Deployment, workers: Workers | None = None, receipts: Receipts | None = None
) -> GreenLogin:
    login = GreenLogin(recipe, workers or Workers(), receipts)  # type: ignore[arg-type]  # has the needed part
    login.look(deployment.snapshot)
    if login._thread is not None:
        login._thread.join()
    return login


def test_a_password_made_for_each_connection_is_not_tried(
    deployment: Deployment, make_pool: Callable[..., Any]
) -> None:
    recipe = Recipe(make_pool(), outcome=psycopg.OperationalError("FATAL: no"))
    recipe.given_password = True
    login = tried(recipe, deployment)
    assert (recipe.decisions, login.failure) == ([], "")


def test_the_trial_takes_place_only_before_a_switchover_at_the_counterpart(
    deployment: Deployment, make_pool: Callable[..., Any]
) -> None:
    recipe = Recipe(make_pool())
    login = tried(recipe, deployment)
    (decision,) = recipe.decisions
    green = deployment.snapshot.hosts_of(Role.TARGET)[0]
    assert (decision.addresses, decision.names) == (green.addresses, (green.name,))
    login.look(deployment.snapshot)
    deployment.phase(Phase.PREPARATION)
    login.look(deployment.snapshot)
    login.look(None)
    assert len(recipe.decisions) == 1, "the trial was repeated"


def tls_refused(
    cause: Exception | None = None, text: str = "certificate verify failed"
) -> pymysql.err.OperationalError:
    """Return the error that PyMySQL raises after a failed TLS handshake."""
    error = pymysql.err.OperationalError(2003, text)
    error.__context__ = cause or ssl.SSLCertVerificationError()
    return error


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (tls_refused(), "certificate verify failed; let the user in there"),
        (tls_refused(ssl.SSLError(1, "alert"), "alert protocol version"), "protocol version; let the user in there"),
        (pymysql.err.OperationalError(2026, "TLS is not supported"), "not supported; let the user in there"),
        (tls_refused(ssl.SSLEOFError(8, "EOF"), "EOF"), ""),
        (pymysql.err.OperationalError(1040, "Too many connections"), ""),
        (pymysql.err.OperationalError(1203, "User app already has more than 'max_user_connections'"), ""),
        (pymysql.err.OperationalError(1226, "User 'app' has exceeded the 'max_user_connections' resource"), ""),
        (psycopg.OperationalError("FATAL:  sorry, too many clients already"), ""),
        (psycopg.OperationalError('FATAL:  too many connections for role "app"'), ""),
        (psycopg.OperationalError("FATAL:  remaining connection slots are reserved for roles with SUPERUSER"), ""),
        (psycopg.OperationalError("FATAL:  the database system is starting up"), ""),
        (psycopg.OperationalError('FATAL:  role "app" does not exist'), "does not exist; let the user in there"),
        (pymysql.err.OperationalError(2003, "Can't connect"), ""),
        (OSError("unreachable"), ""),
        (pymysql.err.OperationalError(1049, "Unknown database"), "Unknown database; let the user in there"),
        (pymysql.err.OperationalError(2061, "needs a package; pip install it"), "pip install it"),
    ],
)
def test_only_certain_errors_count_as_refused(
    outcome: Exception, expected: str, deployment: Deployment, make_pool: Callable[..., Any]
) -> None:
    failure = tried(Recipe(make_pool(), outcome), deployment).failure
    assert expected in failure
    assert bool(failure) is bool(expected)
    assert ("let the user in" in failure) is ("let the user in" in expected)


def test_one_process_of_a_host_is_refused_at_a_time(
    deployment: Deployment, make_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server locks an account after some wrong passwords, and blocks a host after some broken handshakes."""
    monkeypatch.setattr(green_login, "LOGIN_TRIAL_WAIT_S", 0.0)
    recipe = Recipe(make_pool(), pymysql.err.OperationalError(1045, "Access denied"))
    workers = Workers(os.getpid() + 1)
    login = tried(recipe, deployment, workers)
    assert recipe.decisions == [], "another process is refused already"

    def look() -> int:
        login._due_at = 0.0
        login.look(deployment.snapshot)
        if login._thread is not None:
            login._thread.join()
        return len(recipe.decisions)

    workers.locked_out = []
    assert look() == 1
    workers.locked_out = [os.getpid(), os.getpid() + 1]
    assert look() == 2, "of the refused processes, the one with the lowest pid tries again"
    workers.locked_out = [os.getpid() - 1, os.getpid()]
    assert look() == 2


def test_an_unreachable_green_changes_nothing(deployment: Deployment, make_pool: Callable[..., Any]) -> None:
    recipe = Recipe(make_pool(), pymysql.err.OperationalError(1045, "Access denied"))
    login = tried(recipe, deployment)
    refused = login.failure
    recipe.outcome = OSError("unreachable")
    login._due_at = 0.0
    login.look(deployment.snapshot)
    assert login._thread is not None
    login._thread.join()
    assert (len(recipe.decisions), login.failure) == (2, refused)


def test_a_password_cached_only_on_blue_is_reported_without_a_trial(
    deployment: Deployment, make_pool: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(make_pool())
    recipe.cache_warning = "only in the cache"
    assert tried(recipe, deployment).failure == "only in the cache"
    assert (recipe.decisions, logged(caplog)) == ([], [])


@pytest.mark.parametrize("reaches", [True, False, None])
def test_receipts_that_would_stop_replication_are_not_written(
    deployment: Deployment, make_pool: Callable[..., Any], caplog: pytest.LogCaptureFixture, reaches: bool | None
) -> None:
    """The table was created on blue only, and green is a logical replica."""
    pool = make_pool(bg_receipts_table="bgpool_receipts")
    receipts, recipe = pool._receipts, Recipe(pool)
    with pool.connection() as conn:
        generation = conn.bgpool_generation
    receipts.accept(generation)
    recipe.reaches = reaches
    with caplog.at_level(logging.WARNING, logger="bgpool"):
        login = tried(recipe, deployment, receipts=receipts)
    assert (receipts.reach_green, receipts.is_usable(generation)) == (reaches is True, reaches is not None)
    warned = [record.getMessage() for record in caplog.records if "stop its replication" in record.getMessage()]
    assert len(warned) == (reaches is None)
    deployment.phase(Phase.COMPLETED)
    login.look(deployment.snapshot)
    assert receipts.is_usable(generation)

"""bgpool's engines in a deployment, as seen by a request that keeps its connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.integrations.django import run
from bgpool.lab import Pair
from bgpool.pools.connector import Connector
from bgpool.testing import Deployment
from tests.engines import Kit

pytestmark = [pytest.mark.lab]


def ask(wrapper: Any, sql: str = "SELECT 1") -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def test_a_kept_connection_is_held_at_its_next_cursor_and_replaced(
    kit: Kit, deployment: Deployment, make_database: Callable[..., str]
) -> None:
    wrapper: Any = connections[make_database()]
    ask(wrapper)
    first = wrapper.connection
    deployment.phase(Phase.PREPARATION)
    ask(wrapper)
    assert wrapper.connection is first
    deployment.phase(Phase.IN_PROGRESS)
    timer = threading.Timer(0.3, lambda: deployment.phase(Phase.POST))
    timer.start()
    ask(wrapper)
    timer.join()
    assert wrapper.connection is not first
    assert kit.where(wrapper.connection)


def test_hooks_run_at_the_end_of_an_atomic_block_whose_connection_went_stale(
    deployment: Deployment, make_database: Callable[..., str]
) -> None:
    alias = make_database()
    wrapper: Any = connections[alias]
    ran: list[int] = []
    ask(wrapper)
    deployment.phase(Phase.PREPARATION)
    with transaction.atomic(using=alias):
        ask(wrapper, "SELECT 1")
        transaction.on_commit(lambda: ran.append(1), using=alias)
        deployment.phase(Phase.IN_PROGRESS)
    assert ran == [1]
    assert wrapper.connection is None


def test_run_commits(make_database: Callable[..., str]) -> None:
    alias = make_database()
    ran: list[int] = []

    def work() -> Any:
        transaction.on_commit(lambda: ran.append(1), using=alias)
        return ask(connections[alias])

    assert run(work, using=alias) == 1
    assert ran == [1]


def test_a_database_outside_a_deployment_keeps_its_connection(pair: Pair, make_database: Callable[..., str]) -> None:
    alias = make_database(HOST=pair.blue.address)
    wrapper: Any = connections[alias]
    ask(wrapper)
    first = wrapper.connection
    with transaction.atomic(using=alias):
        ask(wrapper)
    assert wrapper.connection is first
    # One compare for each cursor, as in a deployment.
    assert wrapper.bgpool_source.connections.admits()


@pytest.mark.parametrize("max_age", [None, 60])
def test_a_pool_with_persistent_connections_is_refused_as_djangos_is(
    make_database: Callable[..., str], max_age: int | None
) -> None:
    wrapper: Any = connections[make_database({"pool": True}, CONN_MAX_AGE=max_age)]
    with pytest.raises(ImproperlyConfigured, match="Pooling doesn't support persistent connections"):
        wrapper.ensure_connection()
    with pytest.raises(ImproperlyConfigured, match="CONN_MAX_AGE"):
        _ = wrapper.pool


def test_a_pools_own_check_is_called_in_place_of_djangos(kit: Kit, make_database: Callable[..., str]) -> None:
    if kit.engine is Engine.MYSQL:
        pytest.skip("pools of MySQL check connections that were idle for a while")
    checked: list[Any] = []
    wrapper: Any = connections[make_database({"pool": {"check": checked.append}}, CONN_HEALTH_CHECKS=True)]
    ask(wrapper)
    assert checked == [wrapper.connection]


def test_a_request_goes_on_with_another_connection_once_its_pool_was_closed(
    kit: Kit, make_database: Callable[..., str]
) -> None:
    """Celery closes the pool behind each task, whatever other threads do."""
    wrapper: Any = connections[make_database({"pool": True})]
    ask(wrapper)
    first = wrapper.connection

    def close_pool() -> None:
        its: Any = connections[wrapper.alias]
        its.close_pool()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(close_pool).result()
    assert ask(wrapper) == 1
    assert wrapper.connection is not first
    assert kit.where(wrapper.connection)


def test_conn_max_age_is_judged_when_a_databases_first_pool_is_made(make_database: Callable[..., str]) -> None:
    """Like Django's: tests change CONN_MAX_AGE of a database that is in use."""
    wrapper: Any = connections[make_database({"pool": True})]
    ask(wrapper)
    wrapper.settings_dict.update(CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True)
    wrapper.close()
    assert ask(wrapper) == 1


def test_a_switchover_that_begins_behind_the_commit_holds_no_request(
    deployment: Deployment, make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database({"bg_connect_timeout_ms": "200"})
    wrapper: Any = connections[alias]
    ran: list[int] = []
    ask(wrapper)
    deployment.phase(Phase.PREPARATION)
    is_fit = Connector.is_fit

    def and_then_it_begins(self: Connector[Any], connection: Any) -> bool:
        fit = is_fit(self, connection)
        deployment.phase(Phase.IN_PROGRESS)
        return fit

    with transaction.atomic(using=alias):
        ask(wrapper)
        transaction.on_commit(lambda: ran.append(1), using=alias)
        monkeypatch.setattr(Connector, "is_fit", and_then_it_begins)
    monkeypatch.undo()
    assert ran == [1]
    deployment.phase(Phase.POST)
    assert ask(wrapper) == 1

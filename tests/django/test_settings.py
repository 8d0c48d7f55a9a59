"""The settings that DATABASES may contain, their effects, and those that are refused."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.core.management import CommandError, call_command
from django.db import OperationalError, close_old_connections, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, modify_settings

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import CommitOutcomeUnknown, SwitchoverInterrupted
from bgpool.fleet.config import FleetConfig
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.django.models import entry_model
from tests.django.test_connections import WAYS, ask, switch_over
from tests.engines import Kit

pytestmark = [pytest.mark.lab]

MakeDatabase = Callable[..., str]


# -- texts ---------------------------------------------------------------------------------------------------------


def test_every_option_may_be_text(deployment: Deployment, make_database: MakeDatabase) -> None:
    options = {
        "bg_connect_timeout_ms": "30000",
        "bg_drop_blue_connections": "true",
        "bg_drain_timeout_ms": "500",
        "connect_timeout": "5",
        "pool": "true",
    }
    wrapper: Any = connections[make_database(options, CONN_MAX_AGE=0)]
    assert ask(wrapper) == 1
    assert wrapper.pool.get_stats()["pool_size"] >= 1
    first = wrapper.connection
    switch_over(deployment)
    assert ask(wrapper) == 1
    assert wrapper.connection is not first
    for none in ("false", ""):
        wrapper = connections[make_database({"pool": none})]
        assert ask(wrapper) == 1
        assert wrapper.pool is None


SECRET = "s3cret-of-the-test"


@pytest.mark.parametrize(
    ("options", "changed", "says"),
    [
        ({"bg_connect_timeout_ms": "soon"}, {}, "bg_connect_timeout_ms"),
        ({"bg_conect_timeout_ms": "1000"}, {}, "bg_conect_timeout_ms"),
        ({"bg_resolver": "nobody"}, {}, "bg_resolver"),
        ({"bg_id": ""}, {}, "bg_id"),
        ({"nothing_of_the_kind": "1"}, {}, "nothing_of_the_kind"),
        ({"bg_fleet": f"http://u:{SECRET}@bus"}, {}, "bg_fleet"),
        ({"bg_fleet": f"redis://u:{SECRET}@bus"}, {}, "bg_fleet_key"),
        ({"bg_fleet": "redis://bus", "bg_fleet_key": SECRET}, {}, "18 bytes"),
        ({"bg_fleet": "redis://bus", "bg_fleet_key": ["k" * 32, SECRET]}, {}, "18 bytes"),
        ({"bg_fleet_password": SECRET}, {}, "bg_fleet_password"),
        ({"passwort": SECRET}, {}, "passwort"),
        ({"monitoring": SECRET}, {}, "monitoring"),
        ({"monitoring": {"passwort": SECRET}}, {}, "passwort"),
        ({"pool": {"kwargs": {"password": SECRET}}}, {"CONN_MAX_AGE": 0}, "kwargs"),
        ({"pool": {"max_size": 0}}, {"CONN_MAX_AGE": 0}, "max_size"),
        ({"pool": {"min_size": 9, "max_size": 2}}, {"CONN_MAX_AGE": 0}, "max_size"),
        ({"pool": "perhaps"}, {"CONN_MAX_AGE": 0}, "pool"),
        ({"pool": 7}, {"CONN_MAX_AGE": 0}, "pool"),
        ({"pool": True}, {"CONN_MAX_AGE": 60}, "CONN_MAX_AGE"),
        ({}, {"PASSWORD": 17}, "password"),
        ({}, {"PASSWORD": {"token": SECRET}}, "password"),
        ({}, {"PASSWORD": SECRET.encode()}, "password"),
        ({}, {"PASSWORD": [SECRET]}, "password"),
        ({}, {"HOST": "one.example,two.example"}, "host"),
        ({}, {"PORT": 99999}, "port"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_without_a_secret(
    options: dict[str, Any], changed: dict[str, Any], says: str, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(options, **{"PASSWORD": SECRET, **changed})]
    with pytest.raises(ImproperlyConfigured) as raised:
        ask(wrapper)
    told = str(raised.value)
    assert says.lower() in told.lower()
    assert f"DATABASES['{wrapper.alias}']" in told
    error: BaseException | None = raised.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__
    if hasattr(wrapper, "close_pool"):
        wrapper.settings_dict["OPTIONS"].pop("pool", None)


def test_a_fleet(make_database: MakeDatabase) -> None:
    keys = ["n" * 32, b"o" * 32]
    for options in (
        {"bg_fleet": f"valkey://u:{SECRET}@bus", "bg_fleet_key": keys},
        {"bg_fleet": f"valkey://u:{SECRET}@bus", "bg_fleet_key": f"{'n' * 32},{'o' * 32}", "pool": True},
    ):
        wrapper: Any = connections[make_database(options)]
        assert ask(wrapper) == 1
        source = wrapper.bgpool_find(wrapper.get_connection_params())
        assert source.connections.monitoring.fleet == FleetConfig(f"redis://u:{SECRET}@bus", (b"n" * 32, b"o" * 32))
        for thing in (source, source.connections, source.pool, wrapper):
            assert SECRET not in repr(thing)
            assert "n" * 32 not in repr(thing)


# -- connections that are kept -------------------------------------------------------------------------------------


def test_a_connection_that_the_server_ended_is_found_by_the_health_check(
    kit: Kit, pair: Pair, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(CONN_HEALTH_CHECKS=True)]
    ask(wrapper)
    first = wrapper.connection
    kit.kill(pair, kit.session(first))
    close_old_connections()
    assert ask(wrapper) == 1
    assert wrapper.connection is not first


def test_conn_max_age_ends_a_connection_between_requests(make_database: MakeDatabase) -> None:
    kept: Any = connections[make_database(CONN_MAX_AGE=600)]
    brief: Any = connections[make_database(CONN_MAX_AGE=0)]
    ask(kept)
    ask(brief)
    first = kept.connection
    close_old_connections()
    assert brief.connection is None
    ask(kept)
    assert kept.connection is first


@WAYS
def test_the_end_of_a_request_does_not_wait_for_a_switchover(
    way: dict[str, Any], deployment: Deployment, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(CONN_HEALTH_CHECKS=True, **way)]
    ask(wrapper)
    wrapper.errors_occurred = True
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    began = time.monotonic()
    close_old_connections()
    assert time.monotonic() - began < 20
    assert wrapper.connection is None


@WAYS
def test_each_thread_is_held_and_goes_on(
    way: dict[str, Any], deployment: Deployment, make_database: MakeDatabase
) -> None:
    way = {**way, "options": {**way.get("options", {}), **({"pool": {"max_size": 4}} if way else {})}}
    alias = make_database(**way)
    ready, go = threading.Barrier(5), threading.Event()
    seen: list[bool] = []

    def work() -> None:
        wrapper: Any = connections[alias]
        ask(wrapper)
        first = wrapper.connection
        ready.wait(20)
        assert go.wait(20)
        with transaction.atomic(using=alias):
            ask(wrapper)
        seen.append(wrapper.connection is not first)
        wrapper.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(20)
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    go.set()
    deployment.phase(Phase.POST)
    for thread in threads:
        thread.join(30)
    assert seen == [True] * 4


def test_a_view_under_atomic_requests_is_held_before_it_begins(
    deployment: Deployment, make_database: MakeDatabase
) -> None:
    alias = make_database(ATOMIC_REQUESTS=True)
    wrapper: Any = connections[alias]
    ask(wrapper)
    first = wrapper.connection
    calls: list[bool] = []

    def view(_request: HttpRequest) -> HttpResponse:
        calls.append(wrapper.in_atomic_block)
        return HttpResponse(str(ask(wrapper)))

    atomic: Any = BaseHandler().make_view_atomic(view)
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    timer = threading.Timer(0.1, lambda: deployment.phase(Phase.POST))
    timer.start()
    assert atomic(RequestFactory().get("/")).content == b"1"
    timer.join()
    assert calls == [True]
    assert wrapper.connection is not first


async def _first(alias: str) -> Any:
    return await entry_model().objects.using(alias).filter(worker=1).afirst()


def test_the_asynchronous_interface_works(deployment: Deployment, make_database: MakeDatabase) -> None:
    alias = make_database()

    async def both() -> None:
        await _first(alias)
        deployment.phase(Phase.PREPARATION)
        deployment.phase(Phase.IN_PROGRESS)
        held = asyncio.create_task(_first(alias))
        # The loop goes on while its thread is held.
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not held.done()
        deployment.phase(Phase.POST)
        await asyncio.wait_for(held, 20)
        await sync_to_async(lambda: connections[alias].close())()

    asyncio.run(both())


@pytest.mark.parametrize("disabled", [False, True], ids=["server-side", "client-side"])
@pytest.mark.parametrize("in_atomic", [False, True], ids=["autocommit", "atomic"])
def test_iterating_over_a_switchover_ends_in_an_error_that_names_it_or_in_all_rows(
    in_atomic: bool, disabled: bool, kit: Kit, entries: int, deployment: Deployment, make_database: MakeDatabase
) -> None:
    alias = make_database({"bg_drain_timeout_ms": "0"}, DISABLE_SERVER_SIDE_CURSORS=disabled)
    wrapper: Any = connections[alias]
    rows = entry_model().objects.using(alias).filter(worker=88).iterator(chunk_size=10)
    seen = 0

    def iterate() -> None:
        nonlocal seen
        for seen, _ in enumerate(rows, 1):
            if seen == 15:
                switch_over(deployment)

    try:
        with transaction.atomic(using=alias) if in_atomic else contextlib.nullcontext():
            iterate()
    except OperationalError as error:
        failure: BaseException | None = error.__cause__
    else:
        failure = None
    # It may be the COMMIT that is cut.
    says_so = (SwitchoverInterrupted, CommitOutcomeUnknown) if in_atomic else SwitchoverInterrupted
    assert seen == entries if failure is None else isinstance(failure, says_so)
    if disabled or kit.engine is Engine.MYSQL:
        assert seen == entries
    assert ask(wrapper) == 1


# -- management commands -------------------------------------------------------------------------------------------


@WAYS
def test_commands_that_go_to_the_database_work(
    way: dict[str, Any], tmp_path: Path, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An app registers its checks for good, and they fail in tests that come later without the app.
    for name in ("registered_checks", "deployment_checks"):
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())
    alias = make_database(**way)
    told = io.StringIO()
    call_command("inspectdb", "ledger", database=alias, stdout=told)
    assert "db_table = 'ledger'" in told.getvalue()
    with modify_settings(INSTALLED_APPS={"append": ["django.contrib.contenttypes", "django.contrib.auth"]}):
        try:
            call_command("migrate", database=alias, verbosity=0)
            from django.contrib.auth.models import Group

            Group.objects.using(alias).create(name="readers")
            file = tmp_path / "groups.json"
            call_command("dumpdata", "auth.Group", database=alias, output=str(file), verbosity=0)
            Group.objects.using(alias).all().delete()
            call_command("loaddata", str(file), database=alias, verbosity=0)
            assert Group.objects.using(alias).get().name == "readers"
        finally:
            call_command("migrate", "auth", "zero", database=alias, verbosity=0)
            call_command("migrate", "contenttypes", "zero", database=alias, verbosity=0)
            ask_away(connections[alias], "DROP TABLE django_migrations")


def ask_away(wrapper: Any, sql: str) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(sql)


@pytest.fixture
def shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs in place of psql and mysql, which note what they are started with."""
    noted = tmp_path / "noted"
    for name in ("psql", "mysql"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" "$PGPASSWORD$MYSQL_PWD" > {noted}\n')
        program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return noted


class _Token:
    """A password callable, as RdsIam is one."""

    def __call__(self, host: str, port: int, user: str) -> str:
        return f"token-for-{user}@{host}:{port}"


def _fails(host: str, port: int, user: str) -> str:
    del host, port, user
    raise RuntimeError(SECRET)


@pytest.mark.parametrize("place", ["PASSWORD", "OPTIONS"])
@pytest.mark.parametrize("given", [_Token(), "as-text"], ids=["callable", "text"])
def test_dbshell_gives_the_password_in_the_environment(
    given: object, place: str, pair: Pair, shells: Path, make_database: MakeDatabase
) -> None:
    in_options = {"password": given} if place == "OPTIONS" else {}
    alias = make_database(in_options, PASSWORD=given if place == "PASSWORD" else "")
    call_command("dbshell", database=alias)
    arguments, password = shells.read_text().splitlines()
    host = connections[alias].settings_dict["HOST"]
    assert password == ("as-text" if given == "as-text" else f"token-for-app@{host}:{pair.port}")
    assert "token" not in arguments
    assert "as-text" not in arguments


def test_dbshell_reports_a_callable_that_fails(shells: Path, make_database: MakeDatabase) -> None:
    with pytest.raises(CommandError, match="RuntimeError") as raised:
        call_command("dbshell", database=make_database(PASSWORD=_fails))
    assert SECRET not in str(raised.value)
    assert not shells.exists()

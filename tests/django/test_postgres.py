"""PostgreSQL only: roles, time zones, isolation levels, server-side cursors, and other libraries' backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import InternalError, OperationalError, connections, transaction
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql import psycopg_any

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.integrations.django import postgres, run
from bgpool.integrations.django.postgres import PostgresWrapper
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.django.models import entry_model
from tests.django.test_connections import WAYS, ask, switch_over
from tests.engines import Kit

pytestmark = [pytest.mark.lab]

ENGINES = (Engine.POSTGRESQL,)

MakeDatabase = Callable[..., str]


@pytest.fixture
def role(postgres_pair: Pair) -> Iterator[str]:
    postgres_pair.blue.execute("CREATE ROLE ledger_owner; GRANT ledger_owner TO app")
    yield "ledger_owner"
    postgres_pair.blue.execute("DROP ROLE ledger_owner")


@WAYS
def test_role_time_zone_and_isolation_level_are_those_of_every_connection(
    way: dict[str, Any], kit: Kit, role: str, deployment: Deployment, make_database: MakeDatabase
) -> None:
    options = {"assume_role": role, "isolation_level": psycopg.IsolationLevel.REPEATABLE_READ, **way.get("options", {})}
    wrapper: Any = connections[make_database(**{**way, "options": options, "TIME_ZONE": "Asia/Tokyo"})]
    for _ in range(2):
        with transaction.atomic(using=wrapper.alias):
            assert ask(wrapper, "SELECT current_user") == role
            assert ask(wrapper, "SHOW timezone") == "Asia/Tokyo"
            assert ask(wrapper, "SHOW transaction_isolation") == "repeatable read"
        if wrapper.connection is not None and deployment.snapshot.phase is Phase.CREATED:
            switch_over(deployment)
    assert kit.where(wrapper.connection)


@WAYS
def test_a_role_that_is_not_there_is_an_error_each_time(way: dict[str, Any], make_database: MakeDatabase) -> None:
    pool = {"pool": {"min_size": 0, "max_size": 1, "timeout": 1.0}} if way else {}
    wrapper: Any = connections[make_database(**{**way, "options": {"assume_role": "nobody_knows_it", **pool}})]
    for _ in range(2):
        with pytest.raises(OperationalError if way else Exception, match=r"nobody_knows_it|after 1\.00 sec"):
            ask(wrapper)


def test_queries_while_iterating_by_a_cursor_on_the_server_end_in_an_error_after_a_switchover(
    entries: int, deployment: Deployment, make_database: MakeDatabase
) -> None:
    alias = make_database()
    wrapper: Any = connections[alias]
    rows = entry_model().objects.using(alias).filter(worker=88).iterator(chunk_size=10)
    with pytest.raises(OperationalError):
        for number, _ in enumerate(rows, 1):
            if number == 15:
                switch_over(deployment)
            ask(wrapper)
    assert entries
    assert ask(wrapper) == 1


def test_a_pools_connections_do_not_keep_an_isolation_level_that_the_settings_no_longer_have(
    make_database: MakeDatabase,
) -> None:
    options = {"isolation_level": psycopg.IsolationLevel.SERIALIZABLE, "pool": {"min_size": 0, "max_size": 1}}
    wrapper: Any = connections[make_database(options)]
    ask(wrapper)
    wrapper.close()
    del wrapper.settings_dict["OPTIONS"]["isolation_level"]
    with transaction.atomic(using=wrapper.alias):
        assert ask(wrapper, "SHOW transaction_isolation") == "read committed"


@WAYS
def test_threads_that_come_first_at_the_same_moment_share_a_source(
    way: dict[str, Any], make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django makes adapters for each of them then, before it remembers some. Another pool would replace the first."""
    make: Any = psycopg_any.get_adapters_template
    together = threading.Barrier(2)

    @lru_cache
    def get_adapters_template(*args: Any) -> Any:
        together.wait(10)
        return make.__wrapped__(*args)

    for module in (psycopg_any, postgresql, postgres):
        monkeypatch.setattr(module, "get_adapters_template", get_adapters_template)
    alias = make_database(**way)

    def find() -> Any:
        wrapper: Any = connections[alias]
        return wrapper.bgpool_find(wrapper.get_connection_params()).connections

    with ThreadPoolExecutor(2) as threads:
        first, second = (each.result(20) for each in [threads.submit(find) for _ in range(2)])
    assert first is second is find()


@WAYS
@pytest.mark.usefixtures("cut_at_the_question")
def test_a_unit_whose_server_refuses_its_write_and_then_cuts_it_is_called_again(
    way: dict[str, Any], make_database: MakeDatabase
) -> None:
    """Django would go on with the connection that was asked, and end the unit with an error of its own."""
    alias = make_database(**way)
    calls: list[int] = []

    def write() -> None:
        calls.append(1)
        entry_model()(worker=67, thread=len(way), n=len(calls)).save(using=alias, force_insert=True)

    run(write, using=alias)
    assert len(calls) > 1
    assert ask(connections[alias], f"SELECT count(*) FROM ledger WHERE worker = 67 AND thread = {len(way)}") == 1


@WAYS
@pytest.mark.usefixtures("cut_at_the_question")
def test_the_error_of_such_a_block_is_the_refusal_and_the_next_one_goes_through(
    way: dict[str, Any], make_database: MakeDatabase
) -> None:
    alias = make_database(**way)

    def write() -> None:
        with transaction.atomic(using=alias):
            entry_model()(worker=67, thread=9, n=2).save(using=alias, force_insert=True)

    with pytest.raises(InternalError, match="read-only"):
        write()
    write()


# -- other backends ------------------------------------------------------------------------------------------------


class OfAThirdParty(postgresql.DatabaseWrapper):
    """A backend as others write it: a password of its own for each connection, and a search path."""

    made: list[dict[str, Any]]
    password: str

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self.made.append(dict(conn_params))
        return super().get_new_connection({**conn_params, "password": self.password})

    def init_connection_state(self) -> None:
        super().init_connection_state()
        with self.cursor() as cursor:
            cursor.execute("SET search_path = public")


class Mixed(PostgresWrapper, OfAThirdParty):
    """It with the mixin."""


def test_another_backend_has_the_mixin_and_keeps_its_own_ways(
    database: dict[str, Any], deployment: Deployment, make_database: MakeDatabase
) -> None:
    alias = make_database()
    wrapper: Any = Mixed({**connections.settings[alias], "PASSWORD": "of yesterday"}, alias)
    wrapper.made, wrapper.password = [], database["PASSWORD"]
    try:
        assert ask(wrapper, "SHOW search_path") == "public"
        switch_over(deployment)
        assert ask(wrapper, "SHOW search_path") == "public"
        assert len(wrapper.made) == 2
        assert wrapper.made[0]["context"] is not None
    finally:
        wrapper.close()


class PastTheMixin(PostgresWrapper, postgresql.DatabaseWrapper):
    """A backend that opens its connections itself."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        source = self.bgpool_find(conn_params)
        assert source is not None
        connection = object()
        self.bgpool_note(source, connection)
        return connection


def test_a_backend_that_opens_connections_past_the_mixin_is_refused(make_database: MakeDatabase) -> None:
    alias = make_database()
    with pytest.raises(ImproperlyConfigured, match=r"self\.Database\.connect"):
        ask(PastTheMixin(connections.settings[alias], alias))


def test_a_password_that_a_backend_makes_for_each_connection_makes_no_connector_for_each(
    database: dict[str, Any], make_database: MakeDatabase
) -> None:
    alias = make_database()
    settings = {**connections.settings[alias], "PASSWORD": ""}

    class OfTokens(postgresql.DatabaseWrapper):
        """A backend with a new token each time, like those for IAM."""

        def get_connection_params(self) -> dict[str, Any]:
            # libpq takes it for the same password.
            return {**super().get_connection_params(), "password": _Text(database["PASSWORD"])}

    class Mixed(PostgresWrapper, OfTokens):
        pass

    wrapper: Any = Mixed(settings, alias)
    try:
        ask(wrapper)
        first = wrapper.bgpool_source.connections
        wrapper.close()
        ask(wrapper)
        assert wrapper.bgpool_source.connections is first
    finally:
        wrapper.close()
    settings["OPTIONS"] = {**settings["OPTIONS"], "pool": True}
    with pytest.raises(ImproperlyConfigured, match="RdsIam"):
        ask(Mixed({**settings, "CONN_MAX_AGE": 0}, alias))


class _Text(str):
    """Text that is equal to none."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = str.__hash__

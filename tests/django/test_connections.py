"""bgpool's engines where Django's would keep a wrong connection of a thread, or lose data."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.signals import connection_created

from bgpool.core.phase import Phase
from bgpool.errors import SwitchoverInterrupted
from bgpool.integrations.django import sources
from bgpool.lab import Pair
from bgpool.lab.waiting import wait_until
from bgpool.pools.connector import Connector
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.processes.test_fork import in_child, in_child_untold

pytestmark = [
    pytest.mark.lab,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

MakeDatabase = Callable[..., str]

#: Django keeps the connection; or OPTIONS["pool"].
KEPT: dict[str, Any] = {}
POOLED: dict[str, Any] = {"options": {"pool": {"min_size": 0, "max_size": 2}}, "CONN_MAX_AGE": 0}
WAYS = pytest.mark.parametrize("way", [KEPT, POOLED], ids=["kept", "pool"])


def ask(wrapper: Any, sql: str = "SELECT 1") -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def switch_over(deployment: Deployment) -> None:
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST):
        deployment.phase(phase)


def other_database(kit: Kit) -> str:
    return "postgres" if kit.engine.value == "postgresql" else "information_schema"


NAME = {"postgresql": "SELECT current_database()", "mysql": "SELECT database()"}


# -- settings that change ------------------------------------------------------------------------------------------


@WAYS
def test_a_connection_to_a_database_that_the_settings_no_longer_name_is_not_used(
    way: dict[str, Any], kit: Kit, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(**way)]
    assert ask(wrapper, NAME[kit.name]) == "app"
    wrapper.settings_dict["NAME"] = other_database(kit)
    assert ask(wrapper, NAME[kit.name]) == other_database(kit)
    with transaction.atomic(using=wrapper.alias):
        assert ask(wrapper, NAME[kit.name]) == other_database(kit)


def test_nor_is_that_of_another_thread(kit: Kit, make_database: MakeDatabase) -> None:
    alias = make_database()
    asked, changed = threading.Event(), threading.Event()
    seen: list[str] = []

    def work() -> None:
        wrapper: Any = connections[alias]
        seen.append(ask(wrapper, NAME[kit.name]))
        asked.set()
        assert changed.wait(10)
        with transaction.atomic(using=alias):
            seen.append(ask(wrapper, NAME[kit.name]))
        wrapper.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert asked.wait(10)
    connections[alias].settings_dict["NAME"] = other_database(kit)
    changed.set()
    thread.join()
    assert seen == ["app", other_database(kit)]


def test_nor_once_a_check_has_looked_at_the_settings(kit: Kit, make_database: MakeDatabase) -> None:
    wrapper: Any = connections[make_database()]
    assert ask(wrapper, NAME[kit.name]) == "app"
    wrapper.settings_dict["NAME"] = other_database(kit)
    wrapper.validation.check()
    assert ask(wrapper, NAME[kit.name]) == other_database(kit)


def test_a_transaction_that_is_open_ends_where_it_began(kit: Kit, make_database: MakeDatabase) -> None:
    wrapper: Any = connections[make_database()]
    with transaction.atomic(using=wrapper.alias):
        ask(wrapper)
        wrapper.settings_dict["NAME"] = other_database(kit)
        assert ask(wrapper, NAME[kit.name]) == "app"
    assert ask(wrapper, NAME[kit.name]) == other_database(kit)


def test_a_pool_is_closed_where_the_settings_want_none_of_bgpools_any_more(
    pair: Pair, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(**POOLED)]
    ask(wrapper)
    pool = wrapper.pool.pool
    wrapper.close()
    wrapper.settings_dict.update(HOST=pair.blue.address, OPTIONS={})
    assert ask(wrapper) == 1
    assert pool.closed


def test_the_end_of_a_pool_whose_settings_have_changed_is_no_warning(
    make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper: Any = connections[make_database(**POOLED)]
    ask(wrapper)
    pool = wrapper.pool.pool
    wrapper.close()
    wrapper.settings_dict["OPTIONS"]["pool"] = {"min_size": 0, "max_size": 3}
    assert ask(wrapper) == 1
    assert pool.closed
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "become",
    [
        lambda creation: creation.set_as_test_mirror({"NAME": "test"}),
        lambda creation: creation.setup_worker_connection(1),
    ],
    ids=["mirror", "process"],
)
def test_what_becomes_a_test_database_leaves_that_of_the_settings(
    become: Callable[[Any], object], make_database: MakeDatabase
) -> None:
    """A pool would go on replacing its connections there for as long as nothing is asked."""
    wrapper: Any = connections[make_database(**POOLED)]
    ask(wrapper)
    pool = wrapper.pool.pool
    wrapper.close()
    become(wrapper.creation)
    assert pool.closed


def test_a_waiting_caller_whose_pool_is_closed_gets_a_connection_of_the_next_pool(
    deployment: Deployment, make_database: MakeDatabase
) -> None:
    """Celery closes it after each task, whichever thread used it."""
    alias = make_database(**POOLED)
    mine: Any = connections[alias]
    ask(mine)
    pool = mine.pool.pool
    mine.close()

    def work() -> Any:
        try:
            return ask(connections[alias])
        finally:
            connections[alias].close()

    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(work)
        wait_until(lambda: pool.stats().held == 1, timeout_s=10, what="the hold")
        mine.close_pool()
        deployment.phase(Phase.POST)
        assert held.result(20) == 1


@dataclass(eq=False)
class Vault:
    """A password callable as others write it: of two, neither is the same."""

    password: str

    def __call__(self, _host: str, _port: int, _user: str) -> str:
        return self.password


@WAYS
@pytest.mark.parametrize("place", ["PASSWORD", "OPTIONS"])
def test_a_copy_of_a_wrapper_connects_from_where_it_does(
    place: str, way: dict[str, Any], pair: Pair, make_database: MakeDatabase
) -> None:
    vault = Vault(pair.app_password)
    options = {**way.get("options", {}), **({"password": vault} if place == "OPTIONS" else {})}
    alias = make_database(**{**way, "options": options}, PASSWORD=vault if place == "PASSWORD" else "")
    wrapper: Any = connections[alias]
    ask(wrapper)
    copied = wrapper.copy()
    try:
        ask(copied)
        assert copied.bgpool_source is wrapper.bgpool_source
        copied.settings_dict["OPTIONS"]["bg_id"] = "another"
        assert wrapper.settings_dict["OPTIONS"]["bg_id"] != "another"
    finally:
        copied.close()


# -- while it is made ----------------------------------------------------------------------------------------------


@pytest.fixture
def on_created() -> Any:
    """Connects functions to Django's signal for the test."""
    connected: list[Any] = []

    def connect(function: Callable[[Any], None]) -> None:
        def receive(connection: Any, **_: Any) -> None:
            function(connection)

        connected.append(receive)
        connection_created.connect(receive)

    yield connect
    for receive in connected:
        connection_created.disconnect(receive)


@WAYS
def test_a_switchover_while_a_connection_is_set_up_costs_the_caller_nothing(
    way: dict[str, Any], kit: Kit, deployment: Deployment, make_database: MakeDatabase, on_created: Any
) -> None:
    wrapper: Any = connections[make_database(**way)]
    made: list[Any] = []

    def receive(created: Any) -> None:
        made.append(created.connection)
        if len(made) == 1:
            switch_over(deployment)
        with created.cursor() as cursor:
            # In autocommit a SELECT that is cut may have done something.
            cursor.execute("SET lock_timeout = 0" if kit.name == "postgresql" else "SET SESSION lock_wait_timeout = 9")

    on_created(receive)
    assert ask(wrapper) == 1
    assert len(made) == 2
    assert wrapper.connection is made[1]


def test_so_does_one_before_autocommit_is_set(
    deployment: Deployment, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper: Any = connections[make_database()]
    kind = type(wrapper)
    connect = kind.get_new_connection
    made: list[Any] = []

    def get_new_connection(self: Any, params: Any) -> Any:
        connection = connect(self, params)
        made.append(connection)
        if len(made) == 1:
            switch_over(deployment)
        return connection

    monkeypatch.setattr(kind, "get_new_connection", get_new_connection)
    assert ask(wrapper) == 1
    with transaction.atomic(using=wrapper.alias):
        assert ask(wrapper) == 1


def test_a_connection_whose_setup_failed_is_not_used(make_database: MakeDatabase, on_created: Any) -> None:
    wrapper: Any = connections[make_database()]
    fails = [True]

    def receive(created: Any) -> None:
        if fails and fails.pop():
            ask(created, "SELECT nothing_of_the_kind")

    on_created(receive)
    with pytest.raises(Exception, match="nothing_of_the_kind"):
        ask(wrapper)
    assert wrapper.connection is None
    assert ask(wrapper) == 1


# -- what is remembered of the server ------------------------------------------------------------------------------


def test_what_was_read_of_blue_is_forgotten(kit: Kit, deployment: Deployment, make_database: MakeDatabase) -> None:
    wrapper: Any = connections[make_database()]
    ask(wrapper)
    name = "pg_version" if kit.name == "postgresql" else "mysql_server_data"
    vars(wrapper)[name] = "of blue"
    switch_over(deployment)
    ask(wrapper)
    assert getattr(wrapper, name) != "of blue"


def test_also_where_it_was_read_before_the_monitor_had_spoken(
    kit: Kit, deployment: Deployment, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper: Any = connections[make_database()]
    connect = Connector.connect

    def without_epoch(self: Any, **params: Any) -> Any:
        connection = connect(self, **params)
        connection.bgpool_generation.epoch = None
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Connector, "connect", without_epoch)
        ask(wrapper)
    name = "pg_version" if kit.name == "postgresql" else "mysql_server_data"
    vars(wrapper)[name] = "of blue"
    switch_over(deployment)
    ask(wrapper)
    assert getattr(wrapper, name) != "of blue"


# -- transactions by hand ------------------------------------------------------------------------------------------


def test_autocommit_off_stays_off_on_the_connection_that_follows(
    deployment: Deployment, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database()]
    wrapper.set_autocommit(False)
    ask(wrapper)
    wrapper.rollback()
    first = wrapper.connection
    switch_over(deployment)
    ask(wrapper)
    assert wrapper.connection is not first
    assert wrapper.get_autocommit() is False
    wrapper.rollback()
    wrapper.set_autocommit(True)


@pytest.mark.parametrize("off_in_settings", [False, True])
def test_rollback_after_a_cut_ends_the_transaction_and_the_next_begins_on_a_new_connection(
    off_in_settings: bool, kit: Kit, pair: Pair, deployment: Deployment, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(AUTOCOMMIT=not off_in_settings)]
    if not off_in_settings:
        wrapper.set_autocommit(False)
    ask(wrapper)
    deployment.phase(Phase.PREPARATION)
    kit.kill(pair, kit.session(wrapper.connection))
    with pytest.raises(OperationalError) as raised:
        ask(wrapper)
    assert isinstance(raised.value.__cause__, SwitchoverInterrupted)
    with pytest.raises(OperationalError):
        # Its transaction is not over for its user yet.
        ask(wrapper)
    wrapper.rollback()
    assert ask(wrapper) == 1
    assert wrapper.get_autocommit() is False
    wrapper.rollback()
    wrapper.set_autocommit(True)


def test_a_transaction_begun_by_a_statement_is_not_taken_to_another_connection(
    deployment: Deployment, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(options={"bg_drain_timeout_ms": "60000"})]
    with wrapper.cursor() as cursor:
        cursor.execute("BEGIN")
    ask(wrapper, "SELECT count(*) FROM ledger")
    first = wrapper.connection
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    ask(wrapper)
    assert wrapper.connection is first
    with wrapper.cursor() as cursor:
        cursor.execute("COMMIT")
    deployment.phase(Phase.POST)
    ask(wrapper)
    assert wrapper.connection is not first


# -- forks ---------------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("fork", [in_child, in_child_untold], ids=lambda fork: fork.__name__)
def test_a_child_makes_its_own_connection_and_leaves_the_parents_alone(
    fork: Callable[[Callable[[], object]], int], way: dict[str, Any], kit: Kit, make_database: MakeDatabase
) -> None:
    wrapper: Any = connections[make_database(**way)]
    ask(wrapper)
    mine = kit.session(wrapper.connection)

    def child() -> None:
        ask(wrapper)
        assert kit.session(wrapper.connection) != mine
        connections.close_all()

    assert fork(child) == 0
    ask(wrapper)
    assert kit.session(wrapper.connection) == mine


def test_so_it_does_where_the_sockets_number_was_closed_and_is_anothers(kit: Kit, make_database: MakeDatabase) -> None:
    wrapper: Any = connections[make_database()]
    ask(wrapper)
    mine = kit.session(wrapper.connection)

    def child() -> None:
        # As Celery does in its children, before it has Django close the connection.
        number = wrapper.connection.fileno()
        reader, writer = os.pipe()
        os.dup2(writer, number)
        wrapper.close()
        ask(wrapper)
        os.write(number, b"x")
        assert os.read(reader, 1) == b"x"
        assert kit.session(wrapper.connection) != mine

    assert in_child(child) == 0
    ask(wrapper)
    assert kit.session(wrapper.connection) == mine


def test_a_fork_while_another_thread_connects_leaves_no_lock_behind(
    make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper: Any = connections[make_database()]
    ask(wrapper)
    inside, over = threading.Event(), threading.Event()
    make = sources._make

    def slow(*args: Any) -> Any:
        if threading.current_thread() is thread:
            inside.set()
            over.wait(10)
        return make(*args)

    monkeypatch.setattr(sources, "_make", slow)
    other = make_database(options={"connect_timeout": "7"})

    def connect() -> None:
        connections[other].connect()
        connections[other].close()

    thread = threading.Thread(target=connect)
    thread.start()
    assert inside.wait(10)
    try:
        assert in_child(lambda: ask(wrapper)) == 0
    finally:
        over.set()
        thread.join()

"""The hosts whose databases take part: RDS endpoints and their aliases, and in tests those that the settings name."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.db import connections
from django.test.utils import setup_test_environment, teardown_test_environment

from bgpool.core.engine import Engine
from bgpool.integrations.django import sources
from bgpool.integrations.django.under_test import IN_TESTS
from bgpool.pools.participant import NonParticipant
from tests.django.conftest import ENGINES
from tests.engines import Kit

ENDPOINT = "ledger.c0abc0000000.us-east-1.rds.amazonaws.com"


@pytest.fixture
def aliases(tmp_path: Path) -> str:
    """A resolver that knows one alias of the endpoint, and a host that is none."""
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.9 {ENDPOINT} ledger.example.org\n127.0.0.8 db.example.org\n")
    return f"hosts:{hosts}"


class Wrappers:
    """Makes wrappers, each with an alias of its own, that connect to nothing."""

    def __init__(self, engine: Engine, scratch: Path) -> None:
        """Of *engine*, with *scratch* for run directories."""
        self._engine = engine
        self._scratch = scratch
        self.made: list[Any] = []

    def takes_part(self, host: str, /, *, mark: bool = False, **options: str) -> bool:
        """Return whether a database on *host* would take part; *mark* if it is a test database."""
        own = {"bg_id": "hosts", "bg_run_dir": str(self._scratch), **options}
        database = {"ENGINE": ENGINES[self._engine], "HOST": host, "NAME": "app", "USER": "app", "OPTIONS": own}
        settings = connections.configure_settings({"default": database})["default"]
        alias = f"{self._scratch.name}{len(self.made)}"
        connections.settings[alias] = settings
        wrapper: Any = connections[alias]
        self.made.append(wrapper)
        if mark:
            settings["BGPOOL_TEST_DATABASE"] = True
        source = wrapper.bgpool_find(wrapper.get_connection_params())
        return not isinstance(source.connections.participant, NonParticipant)


@pytest.fixture
def wrappers(kit: Kit, tmp_path: Path) -> Iterator[Wrappers]:
    """See there."""
    made = Wrappers(kit.engine, tmp_path)
    yield made
    for wrapper in made.made:
        del connections[wrapper.alias]
        del connections.settings[wrapper.alias]


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1", "::1", "db", "/var/run/postgresql", "db.example.org"])
def test_a_host_that_is_no_endpoint_does_not(wrappers: Wrappers, aliases: str, host: str) -> None:
    assert not wrappers.takes_part(host, bg_resolver=aliases)


@pytest.mark.parametrize("host", [ENDPOINT, "ledger.example.org"])
def test_an_endpoint_or_what_stands_for_one_does(wrappers: Wrappers, aliases: str, host: str) -> None:
    assert wrappers.takes_part(host, bg_resolver=aliases)


def test_so_does_an_endpoint_that_the_options_name(wrappers: Wrappers) -> None:
    assert wrappers.takes_part("", host=ENDPOINT)


@pytest.mark.parametrize("way", ["PGHOST", "PGSERVICE"])
def test_an_endpoint_from_libpqs_environment_takes_part(
    kit: Kit, wrappers: Wrappers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if kit.engine is not Engine.POSTGRESQL:
        pytest.skip("PyMySQL reads no such variables")
    services = tmp_path / "services"
    services.write_text(f"[ledger]\nhost={ENDPOINT}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv(way, {"PGHOST": ENDPOINT, "PGSERVICE": "ledger"}[way])
    assert wrappers.takes_part("")


def test_so_does_what_is_said_to_stand_for_one(wrappers: Wrappers) -> None:
    assert wrappers.takes_part("127.0.0.1", endpoint=ENDPOINT)


def test_a_name_that_cannot_be_followed_does_until_it_can(
    wrappers: Wrappers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In production the name may stand for the endpoint."""
    monkeypatch.setattr("bgpool.integrations.django.sources.ALIAS_RETRY_S", 0)
    later = tmp_path / "later"
    assert wrappers.takes_part("db.example.org", bg_resolver=f"hosts:{later}")
    later.write_text("127.0.0.8 db.example.org\n")
    assert not wrappers.takes_part("db.example.org", bg_resolver=f"hosts:{later}")


def test_who_asks_while_a_host_is_looked_at_for_the_first_time_hears_what_that_finds(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one that is no endpoint would have a monitor, where two threads of a new process come first."""
    host = f"{kit.name}.first.example.org"
    asked, found = threading.Event(), threading.Event()

    def look(*_: object) -> None:
        assert not asked.is_set()
        asked.set()
        assert found.wait(10)

    monkeypatch.setattr(sources, "real_endpoint", look)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(sources._is_rds, host, {})
        assert asked.wait(10)
        second = threads.submit(sources._is_rds, host, {})
        with pytest.raises(NotYet):
            second.result(0.2)
        found.set()
        assert (first.result(10), second.result(10)) == (False, False)


@pytest.mark.slow
def test_connections_do_not_each_wait_for_a_dns_that_does_not_answer(wrappers: Wrappers) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        resolver = f"dns://127.0.0.1:{silent.getsockname()[1]}"
        assert wrappers.takes_part("db.example.org", bg_resolver=resolver)
        while _receive(silent):
            pass
        for _ in range(3):
            assert wrappers.takes_part("db.example.org", bg_resolver=resolver)
        assert not _receive(silent)


def _receive(silent: socket.socket) -> bytes:
    """A question that was sent to *silent*; empty if there is none."""
    try:
        return silent.recv(512)
    except BlockingIOError:
        return b""


def test_nor_can_one_be_followed_without_dnspython(wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dns", "dns.resolver", "dns.exception"):
        monkeypatch.setitem(sys.modules, module, None)
    assert wrappers.takes_part("db.example.org")
    assert not wrappers.takes_part("db")


@pytest.mark.parametrize("host", [ENDPOINT, "127.0.0.1"])
def test_a_test_database_does_only_where_it_is_asked_for(
    wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    assert not wrappers.takes_part(host, mark=True)
    monkeypatch.setenv(IN_TESTS, "1")
    assert wrappers.takes_part(host, mark=True)
    monkeypatch.setenv(IN_TESTS, "0")
    assert not wrappers.takes_part(host, mark=True)


def test_that_is_asked_for_test_databases_alone(wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_TESTS, "1")
    assert not wrappers.takes_part("127.0.0.1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["manage.py", "test"],
        ["./manage", "test", "shop"],
        ["/usr/bin/django-admin", "testserver", "items.json"],
        ["/site-packages/django/__main__.py", "test"],
    ],
)
def test_commands_that_make_test_databases_have_none_take_part(
    wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Before they have made them, while applications are loaded."""
    monkeypatch.setattr(sys, "argv", ["manage.py", "runserver"])
    assert wrappers.takes_part(ENDPOINT)
    monkeypatch.setattr(sys, "argv", arguments)
    assert not wrappers.takes_part(ENDPOINT)


def test_the_command_of_another_program_that_is_called_test_is_none_of_those(
    wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/app/worker/__main__.py", "test"])
    assert wrappers.takes_part(ENDPOINT)


def test_nor_has_pytest_django(wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest_django", sys)
    assert not wrappers.takes_part(ENDPOINT)


def test_an_application_that_keeps_its_mail_in_memory_is_no_test_run(
    wrappers: Wrappers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A staging site may do so too: it has the mailbox of test runs."""
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    assert wrappers.takes_part(ENDPOINT)


def test_databases_take_no_part_between_setup_and_teardown_of_a_test_environment(wrappers: Wrappers) -> None:
    setup_test_environment()
    try:
        assert not wrappers.takes_part(ENDPOINT)
    finally:
        teardown_test_environment()
    assert wrappers.takes_part(ENDPOINT)

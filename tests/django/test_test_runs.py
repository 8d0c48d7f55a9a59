"""``manage.py test`` of a small site: no monitor, nothing left behind, and no query to the production database.

The site queries its database while it is loaded, before there is a test database: Django's own pools would then
connect to the former for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.lab.waiting import wait_until
from tests.django.conftest import ENGINES
from tests.docs.pages import PAGES, blocks
from tests.engines import Kit
from tests.servers.harness import free_port

pytestmark = [pytest.mark.lab]

SITE: Final = Path(__file__).parent / "site"
REPOSITORY: Final = SITE.parents[2]
ROLE: Final = "shop"
TIMEOUT_S: Final = 100.0


class Heard(ABC):
    """The statements that the server received from the site's user, in order, each with its database.

    A connection counts as a statement.
    """

    def __init__(self, pair: Pair) -> None:
        """On *pair*'s blue."""
        self.blue: Final = pair.blue

    @abstractmethod
    def prepare(self) -> None:
        """Make the user and the databases, and write down what is asked from now on."""

    @abstractmethod
    def all(self) -> list[tuple[str, str]]:
        """All of it."""

    @abstractmethod
    def forget(self) -> None:
        """Remove what was made."""


class _Postgres(Heard):
    def prepare(self) -> None:
        self.blue.execute(f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD 'secret'")
        for name in ("production", "second"):
            self.blue.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        self.blue.execute(f"ALTER ROLE {ROLE} SET log_statement = 'all'")
        self._log_connections("on")
        self._begin = self.blue.log_file.stat().st_size

    def all(self) -> list[tuple[str, str]]:
        with self.blue.log_file.open("rb") as log:
            log.seek(self._begin)
            text = log.read().decode()
        line = rf"^\S+ \S+ \S+ \[\d+\] {ROLE}@(\S+) .*LOG:  ((?:connection authorized|statement|execute).*)$"
        return re.findall(line, text, re.MULTILINE)

    def forget(self) -> None:
        self._log_connections("off")
        for name in ("production", "second", "test_production", "test_second"):
            self.blue.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.blue.execute(f"DROP ROLE {ROLE}")

    def _log_connections(self, value: str) -> None:
        self.blue.execute(f"ALTER SYSTEM SET log_connections = {value}")
        self.blue.execute("SELECT pg_reload_conf()")


class _Mysql(Heard):
    def prepare(self) -> None:
        self.blue.execute(f"CREATE USER {ROLE} IDENTIFIED BY 'secret'")
        self.blue.execute(f"GRANT ALL ON *.* TO {ROLE}")
        for name in ("production", "second"):
            self.blue.execute(f"CREATE DATABASE {name}")
        self.blue.execute("SET GLOBAL log_output = 'TABLE'")
        self.blue.execute("TRUNCATE mysql.general_log")
        self.blue.execute("SET GLOBAL general_log = ON")

    def all(self) -> list[tuple[str, str]]:
        sql = "SELECT thread_id, command_type, argument, user_host FROM mysql.general_log ORDER BY event_time"
        database: dict[int, str] = {}
        asked = []
        for thread, command, argument, who in self.blue.execute(sql):
            text = argument.decode() if isinstance(argument, bytes) else str(argument)
            if command == "Connect" and text.startswith(f"{ROLE}@"):
                found = re.search(r" on (\S*) using", text)
                database[thread] = found[1] if found else ""
            elif command == "Init DB" and thread in database:
                database[thread] = text
            if thread in database and command != "Quit" and ROLE in str(who):
                asked.append((database[thread], f"{command}: {text}"))
        return asked

    def forget(self) -> None:
        self.blue.execute("SET GLOBAL general_log = OFF")
        self.blue.execute("SET GLOBAL log_output = 'FILE'")
        for name in ("production", "second", "test_production", "test_second"):
            self.blue.execute(f"DROP DATABASE IF EXISTS {name}")
        self.blue.execute(f"DROP USER {ROLE}")


class Site:
    """The site, with its databases on a server.

    Attributes:
        heard: The statements that the server received.
        run_dir: The run directory for a monitor.
        by_address: True if HOST is the server's address, for programs that cannot resolve the lab's names.
    """

    def __init__(self, pair: Pair, engine: Engine, scratch: Path) -> None:
        """On *pair*, with *scratch* for what is written."""
        self.heard: Final = (_Mysql if engine is Engine.MYSQL else _Postgres)(pair)
        self.run_dir: Final = scratch / "run"
        self.by_address = False
        self._pair: Final = pair
        self._engine: Final = engine
        self._scratch: Final = scratch
        self._heard_before = 0

    def test(
        self,
        *arguments: str,
        label: str = "tests.django.site",
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> str:
        """Run the tests of *label*, with *arguments* of ``manage.py test`` and *options* of the databases.

        Returns what that printed.
        """
        command = [sys.executable, str(SITE / "manage.py"), "test", "--noinput", *arguments, label]
        self._heard_before = len(self.heard.all())
        env = self._environment(options) | (environment or {})
        done = subprocess.run(
            command, cwd=self._scratch, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def serve(self, *fixtures: str) -> None:
        """Start ``manage.py testserver``, ask it once, and end it as Ctrl-C does."""
        port = free_port()
        command = [
            sys.executable,
            str(SITE / "manage.py"),
            "testserver",
            "--noinput",
            "--addrport",
            str(port),
            *fixtures,
        ]
        with subprocess.Popen(
            command, cwd=self._scratch, env=self._environment({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_until(lambda: _get(port) == "2", timeout_s=60, what="the first answer")
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(20)

    def assert_nothing_is_left(self) -> None:
        """Neither a process that was started, nor a session, nor what a monitor writes."""
        assert not self.run_dir.exists() or not list(self.run_dir.iterdir())
        assert self._processes() == []
        blue = self._pair.blue
        # The servers may not have seen the ends of all connections.
        wait_until(lambda: self._pair.monitoring_connections() == 0, timeout_s=30, what="the end of all monitoring")
        wait_until(lambda: blue.sessions_of(ROLE, but="-") == 0, timeout_s=10, what="the end of all sessions")

    def assert_production_was_left_alone(self) -> None:
        """In the last run, once a test database was made, or asked."""
        asked = self.heard.all()[self._heard_before :]
        production = {"production", "second"}
        begin = next(number for number, (database, _) in enumerate(asked) if database not in production)
        assert begin > 0, "the site has not asked its database while it was loaded"
        assert [one for one in asked[begin:] if one[0] in production] == []

    def _environment(self, options: dict[str, Any]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "BGPOOL_"))}
        return inherited | {
            "SITE_DATABASES": json.dumps(self._databases(options)),
            "BGPOOL_RUN_DIR": str(self.run_dir),
            "BGPOOL_RESOLVER": self._pair.resolver,
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(self._scratch))),
        }

    def _databases(self, options: dict[str, Any]) -> dict[str, Any]:
        host = self._pair.names.blue.primary
        if self.by_address:
            host, options = self._pair.blue.address, {**options, "endpoint": host}
        database = {
            "ENGINE": ENGINES[self._engine],
            "HOST": host,
            "PORT": str(self._pair.port),
            "USER": ROLE,
            "PASSWORD": "secret",
            "CONN_MAX_AGE": 0 if options.get("pool") else None,
            "OPTIONS": {"bg_id": "site", **options},
        }
        return {
            "default": {**database, "NAME": "production"},
            "second": {**database, "NAME": "second"},
            "replica": {**database, "NAME": "production", "TEST": {"MIRROR": "default"}},
        }

    def _processes(self) -> list[int]:
        """Return the running processes that the tests started; they have inherited the environment."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            if str(self.run_dir).encode() in environment:
                found.append(int(process.name))
        return found


def _get(port: int) -> str:
    """Return the response of the site's view; empty if there is none."""
    with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/count", timeout=5) as response:
        return str(response.read().decode())
    return ""


@pytest.fixture
def site(kit: Kit, pair: Pair, tmp_path: Path) -> Iterator[Site]:
    """The site on the engine's servers."""
    made = Site(pair, kit.engine, tmp_path)
    made.heard.prepare()
    yield made
    made.heard.forget()


POOLED: Final = pytest.mark.parametrize("options", [{}, {"pool": True}], ids=["kept", "pool"])


@POOLED
def test_a_test_run_leaves_nothing_and_asks_only_its_databases(site: Site, options: dict[str, Any]) -> None:
    assert "OK" in site.test(**options)
    site.assert_nothing_is_left()
    site.assert_production_was_left_alone()


@pytest.mark.full
@POOLED
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_parallel_tests(kit: Kit, site: Site, start: str, options: dict[str, Any]) -> None:
    if kit.engine is Engine.MYSQL and shutil.which("mysqldump") is None:
        pytest.skip("Django copies test databases with mysqldump")
    site.by_address = kit.engine is Engine.MYSQL
    told = site.test("--parallel", "2", environment={"SITE_START": start}, **options)
    assert "OK" in told
    site.assert_nothing_is_left()
    site.assert_production_was_left_alone()


@pytest.mark.full
@POOLED
def test_a_kept_test_database_is_used_again(site: Site, options: dict[str, Any]) -> None:
    """But for tests that leave tables empty, which Django cannot fill again then."""
    for _ in range(2):
        site.test("--keepdb", "-k", "InOneTransaction", **options)
        site.assert_nothing_is_left()
        site.assert_production_was_left_alone()


@pytest.mark.full
def test_testserver_is_a_test_run(site: Site) -> None:
    site.serve("items.json")
    site.assert_nothing_is_left()
    site.assert_production_was_left_alone()


def test_the_switchover_in_a_test_that_the_docs_propose(pair: Pair, site: Site, tmp_path: Path) -> None:
    """But for going back to blue in the end: the lab's green takes no writes here."""
    (text,) = [block.text for page in PAGES for block in blocks(page) if block.title == "shop/test_switchover.py"]
    for documented, here in {
        'bg_id="ledger"': f'bg_id="site", bg_resolver="{pair.resolver}"',
        "127.0.0.1": pair.names.blue.primary,
        "127.0.0.2": pair.names.green.primary,
        "deployment.release()": "deployment.roll_back()",
        "from shop.models import Order": "from tests.django.site.shop.models import Item as Order",
        "item=": "name=",
    }.items():
        text = text.replace(documented, here)
    (tmp_path / "test_switchover.py").write_text(text, encoding="utf-8")
    told = site.test(label="test_switchover")
    assert re.search(r"Ran 1 test .*\n\nOK\n", told), told
    site.assert_nothing_is_left()
    site.assert_production_was_left_alone()

"""System checks and management commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import django
import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.backends.mysql.features import DatabaseFeatures as MysqlFeatures
from django.db.backends.postgresql.features import DatabaseFeatures as PostgresFeatures
from typer.testing import CliRunner

from bgpool import testing
from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.doctor import minimums
from bgpool.lab import Pair
from bgpool.segment.presence import workers
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
#: The number of tasks that programs.sessions sends.
TASKS = 4
WORKER = (
    "-A", "tests.django.programs.sessions:celery", "worker", "-P", "prefork", "-c", "1", "-Q", "queue", "-l", "WARNING",
    "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", "sessions@127.0.0.1",
)  # fmt: skip


def found(*, deploy: bool = False) -> dict[str, list[checks.CheckMessage]]:
    """Return the messages of the checks, by id."""
    said: dict[str, list[checks.CheckMessage]] = {}
    for message in checks.run_checks(include_deployment_checks=deploy):
        if (message.id or "").startswith("bgpool."):
            said.setdefault(str(message.id), []).append(message)
    return said


def command(name: str, *arguments: str) -> tuple[int, str]:
    """The exit status and the standard output of a management command."""
    output = io.StringIO()
    try:
        call_command(name, *arguments, stdout=output)
    except SystemExit as ended:
        return int(ended.code or 0), output.getvalue()
    return 0, output.getvalue()


def password(_host: str, _port: int, _user: str) -> str:
    """Return a password, like a callable in a settings file."""
    return os.environ["TESTS_PASSWORD"]


@pytest.fixture
def only(make_database: Callable[..., str]) -> Iterator[Callable[..., str]]:
    """The same as make_database, with no other database in Django's settings."""
    hidden = {alias: connections.settings.pop(alias) for alias in list(connections)}
    yield make_database
    connections.settings.update(hidden)


@pytest.fixture
def without_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Celery look as if it had not been imported."""
    monkeypatch.delitem(sys.modules, "celery", raising=False)


@pytest.mark.usefixtures("without_celery")
class TestChecks:
    def test_good_settings_pass(self, only: Callable[..., str]) -> None:
        only()
        only({"pool": True}, CONN_MAX_AGE=0)
        assert found() == {}

    def test_e001_settings_that_are_refused(self, only: Callable[..., str]) -> None:
        alias = only({"bg_drain_timeout_ms": "soon"}, PASSWORD="of nobody's business")
        (error,) = found()["bgpool.E001"]
        assert isinstance(error, checks.Error)
        assert error.msg.startswith(f"DATABASES[{alias!r}]: bg_drain_timeout_ms='soon'")
        assert "business" not in str(error)

    def test_e001_settings_that_django_itself_cannot_use(self, only: Callable[..., str], kit: Kit) -> None:
        """For example if an environment variable is not set; Django's own engines fail at the first connection."""
        given: dict[Engine, dict[str, Any]] = {
            Engine.POSTGRESQL: {"TIME_ZONE": "Nowhere"},
            Engine.MYSQL: {"HOST": None},
        }
        alias = only(**given[kit.engine])
        (error,) = found(deploy=True)["bgpool.E001"]
        assert error.msg.startswith(f"DATABASES[{alias!r}]: these settings cannot be used: ")

    def test_e002_an_engine_that_is_not_bgpools(self, only: Callable[..., str]) -> None:
        only(ENGINE="django.db.backends.sqlite3")
        (error,) = found()["bgpool.E002"]
        assert "django.db.backends.sqlite3 is not bgpool's" in error.msg

    def test_e002_an_engine_that_cannot_be_loaded(self, only: Callable[..., str]) -> None:
        only(ENGINE="bgpool.integrations.django.postgres")
        (error,) = found()["bgpool.E002"]
        assert "django.postgres cannot be loaded: 'bgpool.integrations.django.postgres' isn't an available" in error.msg

    def test_an_engine_of_another_database_that_cannot_be_loaded_is_djangos_to_report(
        self, only: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One of Django's own raises what the import of its driver has raised."""
        for driver in ("oracledb", "cx_Oracle"):
            monkeypatch.setitem(sys.modules, driver, None)
        only()
        only(ENGINE="django.db.backends.oracle", OPTIONS={})
        assert found() == {}

    def test_w001_a_pool_under_celery(self, only: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        only({"pool": True}, CONN_MAX_AGE=0)
        monkeypatch.setitem(sys.modules, "celery", ModuleType("celery"))
        assert [*found()] == ["bgpool.W001"]

    def test_w002_options_without_bg_id(self, only: Callable[..., str]) -> None:
        only({"bg_id": None, "bg_connect_timeout_ms": "100"})
        (warning,) = found()["bgpool.W002"]
        assert "bg_connect_timeout_ms" in warning.msg

    def test_w003_one_host_with_two_bg_ids(self, only: Callable[..., str]) -> None:
        first, second = only({"bg_id": "a"}), only({"bg_id": "b"})
        (warning,) = found()["bgpool.W003"]
        assert f"'a' in DATABASES[{first!r}], 'b' in DATABASES[{second!r}]" in warning.msg

    def test_w004_what_the_doctor_says_of_the_settings(self, only: Callable[..., str]) -> None:
        only({"bg_connect_timeout_ms": "0"})
        assert "bgpool.W004" not in found()
        said = [message.msg for message in found(deploy=True)["bgpool.W004"]]
        assert any("every checkout during a switchover fails at once" in text for text in said)

    def test_without_the_application_they_run_with_the_databases(
        self, only: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alias = only({"bg_drain_timeout_ms": "soon"})
        validation: Any = connections[alias].validation
        assert validation.check() == [], "the application's own check tells it"
        monkeypatch.setattr("django.apps.apps.is_installed", lambda _name: False)
        assert [message.id for message in validation.check()] == ["bgpool.E001"]

    def test_a_test_run_has_them_as_well(self, only: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        only({"bg_drain_timeout_ms": "soon"})
        monkeypatch.setattr("sys.argv", ["manage.py", "test"])
        assert [*found()] == ["bgpool.E001"]


class TestStatus:
    def test_is_that_of_bgpool_status(self, only: Callable[..., str], deployment: Deployment) -> None:
        alias = only()
        connections[alias].ensure_connection()
        # The watch fills the process's row a moment later.
        wait_until(lambda: [row.usage.taking_part for row in workers(deployment._files)] == [1])
        status, output = command("bgpool_status", "--json")
        (told,) = json.loads(output)
        assert (status, told["bg_id"], told["run_dir"]) == (0, deployment.bg_id, str(deployment.run_dir))
        assert told["phase"] == "CREATED"
        assert [worker["taking_part"] for worker in told["workers"]] == [1]

    def test_json_of_several_deployments_is_one_list(
        self, only: Callable[..., str], deployment: Deployment, tmp_path: Path
    ) -> None:
        connections[only()].ensure_connection()
        with testing.deployment(tmp_path / "another", bg_id="another") as another:
            only({"bg_id": another.bg_id, "bg_run_dir": str(another.run_dir)})
            status, output = command("bgpool_status", "--json")
        assert status == 0
        assert [told["bg_id"] for told in json.loads(output)] == [deployment.bg_id, another.bg_id]

    def test_ready_is_an_exit_status(self, only: Callable[..., str], tmp_path: Path) -> None:
        only({"bg_run_dir": str(tmp_path / "nobody")})
        status, output = command("bgpool_status", "--ready")
        assert status == 1
        assert "is not ready" in output
        assert "" not in output.splitlines(), "one line for each thing that is said"

    def test_without_a_database_of_bgpools(self, only: Callable[..., str]) -> None:
        only({"bg_id": None})
        with pytest.raises(CommandError, match="does not use bgpool; add"):
            command("bgpool_status")

    def test_names_the_databases_that_there_are(self, only: Callable[..., str]) -> None:
        alias = only()
        with pytest.raises(CommandError, match=f"those with one are '{alias}'"):
            command("bgpool_status", "--database", "other")


class TestDoctor:
    def test_is_that_of_bgpool_doctor(
        self, only: Callable[..., str], pair: Pair, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        only()
        status, output = command("bgpool_doctor", "--json")
        monkeypatch.setenv("BGPOOL_RESOLVER", pair.resolver)
        monkeypatch.setenv("BGPOOL_RUN_DIR", str(deployment.run_dir))
        asked = CliRunner().invoke(app, ["doctor", "--json", "--bg-id", deployment.bg_id, pair.dsn])
        mine, theirs = json.loads(output), json.loads(asked.stdout)
        assert status == asked.exit_code
        assert (mine["bg_id"], mine["endpoint"]) == (theirs["bg_id"], theirs["endpoint"])

        def results(told: Any) -> dict[str, str]:
            return {f"{item['where']}, {item['check']}": item["result"] for item in told["findings"]}

        assert results(mine) == results(theirs)
        assert pair.app_password not in output

    def test_a_password_callable_is_asked(
        self, only: Callable[..., str], pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TESTS_PASSWORD", pair.app_password)
        only(PASSWORD=password)
        _, output = command("bgpool_doctor", "--json")
        told = {(item["where"], item["check"]): item["result"] for item in json.loads(output)["findings"]}
        assert told["blue", "login"] == "ok"

    def test_a_database_is_a_line_of_json(self, only: Callable[..., str]) -> None:
        first, second = only(), only()
        _, output = command("bgpool_doctor", "--json")
        assert len([json.loads(line) for line in output.splitlines()]) == 2
        for alias in (first, second):
            assert f"DATABASES[{alias!r}]\n" in command("bgpool_doctor")[1]

    def test_the_size_of_a_pool_is_that_of_the_settings(self, only: Callable[..., str]) -> None:
        only({"pool": {"min_size": 1, "max_size": 6}})
        told = json.loads(command("bgpool_doctor", "--json", "--workers", "2")[1])["findings"]
        rooms = [item["finding"] for item in told if (item["where"], item["check"]) == ("blue", "connections")]
        assert rooms[0].startswith("2 processes x max_size 6 + 2 for the monitor = 14 of ")
        told = json.loads(command("bgpool_doctor", "--json", "--workers", "2", "--max-size", "3")[1])["findings"]
        assert "2 processes x max_size 3" in json.dumps(told)

    def test_it_knows_what_django_demands_of_a_server(self) -> None:
        mine = minimums._DJANGO[django.VERSION[:2]]
        assert mine["PostgreSQL"] == PostgresFeatures.minimum_database_version
        for product in ("MariaDB", "MySQL"):
            features = SimpleNamespace(connection=SimpleNamespace(mysql_is_mariadb=product == "MariaDB"))
            demanded: Any = vars(MysqlFeatures)["minimum_database_version"]
            assert mine[product] == demanded.func(features)

    def test_a_server_that_django_refuses_fails(
        self, only: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        only()
        demanding = dict.fromkeys(("PostgreSQL", "MariaDB", "MySQL"), (99,))
        monkeypatch.setattr(minimums, "_DJANGO", {django.VERSION[:2]: demanding})
        told = {item["check"]: item for item in json.loads(command("bgpool_doctor", "--json")[1])["findings"]}
        assert told["django"]["result"] == "failed", "where Django is known to use the database"
        assert "it refuses every connection to blue (NotSupportedError)" in told["django"]["finding"]

    def test_settings_that_cannot_be_used(self, only: Callable[..., str]) -> None:
        only({"bg_drain_timeout_ms": "soon"})
        with pytest.raises(CommandError, match="bg_drain_timeout_ms='soon'"):
            command("bgpool_doctor")


@pytest.mark.parametrize("name", ["bgpool_status", "bgpool_doctor"])
def test_a_command_says_what_django_cannot_use_in_the_settings(only: Callable[..., str], kit: Kit, name: str) -> None:
    given: dict[Engine, dict[str, Any]] = {Engine.POSTGRESQL: {"NAME": 17}, Engine.MYSQL: {"PORT": "none"}}
    only(**given[kit.engine])
    with pytest.raises(CommandError, match="these settings cannot be used: ") as error:
        command(name)
    assert error.value.returncode == 2


@pytest.mark.parametrize("name", ["bgpool_status", "bgpool_doctor"])
def test_a_command_says_what_django_refuses_in_the_settings(only: Callable[..., str], kit: Kit, name: str) -> None:
    # Both of them are refused before bgpool receives the settings.
    refusals: dict[Engine, tuple[dict[str, Any], str]] = {
        Engine.POSTGRESQL: ({"NAME": "n" * 100}, "longer than"),
        Engine.MYSQL: ({"OPTIONS": {"bg_id": "a", "isolation_level": "loose"}}, "Invalid transaction isolation level"),
    }
    settings, text = refusals[kit.engine]
    only(**settings)
    with pytest.raises(CommandError, match=text) as error:
        command(name)
    assert error.value.returncode == 2


def test_the_commands_are_found_with_the_application_installed() -> None:
    code = (
        "import django; from django.conf import settings; "
        "settings.configure(INSTALLED_APPS=['bgpool.integrations.django']); django.setup(); "
        "from django.core.management import get_commands; print(get_commands()['bgpool_status'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "bgpool.integrations.django"


@pytest.fixture
def environment(pair: Pair, deployment: Deployment, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of the example project, with *options* in its URL and more lines of *settings*."""

    def make(options: str = "", settings: str = "") -> dict[str, str]:
        (tmp_path / "own_settings.py").write_text(f"from shop.settings import *\n{settings}\n", encoding="ascii")
        return {
            **os.environ,
            "BGPOOL_RESOLVER": pair.resolver,
            "BGPOOL_RUN_DIR": str(deployment.run_dir),
            "DATABASE_URL": f"{pair.dsn}{'&' if '?' in pair.dsn else '?'}bg_id={deployment.bg_id}{options}",
            "DJANGO_SETTINGS_MODULE": "own_settings",
            "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT / "docs/examples/django"), str(ROOT))),
        }

    return make


POOLED = "DATABASES['default']['CONN_MAX_AGE'] = 0"


class TestManage:
    """The checks by ``manage.py check`` of the example project."""

    @staticmethod
    def check(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "django", "check", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def test_a_pool_in_a_project_with_a_celery_application(self, environment: Callable[..., dict[str, str]]) -> None:
        done = self.check(environment("&pool=true", POOLED), "--fail-level", "WARNING")
        assert done.returncode == 1
        assert "(bgpool.W001)" in done.stderr

    def test_one_database_without_the_application(self, environment: Callable[..., dict[str, str]]) -> None:
        given = environment("&bg_drain_timeout_ms=soon", "INSTALLED_APPS = ['ledger']")
        done = self.check(given, "--tag", "database", "--database", "default")
        assert done.returncode == 1
        assert "(bgpool.E001)" in done.stderr


@pytest.fixture
def sessions(environment: Callable[..., dict[str, str]], tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the tasks of programs.sessions on a prefork worker with one child; returns the connection of each."""

    def run(options: str = "", settings: str = "") -> list[str]:
        told, broker, log = tmp_path / "sessions", tmp_path / "broker", tmp_path / "log"
        broker.mkdir()
        own = {**environment(options, settings), "APP_BROKER": str(broker), "APP_SESSIONS": str(told)}
        send = "from tests.django.programs import sessions; sessions.send()"
        subprocess.run([sys.executable, "-c", send], env=own, check=True, timeout=60)
        command = [sys.executable, "-m", "celery", *WORKER]
        with log.open("w") as output, subprocess.Popen(command, env=own, stdout=output, stderr=output) as worker:
            try:
                deadline = time.monotonic() + 60
                while not told.exists() or len(told.read_text().split()) < TASKS:
                    assert worker.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
            finally:
                worker.terminate()
                try:
                    worker.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    worker.kill()
        return told.read_text().split()

    return run


@pytest.mark.slow
@pytest.mark.full
class TestPreforkWorker:
    """The behaviour of Celery that the check W001 and the documentation describe."""

    def test_closes_a_pool_at_each_task(self, sessions: Callable[..., list[str]]) -> None:
        assert len(set(sessions("&pool=true", POOLED))) == TASKS

    def test_closes_a_kept_connection_at_each_task(self, sessions: Callable[..., list[str]]) -> None:
        assert len(set(sessions())) == TASKS

    def test_keeps_a_connection_with_db_reuse_max(self, sessions: Callable[..., list[str]]) -> None:
        assert len(set(sessions(settings="CELERY_DB_REUSE_MAX = 100"))) == 1


def test_the_examples_tables_can_be_made_on_each_engine(kit: Kit, pair: Pair) -> None:
    """``bgpool rehearse --sql`` takes the same file with and without ``--engine mysql``."""
    statement = (ROOT / "docs/examples/django/schema.sql").read_text().replace("TABLE ledger", "TABLE example_ledger")
    with kit.connect(pair) as connection:
        kit.execute(connection, statement)
        kit.execute(connection, "INSERT INTO example_ledger (worker, thread, n) VALUES (1, 1, 1)")
        assert kit.execute(connection, "SELECT seq FROM example_ledger") == [(1,)]
        kit.execute(connection, "DROP TABLE example_ledger")
        connection.commit()

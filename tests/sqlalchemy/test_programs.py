"""Programs of users (Flask-SQLAlchemy, Alembic, Celery's result backend), each set up as in its own documentation, with
one changed URL: started for real, and taken through one switchover together. No engine is disposed of at a fork.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import dataclass

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Event
from bgpool.lab.ledger import Key
from bgpool.lab.pair import DATABASE
from bgpool.lab.server import Server as DatabaseServer
from tests.servers.harness import Batch, Quota, Result, Script, Server, Stage, WebServer
from tests.sqlalchemy.migrations import Project, Ran
from tests.sqlalchemy.programs.common import ROWS, task_id, url

pytestmark = [pytest.mark.lab, pytest.mark.slow]

_GUNICORN = [
    "{bin}/gunicorn", "-b", "127.0.0.1:{port}", "-w", "2", "-k", "gthread", "--threads", "4", "--preload",
    "--graceful-timeout", "5",
]  # fmt: skip
FLASK = [*_GUNICORN, "tests.sqlalchemy.programs.flask_app:app"]
WORKER = [
    "{bin}/celery", "-A", "tests.sqlalchemy.programs.tasks:celery", "worker", "-c", "2", "-Q", "queue", "-l", "WARNING",
    "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", "w{number}@127.0.0.1",
]  # fmt: skip
SEND = "from tests.sqlalchemy.programs import tasks; tasks.send({number})"
CLIENT = ["{bin}/python", "-c", "from tests.sqlalchemy.programs import tasks; tasks.wait_for_results()"]

_APP = "tests.sqlalchemy.programs.core_app:wsgi"
_UWSGI = [
    "{bin}/uwsgi", "--http-socket", "127.0.0.1:{port}", "--master", "--die-on-term", "--processes", "2", "--need-app",
    "--disable-logging", "--enable-threads", "--module", _APP,
]  # fmt: skip
#: Servers of an application that has used its engine before they fork.
COMMANDS = {
    "gunicorn": [*_GUNICORN, _APP],
    "gunicorn, gevent": ["{bin}/gunicorn", "-b", "127.0.0.1:{port}", "-w", "2", "-k", "gevent", "--preload", _APP],
    "uwsgi": [*_UWSGI, "--py-call-uwsgi-fork-hooks"],
    "uwsgi, lazy": [*_UWSGI, "--lazy-apps"],
}

#: The number of the server's threads. Every other client requests ``/run``, the others ``/plain``.
CLIENTS = 8


class Views(WebServer):
    """An application with the two views."""

    def path_of(self, key: Key) -> str:
        """One of the views."""
        return "/run" if self.is_run(key) else "/plain"

    @staticmethod
    def is_run(key: Key) -> bool:
        """Return whether a row is written in a unit of work."""
        return key[1] % 2 == 1


class ResultClient(Script):
    """A client that waits for the results of a worker's tasks."""

    @property
    def seen(self) -> int:
        """Return the number of results received."""
        path = self.notes / "seen"
        return int(path.read_text() or "0") if path.exists() else 0

    def _is_serving(self) -> bool:
        return self.seen > 0


class Migrations:
    """An Alembic project that runs next to the servers.

    Attributes:
        before, during, after: Completed commands.
    """

    def __init__(self, stage: Stage) -> None:
        """Make it, and migrate for the first time."""
        self._project = project = Project(stage.directory / "project", url(stage.environment), stage.environment)
        self.before = project.alembic(
            "revision --autogenerate -m customers --rev-id 1",
            "upgrade head",
        )
        self.during: list[Ran] = []
        self.after: Ran
        project.add_revision("2", after="1", table="added_during")

    def on_event(self, event: Event) -> None:
        """Begin to migrate when the switchover is in progress: before Alembic asks for a connection, blue is shut."""
        if event.name == "in_progress":
            command = self._project.begin("upgrade head")
            self._waiting = threading.Thread(target=lambda: self.during.append(self._project.end(command)))
            self._waiting.start()

    def finish(self) -> None:
        """Wait for that, and migrate after the switchover."""
        self._waiting.join()
        self._project.add_revision("3", after="2", table="added_after")
        self.after = self._project.alembic("upgrade head", "check", "upgrade head --sql")


@dataclass
class Outcome:
    """The outcome of the switchover, and the contents of the database afterwards.

    Attributes:
        result: The result of the servers.
        seen: The numbers of results that the waiting client had received, at the release and at the end.
        tables, old_tables: The tables of green and of old blue.
        results, old_results: Celery's results on both: task, state.
    """

    result: Result
    seen: tuple[int, int]
    migrations: Migrations
    tables: set[str]
    old_tables: set[str]
    results: list[tuple[str, str]]
    old_results: list[tuple[str, str]]


def tables_of(server: DatabaseServer) -> set[str]:
    return {name for (name,) in server.execute("SELECT table_name FROM information_schema.tables", database=DATABASE)}


def results_of(server: DatabaseServer) -> list[tuple[str, str]]:
    rows = server.execute("SELECT task_id, status FROM celery_taskmeta", database=DATABASE)
    return [(str(task), str(status)) for task, status in rows]


#: The work of a server before the load ends: all of its processes take part, and enough Celery tasks are complete.
WEB_QUOTA, WORKER_QUOTA = Quota(rows=100, processes=2), Quota(rows=30 * ROWS, processes=2)


def switch_over(engine: Engine) -> Outcome:
    with Stage(engine) as stage:
        stage.serve("flask", FLASK, Views, quota=WEB_QUOTA)
        stage.serve("celery", WORKER, Batch, before=SEND, quota=WORKER_QUOTA)
        client = stage.serve("client", CLIENT, ResultClient)
        assert isinstance(client, ResultClient)
        migrations = Migrations(stage)
        seen: list[int] = []

        def note(event: Event) -> None:
            if event.name == "post":
                seen.append(client.seen)

        result = stage.switch_over(CLIENTS, on_event=[migrations.on_event, note])
        migrations.finish()
        return Outcome(
            result,
            (seen[0], client.seen),
            migrations,
            tables_of(stage.pair.green),
            tables_of(stage.pair.blue),
            results_of(stage.pair.green),
            results_of(stage.pair.blue),
        )


def assert_served(result: Result, name: str) -> None:
    """No unit of work fails, and of the plain requests at most those that the switchover met."""
    server = result.servers[name]
    failed = server.load.unknown
    assert not [key for key in failed if Views.is_run(key)], server.output
    assert len(failed) == len({client for _, client, _ in failed}), server.output
    assert server.quota.is_met(server.load), f"{server.quota}: {len(server.load.acknowledged)} by {server.load.pids}"
    assert result.excess_s(name) < 4.0
    assert server.exit_status == 0, f"{name} did not end in time: {server.output}"


def assert_quiet(server: Server) -> None:
    """The log of a healthy switchover tells of nothing but the requests that it interrupted, if any."""
    told = [line for line in server.output.splitlines() if re.search("ERROR|CRITICAL", line)]
    assert len(told) <= len(server.load.unknown), server.output
    assert all("/plain" in line for line in told), server.output
    assert told or "Traceback" not in server.output, server.output


def assert_carried_over(result: Result) -> None:
    """All rows arrived: nothing is lost, old blue has no clients, and there was one monitor."""
    assert result.verdict.clean, result.verdict
    assert result.strayed == 0
    assert result.connections == 2


@pytest.mark.parametrize(
    "outcome", [Engine.POSTGRESQL, pytest.param(Engine.MYSQL, marks=pytest.mark.full)], indirect=True, scope="module"
)
class TestTogether:
    @pytest.fixture(scope="module")
    @staticmethod
    def outcome(request: pytest.FixtureRequest) -> Outcome:
        return switch_over(request.param)

    def test_rows(self, outcome: Outcome) -> None:
        assert_carried_over(outcome.result)

    def test_flask(self, outcome: Outcome) -> None:
        assert_served(outcome.result, "flask")
        assert_quiet(outcome.result.servers["flask"])

    def test_celery_worker(self, outcome: Outcome) -> None:
        server = outcome.result.servers["celery"]
        assert server.load.errors == []
        assert server.quota.is_met(server.load), f"{len(server.load.acknowledged)} by {server.load.pids}"
        assert server.exit_status == 0, server.output
        # Celery tries to store a result once more, and warns of it with a traceback.
        assert not re.search("ERROR|CRITICAL", server.output), server.output

    def test_celery_results(self, outcome: Outcome) -> None:
        written = Counter(slot for _, slot, _ in outcome.result.servers["celery"].load.acknowledged)
        done = {(task_id(slot), "SUCCESS") for slot, rows in written.items() if rows == ROWS}
        assert len(done) > 20
        assert len(outcome.results) == len(set(outcome.results)), "each is kept once"
        assert done <= set(outcome.results)
        assert set(outcome.old_results) < done, "none is kept on old blue alone"

    def test_celery_client(self, outcome: Outcome) -> None:
        client = outcome.result.servers["client"]
        at_release, at_end = outcome.seen
        assert 0 < at_release < at_end
        assert client.exit_status == 0, client.output
        assert not re.search("ERROR|CRITICAL", client.output), client.output

    def test_migrations(self, outcome: Outcome) -> None:
        migrations = outcome.migrations
        (during,) = migrations.during
        for ran in (migrations.before, during, migrations.after):
            assert ran.status == 0, ran.output
            assert not re.search(r"Traceback|ERROR|WARN", ran.output), ran.output
        assert during.ended_s > outcome.result.writable_s, "it waited"
        assert {"customer", "added_during", "added_after"} <= outcome.tables
        assert "added_during" not in outcome.old_tables
        assert "No new upgrade operations detected" in migrations.after.output
        assert "CREATE TABLE added_during" in migrations.after.output, "what --sql prints"


class TestAlone:
    """An engine that is used without any framework, in servers that fork in other ways."""

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        with Stage() as stage:
            for name, command in COMMANDS.items():
                stage.serve(name, command, Views, quota=WEB_QUOTA)
            return stage.switch_over()

    @pytest.mark.full
    @pytest.mark.parametrize("name", COMMANDS)
    def test_goes_through(self, result: Result, name: str) -> None:
        assert_served(result, name)
        assert_quiet(result.servers[name])

    @pytest.mark.full
    def test_rows(self, result: Result) -> None:
        assert_carried_over(result)

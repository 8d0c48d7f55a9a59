"""``bgpool rehearse``: applications of several kinds, on real servers."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bgpool.cli import rehearse as show
from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab.errors import LabError
from bgpool.lab.rehearsal import (
    SCENARIOS,
    NotRehearsedError,
    Plan,
    Rehearsed,
    Requests,
    UnusablePlanError,
    rehearse,
)
from bgpool.lab.rehearsal.load import Load
from bgpool.lab.rehearsal.plan import check, environment
from bgpool.lab.rehearsal.processes import ApplicationProcesses, Process, ProcessHistory
from bgpool.lab.rehearsal.report import findings
from bgpool.report import Event
from bgpool.segment.table import Usage
from tests.cli.conftest import PROGRAM, Hand, StartWorker
from tests.docs.pages import ROOT, blocks
from tests.lab.majors import major_options
from tests.pools.callers import wait_until

lab = pytest.mark.lab
slow = pytest.mark.slow

GUNICORN, UVICORN = (str(Path(sys.executable).parent / name) for name in ("gunicorn", "uvicorn"))
UNUSED = "no caller used a pool during or after the switchover: the rehearsal shows nothing"
QUICK: dict[str, Any] = {"scale": 0.5, "warm_up_s": 0.5, "cool_down_s": 0.5}


@pytest.fixture
def port() -> int:
    """A port without a listener."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def temporary() -> Iterator[Path]:
    """For the lab's directories alone; the account that its servers run as can pass through."""
    with tempfile.TemporaryDirectory(prefix="bgpool-rehearse-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.sql"
    file.write_text("CREATE TABLE orders (item varchar(40));\nINSERT INTO orders VALUES ('100 % of it');\n")
    return file


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that a command starts can import bgpool and the tests' application."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))


def web(port: int) -> tuple[str, ...]:
    pytest.importorskip("gunicorn")
    bind = ("-b", f"127.0.0.1:{port}")
    return (GUNICORN, *bind, "-w", "2", "--threads", "2", "--graceful-timeout", "5", "tests.cli.rehearsed_app:wsgi")


def asynchronous(port: int) -> tuple[str, ...]:
    pytest.importorskip("uvicorn")
    return (UVICORN, "--port", str(port), "--workers", "2", "--no-access-log", "tests.cli.rehearsed_fastapi:app")


def rehearsed(plan: Plan, tmp_path: Path, **options: Any) -> Rehearsed:
    log = tmp_path / "output"
    with log.open("wb") as output:
        report = rehearse(plan, output=output, **options)
    assert report.went_through, (report, log.read_text())
    return report


def assert_nothing_is_left(directory: Path) -> None:
    """No process that was started with *directory* in its environment, and nothing in it but records."""
    assert users_of(directory) == []
    assert [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".json"] == []


def users_of(directory: Path) -> list[str]:
    """Processes, other than this one and its children by their own will, that have to do with *directory*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                about = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in about:
                found.append(os.fsdecode((entry / "cmdline").read_bytes()))
    return found


@lab
@slow
@pytest.mark.parametrize(
    ("server", "framework", "says"),
    [
        ("gunicorn", "flask", "Listening at"),
        pytest.param("uvicorn", "fastapi", "Uvicorn running on", marks=pytest.mark.full),
    ],
)
def test_the_rehearsal_that_the_docs_propose(
    server: str, framework: str, says: str, tmp_path: Path, temporary: Path, port: int, environment: dict[str, str]
) -> None:
    pytest.importorskip(framework)
    page = ROOT / "docs" / "testing.md"
    names = ("app.py", "app_async.py", "schema.sql")
    files = {block.title: block.text for block in blocks(page) if block.title in names}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines()]
    (line,) = [line for line in lines if line.startswith("bgpool rehearse") and f"-- {server}" in line]
    words = shlex.split(line.replace(":8000", f":{port}"))
    command = [*PROGRAM, "rehearse", "--json", "--scale", "0.5", "--warm-up", "0.5", "--cool-down", "0.5", *words[2:]]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    more = {"PATH": path, "TMPDIR": str(temporary)}
    more |= {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}", "UVICORN_PORT": str(port)}
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["went_through"]
    assert report["outcome"] == "completed"
    assert {"IN_PROGRESS", "POST", "COMPLETED"} <= {event["event"] for event in report["events"]}
    assert 0 < len(report["processes"]) <= 4
    assert max(process["most_held"] for process in report["processes"]) > 0
    assert max(process["held_s"] for process in report["processes"]) > 0
    assert sum(process["checkouts"] for process in report["processes"]) > 10
    assert report["requests"]["answered"] > 10
    assert report["requests"]["longest_gap_s"] > report["down_s"] > 0
    assert report["connections_on_green"] > 0
    assert report["connections_on_blue"] == 0
    assert report["monitoring_connections"] == 2
    assert says in done.stderr, "the command's output goes to standard error"
    assert [path.name for path in (tmp_path / "rehearsal").glob("*.history.json")] == ["1.history.json"]
    assert_nothing_is_left(tmp_path / "rehearsal")
    assert_nothing_is_left(temporary)


@lab
@slow
@pytest.mark.full
def test_mysql(tmp_path: Path, port: int, schema: Path) -> None:
    plan = Plan(web(port), engine=Engine.MYSQL, sql=schema, url=f"http://127.0.0.1:{port}/", **QUICK)
    report = rehearsed(plan, tmp_path)
    assert (report.outcome, report.engine) == ("completed", "mysql")
    assert report.requests is not None
    assert report.requests.answered > 10
    assert sum(process.connections for process in report.processes) == report.connections_on_green
    assert report.connections_on_blue == 0


@lab
@slow
@pytest.mark.parametrize("server", [pytest.param(web, marks=pytest.mark.full), asynchronous])
def test_rollback(tmp_path: Path, port: int, schema: Path, server: Callable[[int], tuple[str, ...]]) -> None:
    plan = Plan(server(port), scenario="rollback", sql=schema, url=f"http://localhost:{port}/", **QUICK)
    report = rehearsed(plan, tmp_path)
    assert report.outcome == "rolled back"
    assert report.events[-1].event == "CREATED (rollback)"
    assert report.connections_on_green == 0
    assert report.connections_on_blue is not None
    assert report.connections_on_blue > 0
    assert report.exit_status == 0


@lab
@slow
@pytest.mark.full
def test_a_command_that_ends_by_itself_afterwards(tmp_path: Path, schema: Path) -> None:
    command = (sys.executable, "-m", "tests.cli.rehearsed_app", "0")
    report = rehearsed(Plan(command, scenario="frozen", sql=schema, **{**QUICK, "cool_down_s": 30.0}), tmp_path)
    assert report.outcome == "completed"
    assert report.ended_by_itself
    assert report.requests is None


@lab
@slow
@pytest.mark.parametrize(
    "then",
    [
        pytest.param("pool.open()", id="only opens it", marks=pytest.mark.full),
        pytest.param("pool.run(lambda connection: None)", id="has done with it"),
    ],
)
def test_a_command_that_asks_for_nothing(tmp_path: Path, then: str) -> None:
    program = f"import bgpool, os, time; pool = bgpool.get_pool(os.environ['DATABASE_URL']); {then}; time.sleep(600)"
    plan = Plan((sys.executable, "-c", program), **{**QUICK, "warm_up_s": 2.0})
    with (tmp_path / "output").open("wb") as output:
        report = rehearse(plan, output=output)
    assert report.outcome == "completed"
    assert [process.checkouts for process in report.processes] == [0]
    assert report.findings == (UNUSED,)


@lab
@pytest.mark.parametrize(
    ("timeout_s", "command", "why"),
    [
        (30.0, ("true",), "ended by itself, with status 0, before"),
        (30.0, ("sh", "-c", "kill -9 $$"), "ended by itself, by signal 9, before"),
        (0.2, ("sleep", "60"), "no process has used a pool.*--url.*\\$SHOP_DB"),
        (
            6.0,
            (
                sys.executable,
                "-c",
                "import bgpool, time; bgpool.get_pool('postgresql://u@127.0.0.1:9/d').open(); time.sleep(60)",
            ),
            r"no pool connects to the database in \$SHOP_DB \(bg_id '1': ",
        ),
    ],
    ids=["ends", "is killed", "uses no pool", "goes elsewhere"],
)
def test_a_command_that_is_never_ready(tmp_path: Path, timeout_s: float, command: tuple[str, ...], why: str) -> None:
    plan = Plan(command, variables=("SHOP_DB",), run_dir=tmp_path / "run")
    with (tmp_path / "output").open("wb") as output, pytest.raises(NotRehearsedError, match=why):
        rehearse(plan, output=output, ready_timeout_s=timeout_s)
    assert_nothing_is_left(tmp_path / "run")


@lab
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_interrupted(
    tmp_path: Path, temporary: Path, port: int, schema: Path, environment: dict[str, str], number: int
) -> None:
    log = tmp_path / "stderr"
    options = ["--run-dir", str(tmp_path / "run"), "--sql", str(schema), "--url", f"http://127.0.0.1:{port}/"]
    command = [*PROGRAM, "rehearse", *options, "--warm-up", "60", "--", *web(port)]
    with log.open("wb") as file:
        running = subprocess.Popen(
            command, env={**environment, "TMPDIR": str(temporary)}, stdout=file, stderr=file, cwd=ROOT
        )
    try:
        wait_until(lambda: "the switchover begins" in log.read_text() or running.poll() is not None, 60)
        assert users_of(tmp_path / "run"), log.read_text()
        running.send_signal(number)
        assert running.wait(60) == 130, log.read_text()
    finally:
        running.kill()
        running.wait(10)
    assert "Traceback" not in log.read_text()
    assert_nothing_is_left(tmp_path / "run")
    assert_nothing_is_left(temporary)


# -- wrong calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--url", "http://shop.example/", "--", "true"], "an http:// URL on 127.0.0.1"),
        (["--url", "https://127.0.0.1/", "--", "true"], "an http:// URL on 127.0.0.1"),
        (["--url", "http://127.0.0.1:http/", "--", "true"], "http://127.0.0.1:http/"),
        (["--scenario", "happy", "--", "true"], "healthy, rollback, frozen, black-hole"),
        (["--flavour", "vanilla", "--", "true"], "rds, aurora"),
        (["--sql", "/nonexistent.sql", "--", "true"], "/nonexistent.sql cannot be read"),
        (["--log", "/nonexistent/log", "--", "true"], "/nonexistent/log cannot be written"),
        (["--", "no-such-program", "--help"], "no such program: no-such-program"),
        ([], "Missing argument"),
    ],
)
def test_wrong_calls(tmp_path: Path, options: list[str], why: str) -> None:
    # The runner's standard error is none that a command could write to.
    done = CliRunner().invoke(app, ["rehearse", "--log", str(tmp_path / "log"), *options])
    assert done.exit_code == 2
    assert why in done.stderr


def test_a_run_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "1.history.json").touch()
    (tmp_path / "1.segment").touch()
    with pytest.raises(UnusablePlanError, match=r"in use, or has other files: 1\.segment"):
        rehearse(Plan(("true",), run_dir=tmp_path), output=subprocess.DEVNULL)


@lab
@slow
@pytest.mark.full
def test_a_major_upgrade(tmp_path: Path, port: int, schema: Path) -> None:
    plan = Plan(web(port), **major_options(), sql=schema, url=f"http://127.0.0.1:{port}/", **QUICK)
    report = rehearsed(plan, tmp_path)
    assert " -> " in report.servers
    assert report.requests is not None
    assert report.requests.failed == 0
    # Without --sql, green would lack the table that the application makes by itself.
    script = "import os, time, bgpool\npool = bgpool.get_pool(os.environ['DATABASE_URL'])\n"
    script += "pool.run(lambda conn: conn.execute('CREATE TABLE late (n int)'))\ntime.sleep(60)"
    with pytest.raises(LabError, match=r"public\.late: made on blue after green was"):
        rehearse(Plan((sys.executable, "-c", script), **{**major_options(), **QUICK}), output=subprocess.DEVNULL)


@lab
def test_sql_that_the_server_refuses(tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text("CREATE TABLE fine (n int);\nCREATE TABEL orders (n int);")
    with pytest.raises(UnusablePlanError, match=r"schema\.sql: .*TABEL"):
        rehearse(Plan(("true",), sql=tmp_path / "schema.sql"), output=subprocess.DEVNULL)


def test_no_servers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LabError("no PostgreSQL: pip install it")

    monkeypatch.setattr("bgpool.lab.rehearsal.run.find_servers", fail)
    assert show.run(Plan(("true",)), tmp_path / "log", as_json=False) == show.NO_LAB
    assert "pip install it" in capsys.readouterr().err


def test_the_help_names_every_scenario() -> None:
    assert "|".join(SCENARIOS) in CliRunner().invoke(app, ["rehearse", "--help"], env={"COLUMNS": "200"}).stdout


# -- the load ----------------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as the test says."""

    status = itertools.cycle([200])

    def do_GET(self) -> None:
        self.send_response(next(type(self).status))
        self.end_headers()
        self.wfile.write(b"so it is")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def load(port: int) -> Iterator[Load]:
    """A load on a server that is not there yet."""
    load = Load(f"http://127.0.0.1:{port}/orders?n=1", 0.005)
    yield load
    load.stop()


@pytest.fixture
def server(port: int, load: Load) -> Iterator[http.server.ThreadingHTTPServer]:
    """There after the load was made."""
    del load
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_nothing_counts_before_it_is_to(load: Load) -> None:
    load.start()
    wait_until(lambda: "refused" in load.last_error)
    load.stop()
    assert (load.answers, load.answered, load.failed, load.longest_gap_s) == (False, 0, 0, 0.0)


@pytest.mark.usefixtures("server")
def test_failures_are_counted_and_a_few_are_reported(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    load.start()
    wait_until(lambda: load.answers)
    load.count()
    wait_until(lambda: load.answered > 10)
    assert load.failed == 0
    monkeypatch.setattr(Answers, "status", itertools.cycle([503]))
    wait_until(lambda: load.failed > 10)
    load.stop()
    assert load.examples == ("status 503: so it is",) * 5
    assert load.longest_gap_s > 0


@pytest.mark.usefixtures("server")
def test_a_url_that_is_answered_already(port: int) -> None:
    with pytest.raises(ValueError, match="another process listens there already"):
        Load(f"http://127.0.0.1:{port}/", 0.05)


# -- the processes -----------------------------------------------------------------------------------------------


def seen(app_processes: ApplicationProcesses) -> int:
    app_processes.look()
    return app_processes.here


def test_the_outcome_of_each_process(hand: Hand, start_worker: StartWorker) -> None:
    app_processes = ApplicationProcesses(hand.files)
    stays, goes = start_worker(in_use=1, idle=3, served=7), start_worker(in_use=2)
    app_processes.look()
    app_processes.begin()
    hand.enter(Phase.PREPARATION)
    hand.enter(Phase.IN_PROGRESS)
    os.kill(goes, signal.SIGSTOP)
    comes = start_worker(held=5, drained=4, cut=1, served=2, failed=1)
    wait_until(lambda: seen(app_processes) == 3)
    os.kill(goes, signal.SIGKILL)
    wait_until(lambda: seen(app_processes) == 2)
    told = {process.pid: process for process in app_processes.processes()}
    assert told[stays] == Process(stays, "there", 0, 0.0, 0, 0, 4, 0)
    assert told[goes] == Process(goes, "gone", 0, 0.0, 0, 0, 0, 0)
    assert told[comes].fate == "came"
    assert (told[comes].most_held, told[comes].drained, told[comes].cut, told[comes].checkouts) == (5, 4, 1, 3)
    assert app_processes.phase is Phase.IN_PROGRESS


def test_only_what_was_asked_for_since_the_beginning_counts() -> None:
    seen = ProcessHistory()
    seen.take(1.0, Usage(served=7, failed=1), {})
    seen.begin()
    assert seen.summary(1, "there").checkouts == 0
    seen.take(2.0, Usage(served=9, failed=2), {})
    assert seen.summary(1, "there").checkouts == 3


@pytest.mark.parametrize(
    ("rows", "moments", "held_s"),
    [
        # Quiet, held, held, quiet: between two rows the state is unknown, so the longest possible time is reported.
        ([(1.0, 0), (2.0, 3), (2.5, 1), (3.5, 0)], {}, 2.5),
        # Where the switchover falls between two rows, it was then.
        ([(1.0, 0), (2.0, 3), (2.5, 1), (3.5, 0)], {"IN_PROGRESS": 1.5, "POST": 2.75}, 1.25),
        # A row that is written for a moment is written a little later, and may still tell of before.
        ([(1.51, 0), (2.0, 3), (2.76, 1), (3.5, 0)], {"IN_PROGRESS": 1.5, "POST": 2.75}, 1.25),
        ([(1.0, 0), (2.0, 3), (3.5, 0)], {"IN_PROGRESS": 1.5, "CREATED (rollback)": 2.5}, 1.0),
        # Twice, and the second time it is not over.
        ([(1.0, 1), (2.0, 0), (3.0, 1), (6.0, 2)], {}, 4.0),
        ([(1.0, 0), (2.0, 0)], {"IN_PROGRESS": 1.5}, 0.0),
    ],
)
def test_the_longest_hold(rows: list[tuple[float, int]], moments: Mapping[str, float], held_s: float) -> None:
    seen = ProcessHistory()
    for at_s, held in rows:
        seen.take(at_s, Usage(held=held), moments)
    told = seen.summary(1, "there")
    assert told.held_s == pytest.approx(held_s, abs=0.02)
    assert told.most_held == max(held for _, held in rows)


REPORT = Rehearsed(
    scenario="healthy",
    engine="postgresql",
    flavour="rds",
    servers="PostgreSQL 16.14",
    outcome="completed",
    findings=(),
    down_s=1.6,
    events=(Event("2026-11-25T15:02:00.000Z", -1600, "PREPARATION", ""), Event("", 0, "IN_PROGRESS", "")),
    processes=(
        Process(1, "there", 2, 1.7, 4, 0, 4, 90),
        Process(2, "gone", 1, 1.7, 4, 1, 0, 5),
        Process(3, "came", 0, 0, 0, 0, 1, 5),
    ),
    monitoring_connections=2,
    connections_on_blue=None,
    connections_on_green=5,
    requests=Requests("http://127.0.0.1/", 100, 0, (), 1.9, 0.3),
    exit_status=0,
    ended_by_itself=False,
    killed=False,
)
IDLE = Process(1, "there", 0, 0.0, 4, 0, 4, 0)
FAILED = Requests("http://127.0.0.1/", 100, 1, ("status 500: \x1b[2J",), 1.9, 0.3)


@pytest.mark.parametrize(
    ("changes", "more", "found"),
    [
        ({}, {}, []),
        ({}, {"here": 1}, ["of 2 processes 1 are left; gone: 2"]),
        ({"outcome": "not ended"}, {}, ["the outcome of the switchover is 'not ended', expected 'completed'"]),
        ({"requests": FAILED}, {}, ["failed requests: 1"]),
        ({"processes": (IDLE, IDLE)}, {}, [UNUSED]),
        ({"processes": (IDLE, replace(IDLE, checkouts=1))}, {}, []),
        # Still held at the end: a checkout that is not over is in no row.
        ({"processes": (IDLE, replace(IDLE, most_held=1))}, {}, []),
        ({"ended_by_itself": True}, {"here": 0}, []),
        ({"ended_by_itself": True, "exit_status": 3}, {}, ["the command ended by itself, with status 3"]),
        (
            {"ended_by_itself": True, "exit_status": -9},
            {"ended_early": -9},
            ["the command ended in the middle of the switchover, by signal 9"],
        ),
    ],
)
def test_findings(changes: Mapping[str, Any], more: Mapping[str, Any], found: list[str]) -> None:
    given: dict[str, Any] = {"wanted": "completed", "here": 2, "ended_early": None, **more}
    assert list(findings(replace(REPORT, **changes), **given)) == found


def test_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # uvicorn exits by the signal that it received.
    report = replace(REPORT, requests=FAILED, findings=("failed requests: 1",), exit_status=-15)
    monkeypatch.setattr(show, "rehearse", lambda *_, **__: report)
    assert show.run(Plan(("true",)), tmp_path / "log", as_json=False) == show.FAILED
    printed = capsys.readouterr().out
    assert "NOT WELL: failed requests: 1" in printed
    assert "\x1b[2J" not in printed
    assert "? on old blue" in printed
    assert "ended after SIGTERM, by signal 15" in printed
    assert show.run(Plan(("true",)), tmp_path / "log", as_json=True) == show.FAILED
    told = json.loads(capsys.readouterr().out)
    assert told["went_through"] is False
    assert told["processes"][1] == {
        "pid": 2, "fate": "gone", "most_held": 1, "held_s": 1.7, "drained": 4, "cut": 1, "connections": 0,
        "checkouts": 5,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", "A B", "BGPOOL_RUN_DIR"])
def test_a_variable_that_cannot_get_the_dsn(name: str) -> None:
    """Seen: ValueError, illegal environment variable name, once both servers were up."""
    with pytest.raises(UnusablePlanError, match=f"--env '{name}': a name of letters, digits, _, . and - is allowed"):
        check(Plan(("true",), variables=("DATABASE_URL", name)))
    check(Plan(("true",), variables=("spring.datasource.url",)))


def test_each_variable_may_have_a_scheme_of_its_own() -> None:
    """Seen: SQLAlchemy took the DSN for that of its own driver, and no rehearsal was ready."""
    plan = Plan(("true",), variables=("DSN", "DATABASE_URL=postgresql+bgpool", "BACKEND=db+postgresql+bgpool"))
    check(plan)
    assert environment(plan, "postgresql://app:a=b://@h:1/d") == {
        "DSN": "postgresql://app:a=b://@h:1/d",
        "DATABASE_URL": "postgresql+bgpool://app:a=b://@h:1/d",
        "BACKEND": "db+postgresql+bgpool://app:a=b://@h:1/d",
    }
    for scheme in ("", "postgresql+bgpool://", "1"):
        with pytest.raises(UnusablePlanError, match="a URL's scheme is allowed after =, such as postgresql"):
            check(Plan(("true",), variables=(f"A={scheme}",)))

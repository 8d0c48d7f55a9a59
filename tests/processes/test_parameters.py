"""The choice of the monitor's connection parameters, on a host where not all parameters reveal the deployment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bgpool
from bgpool.core.events import Instant
from bgpool.core.limits import GIVE_WAY_S, HEARTBEAT_STALE_S
from bgpool.core.observations import Observation, Parameters, Visibility, begin_to_watch
from bgpool.core.phase import Phase
from bgpool.core.plan import Target
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import parse
from bgpool.lab import Director, Pair, Schedule
from bgpool.monitor import process, spawn
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.dialects.postgres import PostgresSession
from bgpool.monitor.process import run_monitor
from bgpool.monitor.session import SessionError
from bgpool.monitor.spawn import Starter
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.reader import SegmentMap
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

WaitUntil = Callable[..., None]


def config_of(run_dir: Path, database: str = "app", **options: object) -> MonitorConfig:
    """Return a configuration that leads to a closed port."""
    place, settings, _ = parse(f"postgresql://app:s3cret@127.0.0.1:1/{database}", {"bg_id": "ledger", **options})
    return MonitorConfig.of(place, settings, run_dir)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    prepare_run_dir(tmp_path / "run")
    return RunFiles.of(tmp_path / "run", "ledger")


# -- the printed parameters of a configuration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "options", "text"),
    [
        ("postgresql://app:s3cret@db:5433/ledger", {}, "app@db:5433/ledger"),
        ("mysql://app:s3cret@db/ledger", {}, "app@db:3306"),
        ("mysql://app:s3cret@db/", {"monitoring": {"user": "watch", "password": "s3cret"}}, "watch@db:3306"),
        ("host=/tmp user=app dbname=ledger password=s3cret", {}, "app@local socket:5432/ledger"),
    ],
)
def test_parameters_are_printed_without_the_password(
    tmp_path: Path, dsn: str, options: dict[str, object], text: str
) -> None:
    place, settings, _ = parse(dsn, options)
    assert str(MonitorConfig.of(place, settings, tmp_path).parameters) == text


# -- a monitor without metadata -----------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a server that does not answer, and let another process offer better parameters."""
    for name in ("BLIND_S", "LOCKED_OUT_S"):
        monkeypatch.setattr(f"bgpool.core.observations.{name}", 0)
    monkeypatch.setattr(process, "OFFERS_INTERVAL_S", 0)
    monkeypatch.setattr(process, "best_offer", lambda _files: Visibility.UNTRIED)


@pytest.mark.usefixtures("impatient")
def test_a_blind_monitor_leaves_and_the_next_finds_what_was_tried(files: RunFiles) -> None:
    config = config_of(files.directory)
    began = time.monotonic()
    assert run_monitor(config, linger_s=60)
    assert time.monotonic() - began < 30
    found = SegmentMap(files).read()
    assert found is not None
    (observation,) = found[1].observations
    assert (observation.parameters, observation.visibility) == (config.parameters, Visibility.SILENT)
    assert b"s3cret" not in files.segment.read_bytes()


@pytest.mark.usefixtures("impatient")
def test_a_monitor_in_the_foreground_stays(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[float] = []

    def beat(self: Writer, beat: Callable[[Writer], None] = Writer.beat) -> None:
        beat(self)
        beats.append(time.monotonic())
        if len(beats) == 5:
            files.segment.unlink()

    monkeypatch.setattr(Writer, "beat", beat)
    assert run_monitor(config_of(files.directory), linger_s=None)
    assert len(beats) >= 5


# -- the choice of the next monitor -------------------------------------------------------------------------------


def leave_segment(files: RunFiles, age_s: float, *observations: Observation) -> None:
    """Leave a monitor's segment whose last heartbeat is *age_s* old, and which had *observations*."""
    writer = Writer(files, 1, Snapshot("ledger", observations=observations))
    writer._beat[0] = time.monotonic_ns() - int(age_s * 1e9)


def choose(files: RunFiles, *configs: MonitorConfig) -> MonitorConfig | None:
    return Starter("ledger", lambda: configs)._choose(files)


def test_parameters_without_metadata_are_not_retried_at_once(files: RunFiles) -> None:
    other, app = config_of(files.directory, "other"), config_of(files.directory, "app")
    assert choose(files, other, app) == other, "the first one, without any observation"
    leave_segment(files, 10, Observation(other.parameters, Visibility.MISSING, time.monotonic_ns()))
    assert choose(files, other, app) == app
    assert choose(files, other) == other, "there is no other"
    assert choose(files) is None


def test_a_process_waits_briefly_for_one_with_better_parameters(files: RunFiles) -> None:
    other = config_of(files.directory, "other")
    tried = Observation(other.parameters, Visibility.MISSING, time.monotonic_ns())
    better = Presence(files)
    better.write(Usage(offer=Visibility.SEEN))
    leave_segment(files, HEARTBEAT_STALE_S + GIVE_WAY_S / 2, tried)
    assert choose(files, other) is None
    better.write(Usage(offer=Visibility.MISSING))
    assert choose(files, other) == other
    better.write(Usage(offer=Visibility.SEEN))
    silent_later = RunFiles.of(files.directory, "ledger")
    files.segment.unlink()
    leave_segment(silent_later, HEARTBEAT_STALE_S + GIVE_WAY_S, tried)
    assert choose(files, other) == other, "the better process had its time"
    better.close()


def test_equal_parameters_are_tried_in_turn(files: RunFiles) -> None:
    old = config_of(files.directory, password="old-secret")
    new = config_of(files.directory, password="new-secret")
    starter = Starter("ledger", lambda: [old, new])
    chosen = []
    for _ in range(4):
        chosen.append(starter._choose(files))
        starter._starts += 1
    assert chosen == [old, new, old, new]


def test_a_process_that_cannot_start_a_monitor_does_not_stop_others(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process pauses, and so do those with the same parameters."""
    broken, good = config_of(files.directory, "broken"), config_of(files.directory, "good")
    tried: list[MonitorConfig] = []
    pausing, go = threading.Event(), threading.Event()

    def run(config: MonitorConfig, *, alone: bool) -> str:  # noqa:ARG001
        tried.append(config)
        return "no module"

    def pause(_seconds: float) -> None:
        pausing.set()
        if threading.current_thread() is thread:
            go.wait(10)

    monkeypatch.setattr(spawn, "bring_up", run)
    monkeypatch.setattr(time, "sleep", pause)
    starter = Starter("ledger", lambda: [broken])
    thread = threading.Thread(target=starter.ensure_monitor, args=(files,))
    thread.start()
    assert pausing.wait(10)
    for configs in ([broken], [good]):
        Starter("ledger", configs.copy).ensure_monitor(files)
    go.set()
    thread.join()
    assert tried == [broken, good]


def test_after_a_refused_login_the_callable_is_imported_again(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module may have read the password at import; a process with other monitors still has the old password."""
    asked: list[bool] = []

    def note(_config: MonitorConfig, *, alone: bool) -> str:
        asked.append(alone)
        return ""

    monkeypatch.setattr(spawn, "bring_up", note)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    fixed, made = config_of(files.directory), config_of(files.directory, password=bgpool.auth.RdsIam("eu-west-1"))
    leave_segment(files, 10, Observation(made.parameters, Visibility.REFUSED, time.monotonic_ns()))
    for config in (fixed, made):
        Starter("ledger", [config].copy).ensure_monitor(files)
    assert asked == [False, True]


def test_a_pool_offers_parameters_that_work_or_have_shown_the_deployment(files: RunFiles) -> None:
    """In a switchover no pool has connections. Parameters that have shown the deployment must still count."""
    pool = bgpool.get_pool("postgresql://app:s3cret@127.0.0.1:1/app", "ledger", bg_run_dir=files.directory)
    mine, now_ns = config_of(files.directory).parameters, time.monotonic_ns()
    writer = Writer(files, 1, Snapshot("ledger"))
    offers = {}
    for visibility in Visibility:
        writer.publish(Snapshot("ledger", observations=(Observation(mine, visibility, now_ns),)))
        pool.participant.reader.check_path()
        offers[visibility] = pool.usage().offer
    assert offers == {
        visibility: Visibility.SEEN if visibility is Visibility.SEEN else Visibility.NONE for visibility in Visibility
    }
    pool.close()


# -- status -------------------------------------------------------------------------------------------------------


def test_status_names_the_parameters_in_use_and_those_without_metadata(files: RunFiles) -> None:
    blind = Observation(Parameters("app", "db", 5432, "other"), Visibility.MISSING, 1)
    snapshot = begin_to_watch(
        Snapshot("ledger", observations=(blind,)), Parameters("app", "db", 5432, "app"), Instant(2, 2)
    )
    writer = Writer(files, 1, snapshot)
    writer.beat()
    status = bgpool.status("ledger", run_dir=files.directory)
    assert status.monitor.parameters == "app@db:5432/app"
    assert status.blind == ("app@db:5432/other: the server shows no metadata to this user in this database",)


# -- real servers -------------------------------------------------------------------------------------------------

SERVICE = """
import logging, sys, bgpool
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
for dsn in sys.argv[3:]:
    with bgpool.get_pool(dsn, bg_id=sys.argv[2], bg_resolver=sys.argv[1]).connection():
        pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A deployment whose metadata can be read in one of the instance's two databases."""
    with Pair("rds") as pair:
        pair.blue.execute("CREATE DATABASE other OWNER app")
        Director(pair, Schedule(scale=1)).create_deployment()
        yield pair


@pytest.fixture
def serve(pair: Pair, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a service with a pool for each DSN, and wait until it has connected."""
    started: list[subprocess.Popen[str]] = []

    def start(*dsns: str) -> subprocess.Popen[str]:
        service = subprocess.Popen(
            [sys.executable, "-c", SERVICE, pair.resolver, "ledger", *dsns],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "BGPOOL_RUN_DIR": str(tmp_path / "run")},
        )
        started.append(service)
        assert service.stdout is not None
        assert service.stdout.readline() == "ready\n"
        return service

    yield start
    status = bgpool.status("ledger", run_dir=tmp_path / "run")
    for service in started:
        service.kill()
        service.communicate()
    if status.monitor.pid:
        os.kill(status.monitor.pid, signal.SIGKILL)


@pytest.mark.lab
@pytest.mark.slow
def test_the_host_watches_with_the_parameters_of_a_service_that_sees_the_deployment(
    pair: Pair, serve: Callable[..., subprocess.Popen[str]], tmp_path: Path, wait_until: WaitUntil
) -> None:
    def status() -> bgpool.report.Status:
        return bgpool.status("ledger", run_dir=tmp_path / "run")

    serve(pair.dsn.replace("/app?", "/other?"))
    serve(pair.dsn)
    wait_until(lambda: status().ready)
    first = status().monitor
    assert first.parameters.endswith("/app")
    assert first.term == 2, "each was tried once"
    (blind,) = status().blind
    assert blind.startswith(f"{first.parameters.removesuffix('app')}other: the server shows no metadata")
    # The successor must not be one without metadata, which would conclude that the deployment is gone.
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    killed_at, phases = time.monotonic(), set()
    while (now := status()).monitor.term == first.term or now.monitor.state != "alive":
        phases.add(now.phase)
        assert time.monotonic() - killed_at < 30
        time.sleep(0.02)
    assert status().monitor.parameters == first.parameters
    assert phases == {Phase.CREATED}
    wait_until(lambda: status().ready)


@pytest.mark.lab
def test_a_refused_login_is_distinguished_from_a_server_that_is_down(pair: Pair) -> None:
    blue = Target(pair.blue.address, pair.port)
    params = {"user": "app", "dbname": "app", "connect_timeout": "5"}
    with pytest.raises(SessionError) as refused:
        PostgresSession({**params, "password": "another-secret"}, blue)
    assert refused.value.refused
    with pytest.raises(SessionError) as absent:
        PostgresSession({**params, "password": pair.app_password, "dbname": "gone"}, blue)
    assert absent.value.refused
    with pytest.raises(SessionError) as down:
        PostgresSession({**params, "password": pair.app_password}, Target("127.0.0.1", 1))
    assert not down.value.refused

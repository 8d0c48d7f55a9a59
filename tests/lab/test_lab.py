"""The lab is reliable: its servers replicate, its checks detect errors, and no process or file remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Director, LabError, Pair, Schedule, TruthProbe, faults, ledger
from bgpool.lab.mysql.programs import find_family
from bgpool.lab.watchdog import arguments_of, programs_below
from tests.lab.clients import Refused, connect

pytestmark = pytest.mark.lab

READ_ONLY = {Engine.POSTGRESQL: "25006", Engine.MYSQL: 1290}
CUT = {Engine.POSTGRESQL: ("57P01",), Engine.MYSQL: (2013, 4031)}
NO_GRANT = {Engine.POSTGRESQL: "42501", Engine.MYSQL: 1142}
GONE = {Engine.POSTGRESQL: "42883", Engine.MYSQL: 1146}
BROKEN = {Engine.POSTGRESQL: ("22P02",), Engine.MYSQL: (4038, 3141)}  # MariaDB, MySQL
STATUSES = {
    Engine.POSTGRESQL: "SELECT DISTINCT status FROM rds_tools.show_topology('test')",
    Engine.MYSQL: "SELECT DISTINCT status FROM mysql.rds_topology",
}
INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (%s, %s, %s)"


@pytest.fixture(params=Engine, ids=lambda engine: engine.value)
def engine(request: pytest.FixtureRequest) -> Engine:
    engine: Engine = request.param
    return engine


@pytest.fixture
def pair(engine: Engine) -> Iterator[Pair]:
    with Pair(engine=engine) as pair:
        ledger.create(pair)
        yield pair


@pytest.fixture(scope="module", params=Engine, ids=lambda engine: engine.value)
def shared_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A pair for tests that leave it unchanged, except for rows."""
    with Pair(engine=request.param) as pair:
        ledger.create(pair)
        yield pair


def test_green_follows_blue_and_takes_no_writes(shared_pair: Pair) -> None:
    pair = shared_pair
    pair.blue.execute(INSERT, (1, 1, 1), database="app")
    pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
    assert ledger.read(pair.green) == ledger.read(pair.blue)
    assert [row.key for row in ledger.read(pair.green)] == [(1, 1, 1)]
    with connect(pair, pair.green) as client, pytest.raises(Refused) as refused:
        client.execute(INSERT, (1, 1, 2))
    assert refused.value.code == READ_ONLY[pair.engine]


def test_metadata_differs_by_server_and_needs_its_grant(pair: Pair) -> None:
    query = STATUSES[pair.engine]
    with connect(pair, pair.blue) as blue, connect(pair, pair.green) as green:
        assert blue.execute(query) == []
        director = Director(pair)
        director.create_deployment()
        director.publish("SWITCHOVER_IN_PROGRESS", to=pair.green)
        assert blue.execute(query) == [("AVAILABLE",)]
        assert green.execute(query) == [("SWITCHOVER_IN_PROGRESS",)]
        pair.blue.revoke_metadata("app")
        with pytest.raises(Refused) as refused:
            blue.execute(query)
        assert refused.value.code == NO_GRANT[pair.engine]
        pair.blue.grant_metadata("app")
        assert blue.execute(query) == [("AVAILABLE",)]


def test_metadata_can_be_empty_broken_and_gone(pair: Pair) -> None:
    query, director = STATUSES[pair.engine], Director(pair)
    director.create_deployment()
    with connect(pair, pair.blue) as client:
        director.empty()
        assert client.execute(query) == []
        faults.break_metadata(director)
        with pytest.raises(Refused) as refused:
            client.execute(query)
        assert refused.value.code in BROKEN[pair.engine]
        faults.drop_metadata(pair)
        with pytest.raises(Refused) as refused:
            client.execute(query)
        assert refused.value.code == GONE[pair.engine]


def test_connections_are_cut_and_new_ones_refused_while_replication_goes_on(pair: Pair) -> None:
    with connect(pair, pair.blue) as client:
        for server in pair.servers:
            server.refuse_clients()
        assert pair.blue.cut_clients() == 1
        with pytest.raises(Refused) as refused:
            client.execute("SELECT 1")
        assert refused.value.code in CUT[pair.engine]
    with pytest.raises(Refused):
        connect(pair, pair.blue)
    pair.blue.execute(INSERT, (1, 1, 1), database="app")
    pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
    pair.blue.admit_clients()
    connect(pair, pair.blue).close()


def test_a_read_only_server_refuses_writes_of_new_transactions(shared_pair: Pair) -> None:
    """It does not wait for the end of transactions that have written, either."""
    pair = shared_pair
    with connect(pair, pair.blue) as idle, connect(pair, pair.blue) as client:
        idle.execute("BEGIN")
        idle.execute(INSERT, (1, 1, 1))
        pair.blue.set_read_only(True)
        with pytest.raises(Refused) as refused:
            client.execute(INSERT, (1, 1, 2))
    pair.blue.set_read_only(False)
    assert refused.value.code == READ_ONLY[pair.engine]


def test_a_server_comes_back_as_it_was(pair: Pair) -> None:
    pair.blue.execute(INSERT, (1, 1, 1), database="app")
    pair.blue.set_read_only(True)
    pair.blue.lock_out("monitor")
    pair.blue.kill()
    pair.blue.start()
    assert [row.key for row in ledger.read(pair.blue)] == [(1, 1, 1)]
    with connect(pair, pair.blue) as client, pytest.raises(Refused):
        client.execute(INSERT, (1, 1, 2))
    with pytest.raises(Refused):
        connect(pair, pair.blue, user="monitor", password=pair.lab_password)
    pair.green.stop()
    pair.green.start()
    assert pair.green.is_replica()
    pair.green.wait_replayed(pair.blue.position(), timeout_s=10)


def test_monitoring_connections_are_recognized_by_their_name(shared_pair: Pair) -> None:
    pair = shared_pair
    with (
        connect(pair, pair.blue, name="bgpool-monitor x"),
        connect(pair, pair.green, name="bgpool-monitor"),
        connect(pair, pair.blue, name="gunicorn"),
    ):
        assert pair.monitoring_connections() == 2


@pytest.mark.slow
def test_a_switchover_and_its_ground_truth(pair: Pair) -> None:
    director = Director(pair, Schedule(scale=0.2))
    director.create_deployment()
    with TruthProbe(pair) as truth:
        truth.wait_writing()
        director.run()
        truth.wait_green(10)
    assert truth.down_s is not None
    stopped, open_again = director.event("writes_stopped"), director.event("green_open")
    # The probe writes every few ms: the downtime that it measures is close to the director's actions.
    assert truth.down_s == pytest.approx(open_again.monotonic_s - stopped.monotonic_s, abs=0.5)
    assert pair.hosts.read()[pair.names.blue.primary] == pair.green.address
    assert pair.names.green.primary not in pair.hosts.read()
    with connect(pair, pair.blue) as old, pytest.raises(Refused) as refused:
        old.execute(INSERT, (9, 9, 9))
    assert refused.value.code == READ_ONLY[pair.engine]


@pytest.mark.slow
def test_the_judge_finds_lost_doubled_split_and_half_committed_rows(pair: Pair) -> None:
    pair.blue.execute(INSERT, (0, 0, 1), database="app")
    director = Director(pair, Schedule(scale=0.05))
    director.create_deployment()
    director.run()
    assert ledger.judge(pair, [(0, 0, 1)]).clean
    for server, n in ((pair.green, 2), (pair.green, 2), (pair.blue, 3)):
        server.execute(INSERT, (0, 0, n), database="app")
    for key in ((1, 1, 1), (1, 1, -1), (1, 1, -2), (1, 1, 3)):
        pair.green.execute(INSERT, key, database="app")
    verdict = ledger.judge(pair, [(0, 0, 1), (0, 0, 4)], unknown=[(0, 0, 2)])
    assert not verdict.clean
    assert (verdict.lost, verdict.doubled, verdict.split, verdict.half) == (1, 1, 1, 2)
    assert verdict.lost_examples == ((0, 0, 4),)
    assert verdict.doubled_examples == ((0, 0, 2),)
    assert verdict.half_examples == ((1, 1, -2), (1, 1, 3))
    assert [row.key for row in verdict.split_examples] == [(0, 0, 3)]


@pytest.mark.full
@pytest.mark.slow
def test_old_blue_becomes_a_new_green(engine: Engine) -> None:
    with Pair("aurora", engine=engine, readers=1) as pair:
        ledger.create(pair)
        for n in (1, 2):
            pair.blue.execute(INSERT, (0, 0, n), database="app")
            director = Director(pair, Schedule(scale=0.05))
            director.create_deployment()
            director.run()
            pair.renew()
        for server in pair.servers:
            if server is not pair.blue:
                server.wait_replayed(pair.blue.position(), timeout_s=10)
            assert [row.key for row in ledger.read(server)] == [(0, 0, 1), (0, 0, 2)]


@pytest.mark.slow
def test_kill_9_leaves_no_server_and_no_file(engine: Engine) -> None:
    script = (
        "import sys, time\nfrom bgpool.lab import Pair\nwith Pair(engine=sys.argv[1]) as pair:\n"
        "    print(pair.blue.data_dir, flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, engine.value], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        data_dir = Path(owner.stdout.readline().strip())
        assert data_dir.is_dir()
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.communicate()
    deadline = time.monotonic() + 15
    while data_dir.parent.exists() or _servers_in(data_dir.parent):
        assert time.monotonic() < deadline, f"{data_dir.parent} is still there"
        time.sleep(0.1)


def test_a_server_started_through_another_program_is_found_by_the_watchdog(tmp_path: Path) -> None:
    lab, other = tmp_path / "lab", tmp_path / "other"
    words = [sys.executable, "-c", "import time; time.sleep(60)", "/usr/sbin/mysqld", f"--datadir={lab}/data"]
    process = subprocess.Popen(words)
    try:
        # Popen returns when the child's exec() has closed its files. The child's command line is readable a moment
        # later.
        deadline = time.monotonic() + 15
        while not any(arguments_of(process.pid)):
            assert time.monotonic() < deadline, f"process {process.pid} has no command line"
            time.sleep(0.01)
        assert process.pid in programs_below([str(lab)])
        assert process.pid not in programs_below([str(other)])
    finally:
        process.kill()
        process.wait()


def test_a_lab_without_mariadb_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"apt-get install mariadb-server-core") as failed:
        find_family(tmp_path)
    assert str(tmp_path / "sbin" / "mariadbd") in str(failed.value)


def _servers_in(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(directory).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found

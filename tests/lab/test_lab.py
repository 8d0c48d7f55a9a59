"""The lab tells the truth: its servers replicate, its judge finds what is wrong, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bgpool.lab import Director, Pair, PostgresServer, Schedule, TruthProbe, ledger

pytestmark = pytest.mark.lab


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        ledger.create(pair)
        yield pair


def test_green_follows_blue_and_takes_no_writes(pair: Pair) -> None:
    pair.blue.execute("INSERT INTO ledger (worker, thread, n) VALUES (1, 1, 1)", database="app")
    pair.green.wait_replayed(pair.blue.current_lsn(), timeout_s=10)
    assert [row.key for row in ledger.read(pair.green)] == [(1, 1, 1)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        pair.green.execute("INSERT INTO ledger (worker, thread, n) VALUES (1, 1, 2)", database="app")


def test_metadata_differs_by_server_and_needs_its_grant(pair: Pair) -> None:
    director = Director(pair)
    director.create_deployment()
    director.publish("SWITCHOVER_IN_PROGRESS", to=pair.green)
    query = "SELECT DISTINCT status FROM rds_tools.show_topology('test')"
    for server, status in ((pair.blue, "AVAILABLE"), (pair.green, "SWITCHOVER_IN_PROGRESS")):
        with psycopg.connect(pair.direct_dsn(server)) as connection:
            assert connection.execute(query).fetchall() == [(status,)]
    pair.blue.execute("REVOKE USAGE ON SCHEMA rds_tools FROM app", database="app")
    with psycopg.connect(pair.direct_dsn(pair.blue)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(query)


def test_connections_are_cut_and_new_ones_refused(pair: Pair) -> None:
    with psycopg.connect(pair.direct_dsn(pair.blue)) as connection:
        pair.blue.refuse_clients()
        pair.blue.cut_clients()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(pair.direct_dsn(pair.blue))
    pair.blue.admit_clients()
    psycopg.connect(pair.direct_dsn(pair.blue)).close()


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
    # The probe writes every few ms: what it calls down lies around what the director did.
    assert truth.down_s == pytest.approx(open_again.monotonic_s - stopped.monotonic_s, abs=0.5)
    assert pair.hosts.read()[pair.names.blue.primary] == pair.green.address
    assert pair.names.green.primary not in pair.hosts.read()
    with psycopg.connect(pair.direct_dsn(pair.blue)) as old, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        old.execute("INSERT INTO ledger (worker, thread, n) VALUES (9, 9, 9)")


@pytest.mark.slow
def test_the_judge_finds_lost_doubled_and_split_rows(pair: Pair) -> None:
    def write(server: PostgresServer, n: int) -> None:
        with server.superuser("app") as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("INSERT INTO ledger (worker, thread, n) VALUES (0, 0, %s)", (n,))

    write(pair.blue, 1)
    director = Director(pair, Schedule(scale=0.05))
    director.create_deployment()
    director.run()
    assert ledger.judge(pair, [(0, 0, 1)]).clean
    write(pair.green, 2)
    write(pair.green, 2)
    write(pair.blue, 3)
    verdict = ledger.judge(pair, [(0, 0, 1), (0, 0, 4)], unknown=[(0, 0, 2)])
    assert not verdict.clean
    assert (verdict.lost, verdict.doubled, verdict.split) == (1, 1, 1)
    assert verdict.lost_examples == ((0, 0, 4),)
    assert verdict.doubled_examples == ((0, 0, 2),)
    assert [row.key for row in verdict.split_examples] == [(0, 0, 3)]


@pytest.mark.slow
def test_kill_9_leaves_no_server_and_no_file() -> None:
    script = (
        "import sys, time\nfrom bgpool.lab import Pair\nwith Pair() as pair:\n"
        "    print(pair.blue.data_dir, flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
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


def _servers_in(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(directory).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found

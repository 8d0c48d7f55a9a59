"""The switchover benchmark: gaps are what they say, names are the system's, and a quick run gives plausible figures."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gaps, hosts, switchover
from benchmarks.clients import CLIENTS, Config
from benchmarks.crew import Attempt, Crew
from benchmarks.crew_process import Orders
from bgpool.lab import Director, Pair, ledger
from bgpool.lab.waiting import wait_until

needs_names = pytest.mark.skipif(bool(hosts.available()), reason=hosts.available())


def attempts(*times: tuple[float, float, bool]) -> list[Attempt]:
    return [Attempt(*each) for each in times]


def test_a_gap_begins_with_the_first_failure_and_ends_with_the_next_success() -> None:
    done = attempts((0, 1, True), (5, 6, False), (7, 8, False), (9, 10.5, True), (11, 12, True))
    assert gaps.longest_gap_s(done, 0) == 5.5


def test_a_pause_is_no_part_of_a_gap() -> None:
    assert gaps.longest_gap_s(attempts((0, 1, True), (100, 101, True)), 0) == 1


def test_a_gap_that_ended_before_is_not_counted() -> None:
    assert gaps.longest_gap_s(attempts((0, 9, True), (10, 12, True)), 9.5) == 2


def test_a_thread_is_back_when_its_last_attempt_succeeded_afterwards() -> None:
    assert gaps.is_back(attempts((0, 1, True), (2, 3, False), (4, 5, True)), 2.5)
    assert not gaps.is_back(attempts((0, 1, True), (2, 3, False)), 0.5)
    assert not gaps.is_back(attempts((0, 1, True)), 2.5)
    assert not gaps.is_back([], 0)


def test_the_first_success_is_counted_from_the_moment_that_it_was_possible() -> None:
    done = attempts((0, 1, True), (2, 3, False), (4, 5, True), (6, 7, True))
    assert gaps.first_success_s(done, 2) == 3
    assert gaps.first_success_s(done, 7) is None


def test_in_flight_is_what_overlaps_the_cut() -> None:
    before, across, after = attempts((0, 1, True)), attempts((0, 1, True), (2, 5, False)), attempts((5, 6, True))
    assert gaps.in_flight([before, across, after], 3, 4) == 1
    assert gaps.in_flight([before, across, after], 1, 5) == 3
    assert gaps.in_flight([across, attempts((2, 3, False), (3, 4, False))], 2, 4) == 2
    assert gaps.in_flight([], 0, 1) == 0


def test_none_is_longer_than_anything() -> None:
    assert gaps.median_s([1.0, None, 3.0]) == 3.0
    assert gaps.median_s([1.0, None, None]) is None
    assert gaps.median_s([]) is None
    assert gaps.most_s([1.0, 2.0]) == 2.0
    assert gaps.most_s([1.0, None]) is None
    assert gaps.most_s([]) is None


def test_orders_come_across_as_they_were_given() -> None:
    config = Config("postgresql://app:secret@blue/app", ("127.0.0.1", "127.0.0.2"), size=3)
    orders = Orders("bgpool", config, 4, 2, math.inf, 1.0)
    assert Orders.from_line(orders.as_line()) == orders


def test_names_are_published_in_one_piece_of_one_size(tmp_path: Path) -> None:
    names = hosts.Names(tmp_path)
    inode, size = names.path.stat().st_ino, names.path.stat().st_size
    names.publish({f"ledger-{n}.example.invalid": f"127.0.0.{n}" for n in range(1, 9)})
    assert (names.path.stat().st_ino, names.path.stat().st_size) == (inode, size)
    assert "127.0.0.8\tledger-8.example.invalid\n" in names.path.read_text()
    names.publish({})
    assert "ledger" not in names.path.read_text()
    with pytest.raises(ValueError, match="more than"):
        names.publish({f"ledger-{n}.example.invalid": "127.0.0.1" for n in range(200)})


@needs_names
def test_only_processes_in_the_namespace_see_names_change(tmp_path: Path) -> None:
    names = hosts.Names(tmp_path)
    names.publish({"moves.invalid": "127.0.0.7"})
    code = (
        "import socket, sys\nfrom pathlib import Path\nfrom benchmarks import hosts\n"
        "hosts.enter(Path(sys.argv[1]))\n"
        "for _ in sys.stdin: print(socket.gethostbyname('moves.invalid'), flush=True)\n"
    )
    root = Path(hosts.__file__).parents[1]
    command = [sys.executable, "-c", code, str(names.path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        for address in ("127.0.0.7", "127.0.0.8"):
            names.publish({"moves.invalid": address})
            inside.stdin.write("\n")
            inside.stdin.flush()
            assert inside.stdout.readline().strip() == address
        inside.stdin.close()
    assert inside.returncode == 0
    assert "moves.invalid" not in Path("/etc/hosts").read_text()


@pytest.mark.lab
def test_a_crew_reports_its_rows_and_leaves_no_process() -> None:
    with Pair("rds") as pair:
        ledger.create(pair)
        with Crew("oracle", Config.of(pair), processes=2, threads=2, pause_s=math.inf) as crew:
            crew.wait_writing(20)
            pids = crew.pids()
            assert len(pids) == 2
            assert crew.cpu_s() >= 0
            crew.stop()
            report = crew.report()
        assert sorted(report.acknowledged) == [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)]
        assert (report.unknown, report.stuck, dict(report.errors)) == ((), (), {})
        assert sorted(row.key for row in ledger.read(pair.blue)) == sorted(report.acknowledged)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("client", ["Django, bgpool run", "Django, bgpool"])
def test_djangos_orm_writes_as_the_others_do(client: str) -> None:
    with Pair("rds") as pair:
        ledger.create(pair)
        Director(pair).create_deployment()
        with Crew(client, Config.of(pair), processes=1, threads=2, pause_s=math.inf) as crew:
            crew.wait_writing(20)
            wait_until(lambda: CLIENTS[client].has_seen(crew.config), timeout_s=20, what="the deployment is seen")
            crew.stop()
            report = crew.report()
        assert sorted(report.acknowledged) == [(0, 0, 1), (0, 1, 1)]
        assert dict(report.errors) == {}
        assert sorted(row.key for row in ledger.read(pair.blue)) == sorted(report.acknowledged)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.full
def test_a_quick_run() -> None:
    result = switchover.run(quick=True)
    (table,) = result.tables
    rows = {row["client"]: row for row in table.rows}
    assert rows.keys() <= CLIENTS.keys()
    for client in ("bgpool", "oracle"):
        row = rows[client]
        # Errors are not checked: on a busy machine a process may be cut before it has read about the switchover.
        assert (row["lost"], row["split"], row["never"]) == (0, 0, 0), row
        assert isinstance(row["excess_s"], float)
        assert row["excess_s"] < 5
    for row in table.rows:
        assert row.keys() == {column.key for column in table.columns}

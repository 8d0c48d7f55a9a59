"""The benchmarks of costs: their counts are correct, and a small run of each has a result."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import django_costs, growth, processes
from benchmarks.arrivals import Attempt, attempts, most_at_once
from benchmarks.coroutines_held import WAYS, measure_held
from benchmarks.footprint import cpu_s, memory_of, parent_of, threads_of
from benchmarks.forked_workers import Call, ForkedWorkers, WorkerReporter
from benchmarks.storm_figures import Storm
from benchmarks.storm_run import CASES, CLIENTS, SCHEDULE, THREADS, Size, measure
from bgpool.core.engine import Engine
from bgpool.lab import LabError, Pair
from tests.waiting import wait_until

LOG = """\
2026-01-02 03:04:05.100 UTC [11] [unknown]@[unknown] [unknown] 127.0.0.1 LOG:  connection received: host=127.0.0.1
2026-01-02 03:04:05.101 UTC [12] [unknown]@[unknown] [unknown] 127.0.0.1 LOG:  connection received: host=127.0.0.1
2026-01-02 03:04:05.102 UTC [11] app@app [unknown] 127.0.0.1 LOG:  connection authenticated: identity="app" method=scram
2026-01-02 03:04:05.103 UTC [11] app@app [unknown] 127.0.0.1 LOG:  connection authorized: user=app database=app
2026-01-02 03:04:05.104 UTC [12] truth@app [unknown] 127.0.0.1 FATAL:  pg_hba.conf rejects connection
2026-01-02 03:04:05.105 UTC [1] LOG:  checkpoint starting: time
2026-01-02 03:04:05.106 UTC [11] [unknown]@[unknown] [unknown] 127.0.0.1 LOG:  connection received: host=127.0.0.1
"""


def test_a_log_shows_each_session_and_its_end() -> None:
    found = attempts(LOG.splitlines())
    assert [(each.user, each.ok) for each in found] == [("app", True), ("truth", False), ("", False)]
    assert round(found[0].ended_s - found[0].received_s, 3) == 0.003
    # The number of a process is used again: what comes later is no news of the attempt before.
    assert found[2].received_s == found[2].ended_s


def test_what_overlaps_is_counted_at_once() -> None:
    def between(begin_s: float, end_s: float) -> Attempt:
        return Attempt("app", begin_s, end_s, ok=True)

    assert most_at_once([]) == 0
    assert most_at_once([between(0, 1), between(2, 3)]) == 1
    assert most_at_once([between(0, 3), between(1, 2), between(2, 4)]) == 3
    # Within one ms, as the log has it.
    assert most_at_once([between(1, 1)]) == 1


def storm(workers: int, calls: list[Call], came: list[Attempt]) -> Storm:
    """One of which the way to green was open at 12 s, and on the wall clock at 1012 s."""
    return Storm(workers, THREADS, 1.0, 8, 10.0, 12.0, 1000.0, calls, came)


def test_a_storm_is_summarised_in_figures() -> None:
    before = [Call(0, 0, at / 100, at / 100, ok=True) for at in range(900, 1000)]
    failed = Call(0, 0, 10.0, 11.0, ok=False)
    after = [Call(0, thread, 11.0, 12.5 + thread / 10, ok=True) for thread in range(THREADS)]
    flood = [Call(0, 0, 14.0, 14.0 + at / 100, ok=True) for at in range(20)]
    seen = storm(1, [*before, failed, *after, *flood], [Attempt("app", 1012.05, 1012.35, ok=True)])
    figures = seen.figures()
    assert (figures["errors"], figures["refused"], figures["most_at_once"]) == (1, 0, 1)
    assert figures["first_median_s"] == figures["first_last_s"] == pytest.approx(0.5)
    assert figures["every_thread_s"] == pytest.approx(1.2)
    # Ten in 0.1 s before, so nine of them.
    assert figures["full_s"] == pytest.approx(2.08)
    assert [row["attempts"] for row in seen.bins()[:5]] == [1, 0, 0, 0, 0]
    assert [row["at_once"] for row in seen.bins()[:5]] == [1, 1, 1, 1, 0]


def test_who_does_not_come_back_has_no_time() -> None:
    figures = storm(2, [Call(0, 0, 12.0, 13.0, ok=True)], []).figures()
    assert (figures["first_median_s"], figures["first_last_s"], figures["every_thread_s"]) == (None, None, None)


def test_a_fleet_reports_and_ends() -> None:
    def live(reporter: WorkerReporter) -> None:
        reporter.note(reporter.number, 1.0, 2.0, ok=reporter.number == 0)
        reporter.ready()
        reporter.wait_turn()
        reporter.note(reporter.number, 3.0, 4.0, ok=True)

    with ForkedWorkers(2, live) as workers:
        workers.wait_ready(10)
        assert [call.ok for call in workers.calls()].count(True) == 1
        workers.release(2)
        deadline_s = time.monotonic() + 10
        while len(workers.calls()) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert {parent_of(pid) for pid in workers.pids} == {os.getpid()}
    assert len(workers.pids) == 2
    for pid in workers.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_fails_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    def live(reporter: WorkerReporter) -> None:
        raise RuntimeError(f"worker {reporter.number}")

    with ForkedWorkers(1, live) as workers, pytest.raises(LabError, match="a worker ended"):
        workers.wait_ready(10)
    assert "RuntimeError: worker 0" in capfd.readouterr().err


def test_the_cost_of_this_process() -> None:
    before_s = cpu_s(os.getpid())
    # It is counted in ticks of the clock.
    wait_until(lambda: bool(sum(range(1_000_000))) and cpu_s(os.getpid()) > before_s)
    assert 1 < memory_of([os.getpid()]).pss_mb <= memory_of([os.getpid()]).rss_mb
    assert threads_of(os.getpid()) >= 1


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.full
def test_a_small_storm() -> None:
    figures = measure(CASES[0], CLIENTS[0], Size(2, 50.0, 0.5, replace(SCHEDULE, scale=0.4))).figures()
    assert figures["held_before"] == 2 * THREADS
    assert isinstance(figures["attempts"], int)
    assert figures["attempts"] >= 2 * THREADS
    assert figures["every_thread_s"] is not None


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.full
def test_one_worker_under_bgpool() -> None:
    with processes.servers() as director:
        cost = processes.measure(director, "bgpool", 1, processes.Size((1,), 1.0, 1.0, 1.0))
    assert cost.connections == 2
    assert 0 < cost.created.statements_per_s < cost.prepared.statements_per_s


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("engine", list(Engine))
def test_every_way_of_djangos_has_a_row(engine: Engine, tmp_path: Path) -> None:
    with Pair(engine=engine.value) as pair:
        bg_options = {"bg_resolver": pair.resolver, "bg_run_dir": tmp_path / "run"}
        with django_costs.all_ways(pair, bg_options) as ways:
            rows = django_costs.rows(ways, rounds=3, calls=20)
    assert len(rows) == (5 if engine is Engine.POSTGRESQL else 4)
    for row in rows:
        assert row.keys() == {column.key for column in django_costs.COLUMNS}
        assert isinstance(row["theirs_us"], float)
        assert row["theirs_us"] > 0


@pytest.mark.slow
def test_more_endpoints_cost_more() -> None:
    few, many = growth.endpoints_row(2, 40), growth.endpoints_row(64, 40)
    assert isinstance(few["bytes"], int)
    assert isinstance(many["bytes"], int)
    assert few["bytes"] < many["bytes"]


@pytest.mark.parametrize("way", WAYS)
def test_held_coroutines_go_on(way: str) -> None:
    figures = measure_held("uvloop", way, 20, times=1)
    assert 0 < float(str(figures["median_ms"])) <= float(str(figures["last_ms"])) < 5000
    assert float(str(figures["waiting_ms"])) > 0

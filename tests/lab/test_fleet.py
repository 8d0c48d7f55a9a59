"""A fleet of real monitors: a switchover that loses its leader in ``make test``, a healthy one and other faults in
``make test-full``.

For thirty hosts run ``bgpool lab fleet``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.phase import Phase
from bgpool.lab.fleet import BUS_FAULTS, PHASES, Fault, Plan, Result, findings_of, heard_findings, play
from bgpool.lab.fleet.results import Host, Load
from bgpool.lab.fleet.traffic import Query, ServerSession, busiest, most_at_once, read_log

LOG = """\
2026-01-02 03:04:05.100 UTC [11] [unknown] [unknown] 127.0.0.1 LOG:  connection received: host=127.0.0.1 port=40000
2026-01-02 03:04:05.103 UTC [11] monitor_7@app [unknown] 127.0.0.1 LOG:  connection authorized: user=monitor_7
2026-01-02 03:04:05.103 UTC [12] app@app [unknown] 127.0.0.1 LOG:  connection authorized: user=app database=app
2026-01-02 03:04:05.104 UTC [11] monitor_7@app bgpool-monitor 127.0.0.1 LOG:  statement: SELECT n.nspname
2026-01-02 03:04:05.105 UTC [11] monitor_7@app bgpool-monitor 127.0.0.1 LOG:  execute <u>: SELECT pg_is_in_recovery(),
	1 FROM show_topology('bgpool-1.0')
2026-01-02 03:04:05.105 UTC [12] app@app psql 127.0.0.1 LOG:  execute <unnamed>: SELECT pg_is_in_recovery()
2026-01-02 03:04:06.000 UTC [11] monitor_7@app bgpool-monitor 127.0.0.1 FATAL:  terminating connection due to command
2026-01-02 03:04:06.000 UTC [11] monitor_7@app bgpool-monitor 127.0.0.1 LOG:  disconnection: session time: 0:00:00.897
2026-01-02 03:04:06.500 UTC [13] monitor_12@app [unknown] 127.0.0.1 FATAL:  pg_hba.conf rejects connection for host
2026-01-02 03:04:07.000 UTC [14] monitor_12@app [unknown] 127.0.0.1 LOG:  connection authorized: user=monitor_12
"""
#: 2026-01-02 03:04:00 UTC.
BASE_S = 1767323040.0


def test_a_servers_log_has_the_queries_and_the_sessions(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LOG)
    traffic = read_log(log)
    questions = [(round(one.at_s - BASE_S, 3), one.host, one.refused) for one in traffic.questions]
    assert questions == [(5.105, 7, False), (6.5, 12, True)]
    # A session that never ends lasts forever.
    stays = [(round(one.from_s - BASE_S, 3), round(one.to_s - BASE_S, 3), one.host) for one in traffic.stays]
    assert stays == [(5.103, 6.0, 7), (7.0, float("inf"), 12)]
    assert traffic.between(BASE_S + 6, BASE_S + 7) == traffic.questions[1:]


def test_sessions_are_counted_at_a_time() -> None:
    stays = [
        ServerSession(1.0, 2.0, 1),
        ServerSession(2.0, 3.0, 2),
        ServerSession(1.5, 9.0, 3),
        ServerSession(0.0, float("inf"), 4),
    ]
    assert most_at_once(stays, 0.0, 10.0) == 3
    assert most_at_once(stays, 3.5, 10.0) == 2
    assert most_at_once(stays, 9.5, 10.0) == 1


def test_the_busiest_window_slides() -> None:
    questions = [Query(at_s, 1) for at_s in (0.0, 0.9, 1.0, 1.1, 1.8, 5.0)]
    assert busiest(questions, 1.0) == 4
    assert busiest(questions, 0.05) == 1
    assert busiest([], 1.0) == 0


# -- the judgement -----------------------------------------------------------------------------------------------

LOADS = {
    "CREATED": Load(5.0, 10, 10, 0, 2, 1.0),
    "PREPARATION": Load(3.0, 50, 50, 0, 2, 11.0),
    "IN_PROGRESS": Load(3.0, 190, 170, 120, 9, 60.0),
    "POST": Load(4.0, 70, 70, 3, 2, 11.0),
    "COMPLETED": Load(4.5, 5, 5, 0, 1, 1.0),
}
HOST = Host(0.0, 0.0, 0.05, 0.4, "COMPLETED", 0)
CLEAN = Result(
    hosts=3, fleet=True, fault="", struck=None, rows=100, lost=0, doubled=0, split=0, half=0, errors=0, examples=(),
    down_s=2.6, window_s=1.0, loads=LOADS, per_host=(HOST, replace(HOST, in_progress_s=0.01), HOST), leaders=(1,),
)  # fmt: skip
KILLED = replace(CLEAN, fault="kill leader in IN_PROGRESS", struck=1)


def with_load(result: Result, phase: str, **changes: float) -> Result:
    return replace(result, loads={**result.loads, phase: replace(result.loads[phase], **changes)})  # type: ignore[arg-type]  # numbers


def with_host(result: Result, number: int, **changes: object) -> Result:
    hosts = list(result.per_host)
    hosts[number] = replace(hosts[number], **changes)  # type: ignore[arg-type]  # the tests choose the fields
    return replace(result, per_host=tuple(hosts))


def test_a_clean_result_has_no_findings() -> None:
    assert findings_of(CLEAN, CLEAN) == []
    assert findings_of(KILLED, CLEAN) == []


@pytest.mark.parametrize(
    ("result", "finding"),
    [
        (replace(CLEAN, lost=1), "rows: 1 lost"),
        (replace(CLEAN, split=2), "2 split"),
        (replace(CLEAN, errors=1, examples=("worker 0: boom",)), "1 callers saw an error"),
        (with_host(CLEAN, 2, last_phase="POST"), "host 2 is at POST at the end"),
        (with_host(CLEAN, 2, in_progress_s=None), "never learned"),
        (with_host(CLEAN, 2, release_s=None), "never learned"),
        (with_host(CLEAN, 2, release_s=0.26), "released 0.260 s after the evidence"),
        (with_host(KILLED, 2, release_s=1.26), "released 1.260 s after the evidence"),
        (with_host(KILLED, 1, release_s=3.3), "host of the leader was released after 3.3 s"),
        (with_host(KILLED, 1, release_s=None), "host of the leader was released after None"),
        (with_load(CLEAN, "CREATED", questions=14), "CREATED: 14 queries in 5.0 s, allowed: 13"),
        (with_load(CLEAN, "IN_PROGRESS", of_leaders=213), "213 queries of the leader"),
        (with_load(CLEAN, "PREPARATION", connections=5), "5 connections of monitors"),
        (with_load(KILLED, "POST", busiest_per_s=219), "219 queries per second at a server"),
    ],
)
def test_every_fault_is_found(result: Result, finding: str) -> None:
    found = findings_of(result, CLEAN)
    assert len(found) == 1, found
    assert finding in found[0]


def test_the_host_of_a_killed_leader_may_be_late_and_the_others_may_not() -> None:
    assert findings_of(with_host(KILLED, 1, release_s=3.2), CLEAN) == []
    assert findings_of(with_host(KILLED, 0, release_s=3.2), CLEAN) != []


def test_without_a_bus_hosts_may_be_as_late_as_their_turns() -> None:
    gone = replace(CLEAN, fault="bus kill in IN_PROGRESS", hosts=400)
    assert findings_of(with_host(gone, 0, release_s=3.2), CLEAN) == []
    assert findings_of(with_host(gone, 0, release_s=3.3), CLEAN) != []


def test_receipt_of_phases_is_judged_by_the_median_of_switchovers() -> None:
    late = with_host(CLEAN, 2, in_progress_s=0.2)
    assert heard_findings([CLEAN, CLEAN, late]) == []
    assert "IN_PROGRESS 200 ms after the first" in heard_findings([CLEAN, late, late])[0]
    # A leader that was killed before it published gives no measurement.
    assert heard_findings([replace(late, fault=KILLED.fault)]) == []


# -- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kill-leader", "LATER"], "phase 'LATER': CREATED"),
        (["--bus-fault", "melt", "POST"], "--bus-fault melt: kill, stop"),
        (["--kill-leader", "POST", "--stop-leader", "POST"], "one of --kill-leader"),
        (["--no-fleet", "--kill-leader", "POST"], "without a fleet there is no leader"),
    ],
)
def test_an_impossible_plan_is_refused(arguments: list[str], text: str) -> None:
    outcome = CliRunner().invoke(app, ["lab", "fleet", *arguments])
    assert outcome.exit_code == 2
    assert text in outcome.output


def test_a_plan_names_its_impossible_values() -> None:
    with pytest.raises(ValueError, match="hosts must be 1 or more"):
        Plan(0)
    assert Plan(fault=None).end_s < Plan(fault=Fault("stop leader", Phase.COMPLETED)).end_s


# -- real monitors -----------------------------------------------------------------------------------------------

#: The number of queries that one host sends at its intervals: to both roles once a second, and ten times a second in a
#: switchover; before the release, to green five times as often.
ALONE = replace(
    CLEAN,
    hosts=1,
    fleet=False,
    loads={
        "CREATED": Load(1.0, 2, 0, 0, 2, 1.0),
        "PREPARATION": Load(1.0, 20, 0, 0, 2, 10.0),
        "IN_PROGRESS": Load(1.0, 60, 0, 0, 2, 50.0),
        "POST": Load(1.0, 20, 0, 0, 2, 10.0),
        "COMPLETED": Load(1.0, 2, 0, 0, 2, 1.0),
    },
)
KILLED_LEADER = Fault("kill leader", Phase.IN_PROGRESS)
FAULTS = [
    Fault(what, phase)
    for what in ("kill leader", "stop leader", *(f"bus {fault}" for fault in BUS_FAULTS))
    for phase in PHASES
    if (what, phase) != ("kill leader", Phase.IN_PROGRESS)
]


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(6, calm_s=2.0), id="healthy", marks=pytest.mark.full),
        pytest.param(Plan(6, fault=KILLED_LEADER, calm_s=1.0), id="kill-leader-in-progress"),
        *(
            pytest.param(Plan(8, fault=fault), id=str(fault).replace(" ", "-"), marks=pytest.mark.full)
            for fault in FAULTS
        ),
    ],
)
def test_a_fleet_goes_through_a_switchover(plan: Plan) -> None:
    told: list[str] = []
    result = play(plan, told.append)
    assert findings_of(result, ALONE) == [], (result, told)
    assert result.rows > 100, result
    # There is at least one leader; a killed leader has a successor.
    assert len(set(result.leaders)) >= (2 if "leader" in result.fault else 1), result


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(400)
def test_hosts_without_a_fleet_send_queries_in_proportion_to_their_number() -> None:
    result = play(Plan(6, fleet=False, calm_s=3.0))
    assert findings_of(result) == [], result
    assert result.leaders == ()
    # Hosts without a fleet exceed the limits that apply to a fleet.
    found = findings_of(replace(result, fleet=True), ALONE)
    assert any("PREPARATION" in finding and "connections" in finding for finding in found), found
    assert any("PREPARATION" in finding and "queries" in finding for finding in found), found

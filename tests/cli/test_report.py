"""The status of a deployment has every obstacle and no other, and reading it changes nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import bgpool
from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.limits import ROW_STALE_S
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Notice
from bgpool.errors import ConfigurationError, SegmentError
from bgpool.report import Fleet, find
from bgpool.segment import table
from bgpool.segment.paths import prepare_run_dir
from bgpool.segment.presence import Presence, workers
from bgpool.segment.table import Usage
from tests.cli.conftest import BLUE, GREEN, Hand, StartWorker
from tests.pools.callers import wait_until


@pytest.fixture
def beating(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> Hand:
    """A monitor whose heartbeats count however slow the machine is."""
    monkeypatch.setattr("bgpool.report.reading.HEARTBEAT_STALE_S", 3600.0)
    return hand


def missing(hand: Hand) -> str:
    return "\n".join(bgpool.status(hand.snapshot.bg_id, hand.files.directory).missing)


def without_workers(text: str) -> str:
    """The obstacles other than missing workers, of which many tests need none."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("no worker: "))


@pytest.mark.usefixtures("beating")
def test_a_host_that_may_be_switched_over(start_worker: StartWorker, run_dir: Path) -> None:
    pid = start_worker(in_use=2, idle=3)
    status = bgpool.status("Ledger ", run_dir)
    assert (status.ready, status.missing) == (True, ())
    assert (status.bg_id, status.phase, status.run_dir) == ("ledger", Phase.CREATED, str(run_dir))
    assert (status.monitor.state, status.monitor.pid, status.monitor.term) == ("alive", os.getpid(), 3)
    (endpoint,) = status.endpoints
    assert (endpoint.blue, endpoint.port, endpoint.blue_addresses) == (BLUE, 5432, ("10.0.0.1",))
    assert (endpoint.green, endpoint.green_addresses) == (GREEN, ("10.0.0.2",))
    (worker,) = status.workers
    assert (worker.pid, worker.behind, worker.in_use, worker.idle, worker.stale) == (pid, 0, 2, 3, False)
    assert status.totals.workers == 1
    assert (status.timer_ms, status.offset_ms, status.last_switchover) == (None, None, None)


def test_a_host_without_workers_is_not_ready(beating: Hand) -> None:
    assert missing(beating).startswith("no worker: no process on this host uses a pool with this bg_id")


def test_pools_that_take_no_part(beating: Hand, start_worker: StartWorker, run_dir: Path) -> None:
    start_worker()
    pid = start_worker(taking_part=2, outside=1)
    assert missing(beating).startswith(f"1 of 2 workers have a pool that takes no part: pid {pid}; ")
    status = bgpool.status("ledger", run_dir)
    assert not status.ready
    assert (status.totals.taking_part, status.totals.outside) == (3, 1)


@pytest.mark.usefixtures("beating")
def test_pools_behind_a_proxy_are_noted(start_worker: StartWorker, run_dir: Path) -> None:
    start_worker()
    pid = start_worker(behind_proxy=1)
    status = bgpool.status("ledger", run_dir)
    assert status.ready
    (note,) = status.notes
    assert note.startswith(f"1 of 2 workers have a pool behind a proxy, which bgpool leaves alone: pid {pid};")


def test_password_callables_that_hang(beating: Hand, start_worker: StartWorker, run_dir: Path) -> None:
    start_worker()
    pid = start_worker(stuck_passwords=1)
    assert missing(beating).startswith(
        f"the password callable hangs in 1 of 2 workers: pid {pid}; it has not returned "
    )
    assert [worker.stuck_passwords for worker in bgpool.status("ledger", run_dir).workers] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phase": Phase.NOT_CREATED, "ready": False}, "no deployment is seen in the metadata"),
        ({"phase": Phase.COMPLETED}, "the switchover is over"),
        ({"phase": Phase.PREPARATION}, "under way: PREPARATION"),
        ({"phase": Phase.IN_PROGRESS}, "under way: IN_PROGRESS"),
        ({"ready": False}, "the inventory is not complete"),
        ({"ready": False, "twins": ()}, f"no green counterpart is known for {BLUE}"),
        ({"ready": False, "target_reading": None}, "the status of green is not known yet"),
        ({"ready": False, "hosts": (), "twins": ()}, "no blue endpoint is seen\nno green endpoint is seen"),
        ({"target_read_only": None}, "green does not answer the monitor"),
        ({"source_read_only": None}, "blue does not answer the monitor"),
    ],
)
def test_what_a_deployment_lacks(beating: Hand, changes: dict[str, object], reason: str) -> None:
    beating.publish(**changes)
    assert reason in without_workers(missing(beating))


def test_addresses_that_are_missing(beating: Hand) -> None:
    blue, green = beating.snapshot.hosts
    beating.publish(ready=False, hosts=(blue, replace(green, addresses=())))
    assert without_workers(missing(beating)) == f"no address is known for {GREEN}"


def test_the_remedy_that_the_monitor_knows(beating: Hand) -> None:
    said = Notice(1, 20, "bgpool.monitor", "no metadata:\n  GRANT what it takes", "no_metadata")
    beside = Notice(2, 20, "bgpool.monitor", "this host leads its fleet", "fleet_joined")
    beating.publish(phase=Phase.NOT_CREATED, notices=(said, beside))
    assert "the monitor reports: no metadata: GRANT what it takes" in missing(beating)


def test_a_monitor_that_is_silent(run_dir: Path) -> None:
    hand = Hand(run_dir, "ledger")
    hand.writer._beat[0] = time.monotonic_ns() - 12 * 10**9
    status = bgpool.status("ledger", run_dir)
    assert (status.monitor.state, status.ready) == ("silent", False)
    assert status.monitor.age_s is not None
    assert status.monitor.age_s >= 12
    assert f"the monitor (pid {os.getpid()}, term 3) has had no heartbeat for" in missing(hand)


def test_a_monitor_that_never_began(run_dir: Path, start_worker: StartWorker) -> None:
    prepare_run_dir(run_dir)
    start_worker()
    status = bgpool.status("ledger", run_dir)
    assert (status.monitor.state, status.phase, len(status.workers)) == ("none", None, 1)
    assert "no monitor is running" in status.missing[0]
    assert [deployment.status().bg_id for deployment in find(None, run_dir)] == ["ledger"]


def test_a_worker_that_has_not_caught_up(beating: Hand, start_worker: StartWorker, run_dir: Path) -> None:
    start_worker()
    pid = start_worker(applies=False)
    beating.publish()
    beating.publish()
    wait_until(lambda: bgpool.status("ledger", run_dir).totals.behind == 1)
    assert missing(beating) == f"the newest snapshot is not applied by 1 of 2 workers: pid {pid}"
    assert {w.pid: w.behind for w in bgpool.status("ledger", run_dir).workers}[pid] == 2


def test_a_worker_that_does_not_speak(beating: Hand, run_dir: Path) -> None:
    presence = Presence(beating.files)
    old_ns = time.monotonic_ns() - int((ROW_STALE_S + 60) * 1e9)
    presence._table.write_row(0, 4711, old_ns, Usage(sequence=1))
    (worker,) = bgpool.status("ledger", run_dir).workers
    assert worker.stale
    assert f"1 of 1 workers have not reported for {ROW_STALE_S + 60:.0f}." in missing(beating)
    presence.close()


def test_more_workers_than_can_be_seen(beating: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", 2)
    monkeypatch.setattr("bgpool.report.reasons.ROWS", 2)
    crowd = [Presence(beating.files) for _ in range(3)]
    for presence in crowd:
        presence.write(Usage(sequence=beating.writer.sequence))
    assert "all 2 rows of the table of workers are taken" in missing(beating)
    for presence in crowd:
        presence.close()


def test_many_pids_are_not_all_named(beating: Hand, start_worker: StartWorker) -> None:
    for _ in range(10):
        start_worker(applies=False)
    beating.publish()
    assert missing(beating).endswith(" and 2 more")


def test_the_place_in_a_fleet(beating: Hand, start_worker: StartWorker, run_dir: Path) -> None:
    start_worker()
    assert bgpool.status("ledger", run_dir).fleet is None
    beating.publish(fleet=FleetView(FleetRole.FOLLOWER, "2f7c1b90a4d85e63", 30, 1, "", 2))
    wait_until(lambda: bgpool.status("ledger", run_dir).ready)
    status = bgpool.status("ledger", run_dir)
    assert status.fleet == Fleet("follower", "2f7c1b90a4d85e63", None, 30, 2, "")
    assert status.notes == ()
    beating.writer.note_bus(time.monotonic_ns() - 7 * 10**9)
    heard = bgpool.status("ledger", run_dir).fleet
    assert heard is not None
    assert heard.age_s is not None
    assert 7 <= heard.age_s < 60


def test_a_host_that_asks_the_database_itself_is_noted(beating: Hand, start_worker: StartWorker, run_dir: Path) -> None:
    start_worker()
    beating.publish(fleet=FleetView(FleetRole.DIRECT, reason="no message for 1.5 s", fallbacks=1))
    wait_until(lambda: bgpool.status("ledger", run_dir).ready)
    status = bgpool.status("ledger", run_dir)
    assert status.fleet == Fleet("direct", "", None, None, 1, "no message for 1.5 s")
    assert status.notes == ("this host has a fleet's bus, but queries the database itself: no message for 1.5 s",)
    # Every host does, until there is a deployment.
    beating.publish(phase=Phase.NOT_CREATED)
    assert bgpool.status("ledger", run_dir).notes == ()


def test_what_a_silent_monitor_has_said_of_its_fleet_is_no_note(run_dir: Path) -> None:
    hand = Hand(run_dir, "ledger")
    hand.publish(fleet=FleetView(FleetRole.DIRECT, reason="no message for 1.5 s"))
    hand.writer._beat[0] = time.monotonic_ns() - 12 * 10**9
    status = bgpool.status("ledger", run_dir)
    assert status.monitor.state == "silent"
    assert status.fleet is not None
    assert status.notes == ()


def test_a_switchover_under_way(beating: Hand, run_dir: Path) -> None:
    beating.enter(Phase.PREPARATION)
    beating.enter(Phase.IN_PROGRESS)
    status = bgpool.status("ledger", run_dir)
    assert status.offset_ms is not None
    assert status.offset_ms >= 0
    assert status.timer_ms is not None
    assert 0 < status.timer_ms <= 60_000
    assert [event.event for event in status.events] == ["PREPARATION", "IN_PROGRESS"]
    assert status.events[0].offset_ms <= 0 == status.events[1].offset_ms


def test_the_last_switchover(beating: Hand, run_dir: Path) -> None:
    for phase, evidence in (("PREPARATION", ""), ("IN_PROGRESS", ""), ("POST", "green promoted"), ("COMPLETED", "DNS")):
        beating.enter(Phase[phase], evidence)
    last = bgpool.status("ledger", run_dir).last_switchover
    assert last is not None
    assert (last.outcome, last.evidence) == ("completed", "green promoted")
    assert last.released_ms is not None
    assert 0 <= last.released_ms <= last.duration_ms
    assert last.at.endswith("Z")


def test_the_last_switchover_counts_from_its_beginning_where_the_hold_was_not_read(
    beating: Hand, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beating.enter(Phase.NOT_CREATED)
    at_ns, mono_ns = time.time_ns() + 60 * 10**9, time.monotonic_ns() + 60 * 10**9
    monkeypatch.setattr("tests.cli.conftest.time.time_ns", lambda: at_ns)
    monkeypatch.setattr("tests.cli.conftest.time.monotonic_ns", lambda: mono_ns)
    beating.enter(Phase.POST, "metadata")
    beating.enter(Phase.COMPLETED, "DNS")
    last = bgpool.status("ledger", run_dir).last_switchover
    assert last is not None
    assert (last.duration_ms, last.released_ms) == (0, 0), "both from POST, and not from NOT_CREATED a minute before"


def test_a_switchover_that_is_over_by_the_timer(beating: Hand, run_dir: Path) -> None:
    for phase, evidence in ((Phase.PREPARATION, ""), (Phase.IN_PROGRESS, ""), (Phase.COMPLETED, "timer")):
        beating.enter(phase, evidence)
    status = bgpool.status("ledger", run_dir)
    assert status.by_timer
    assert "over by the timer, and nothing has shown that green was promoted: look at AWS" in missing(beating)
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED):
        beating.enter(phase, {Phase.POST: "green promoted", Phase.COMPLETED: "timer"}.get(phase, ""))
    # Callers were released because of evidence; late DNS is a different matter.
    assert not bgpool.status("ledger", run_dir).by_timer


def test_the_last_switchover_went_back(beating: Hand, run_dir: Path) -> None:
    beating.enter(Phase.PREPARATION)
    beating.enter(Phase.CREATED, event="CREATED (rollback)")
    last = bgpool.status("ledger", run_dir).last_switchover
    assert last is not None
    assert (last.outcome, last.released_ms, last.evidence) == ("rolled back", None, "")


@pytest.mark.parametrize(
    "text",
    ["", "[7]", "[{}]", '[{"events": 7}]', '[{"outcome": "x", "events": [{"event": []}]}]',
     '[{"outcome": "x", "events": [{"event": "POST", "at_unix_ns": 1e400, "offset_ms": 0}]}]',
     '[{"outcome": "x", "events": [{"event": "POST", "at_unix_ns": 1}, {"event": "COMPLETED"}]}]'],
)  # fmt: skip
def test_a_history_that_is_none(beating: Hand, run_dir: Path, text: str) -> None:
    beating.files.history.write_text(text)
    beating.files.history.chmod(0o600)
    assert bgpool.status("ledger", run_dir).last_switchover is None


def test_a_bg_id_that_file_names_hide(run_dir: Path) -> None:
    names = ["orders", "Größe / Maß", "a" * 100]
    hands = [Hand(run_dir, name.lower()) for name in names]
    assert sorted(d.status().bg_id for d in find(None, run_dir)) == sorted(name.lower() for name in names)
    assert bgpool.status(names[1], run_dir).phase is Phase.CREATED
    for hand in hands:
        hand.enter(Phase.PREPARATION)
        hand.enter(Phase.COMPLETED)
        hand.writer.remove()
    # No process is left; the history is.
    assert sorted(d.status().bg_id for d in find(None, run_dir)) == sorted(name.lower() for name in names)
    assert bgpool.status(names[1], run_dir).last_switchover is not None


@pytest.mark.parametrize("harm", ["flipped header", "short", "link", "open to others", "another bg_id's"])
def test_a_segment_that_is_not_to_be_trusted(beating: Hand, run_dir: Path, tmp_path: Path, harm: str) -> None:
    path = beating.files.segment
    if harm == "flipped header":
        with path.open("r+b") as file:
            file.write(b"X")
    elif harm == "short":
        os.truncate(path, 100)
    elif harm == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "open to others":
        path.chmod(0o666)
    else:
        Hand(tmp_path / "other", "orders").files.segment.rename(path)
    status = bgpool.status("ledger", run_dir)
    assert (status.phase, status.ready) == (None, False)
    assert status.missing[0].startswith("the segment is refused: ")


def test_a_table_that_is_not_to_be_trusted_stays_as_it_is(beating: Hand, run_dir: Path) -> None:
    beating.files.workers.write_bytes(b"\xff" * table.FILE_BYTES)
    beating.files.workers.chmod(0o600)
    status = bgpool.status("ledger", run_dir)
    assert "the table of workers is refused" in status.missing[0]
    assert status.phase is Phase.CREATED
    assert beating.files.workers.read_bytes() == b"\xff" * table.FILE_BYTES
    with pytest.raises(SegmentError):
        workers(beating.files)


def test_nothing_is_there(tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    prepare_run_dir(empty)
    for directory in (absent, empty):
        assert find(None, directory) == ()
        status = bgpool.status("orders", directory)
        assert status.missing == ("no process on this host uses this bg_id",)
        assert (status.phase, status.monitor.state, status.workers) == (None, "none", ())
    assert not absent.exists()
    assert list(empty.iterdir()) == []


def test_files_of_others_are_passed_over(run_dir: Path) -> None:
    prepare_run_dir(run_dir)
    for name in ("README", "x.draft-3", ".segment", "~short.segment", "UPPER.segment", "a.segment.bak", "x.log"):
        (run_dir / name).touch()
    assert find(None, run_dir) == ()


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("harm", ["open to all", "a link", "a file"])
def test_a_directory_that_is_not_to_be_trusted(run_dir: Path, tmp_path: Path, harm: str) -> None:
    path = run_dir
    if harm == "open to all":
        path.chmod(0o755)
    elif harm == "a link":
        path = tmp_path / "link"
        path.symlink_to(run_dir)
    else:
        path = tmp_path / "file"
        path.touch()
    for look in (lambda: bgpool.status("ledger", path), lambda: find(None, path)):
        with pytest.raises(SegmentError, match="run directory"):
            look()


def test_a_wrong_call(run_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="bg_id"):
        bgpool.status(" ", run_dir)
    with pytest.raises(ConfigurationError, match="bg_run_dir"):
        bgpool.status("1", "")


_AUDITED = """
import sys, os
sys.argv = ["bgpool", "status", "--run-dir", sys.argv[1], *sys.argv[2:]]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "fcntl.lockf", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.kill"}
seen = []
def audit(event, args):
    # A number is a descriptor that was open before: standard output.
    if event == "open" and args[2] & WRITES and not isinstance(args[0], int):
        seen.append((event, args))
    # F_OFD_SETLK and its kin: 37, 38; F_SETLK: 6, 7.
    elif event == "fcntl.fcntl" and args[1] in (6, 7, 37, 38):
        seen.append((event, args))
    # LOCK_SH | LOCK_NB, 1 | 4, asks who is there.
    elif event == "fcntl.flock" and args[1] != 5:
        seen.append((event, args))
    elif event.startswith("socket.") or event in CHANGES:
        seen.append((event, args))
sys.addaudithook(audit)
from bgpool.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
drivers = {"psycopg", "psycopg_pool", "pymysql", "dbutils", "boto3", "asyncio", "ssl", "typer", "filelock"}
print(code, seen, sorted(drivers & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("options", [[], ["--json"], ["--ready"], ["--bg-id", "ledger"]], ids=" ".join)
def test_to_look_connects_to_nothing_changes_nothing_and_loads_no_driver(
    hand: Hand, start_worker: StartWorker, run_dir: Path, environment: dict[str, str], options: list[str]
) -> None:
    start_worker()
    hand.enter(Phase.PREPARATION)
    hand.enter(Phase.COMPLETED)
    before = _listing(run_dir)
    done = subprocess.run(
        [sys.executable, "-B", "-c", _AUDITED, str(run_dir), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == f"{1 if options == ['--ready'] else 0} [] []\n"
    assert "ledger" in done.stdout
    assert _listing(run_dir) == before


def _listing(directory: Path) -> list[tuple[str, int, int]]:
    found = [(path.name, path.lstat()) for path in sorted(directory.iterdir())]
    # What is mapped changes all the time without a trace in its time of modification.
    return [(name, entry.st_ino, stat.S_IMODE(entry.st_mode)) for name, entry in found]


def test_public_names_are_there_at_their_first_use() -> None:
    program = "import bgpool; print([n for n in bgpool.__all__ if n not in dir(bgpool) or not hasattr(bgpool, n)])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    with pytest.raises(AttributeError, match="nothing"):
        _ = bgpool.nothing


def test_the_timer_that_ran_out_without_a_monitor(beating: Hand, run_dir: Path) -> None:
    beating.enter(Phase.PREPARATION)
    beating.publish(deadline_ns=time.monotonic_ns() - 5 * 10**9)
    status = bgpool.status("ledger", run_dir)
    assert status.timer_ms is not None
    assert status.timer_ms <= -5000


def test_a_counterpart_that_is_not_in_the_inventory(beating: Hand, run_dir: Path) -> None:
    beating.publish(twins=((BLUE, "elsewhere"),), ready=False)
    (endpoint,) = bgpool.status("ledger", run_dir).endpoints
    assert (endpoint.green, endpoint.green_addresses) == ("", ())

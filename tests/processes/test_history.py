"""The timelines of the last switchovers as JSON: bounded, idempotent, and validated when read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bgpool.core.limits import HISTORY_BYTES, HISTORY_RECORDS
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot, TimelineEntry
from bgpool.segment import history
from bgpool.segment.paths import RunFiles, prepare_run_dir

MS = 1_000_000


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    prepare_run_dir(tmp_path / "run")
    return RunFiles.of(tmp_path / "run", "orders")


def switchover(start_ms: int = 0, last: Phase = Phase.COMPLETED) -> Snapshot:
    events = (
        ("PREPARATION", 0, ""),
        ("IN_PROGRESS", 2000, ""),
        ("POST", 3500, "green promoted"),
        ("COMPLETED", 9000, "DNS"),
    )
    timeline = tuple(
        TimelineEntry((start_ms + ms) * MS, (start_ms + ms) * MS, event, evidence)
        for event, ms, evidence in events
        if Phase[event] <= last
    )
    hosts = (Host("db.example.com", 5432, Role.SOURCE, ("10.0.0.1",)),)
    return Snapshot("orders", last, hosts=hosts, timeline=timeline)


def test_a_switchover_is_kept_with_offsets_and_evidence(files: RunFiles) -> None:
    history.keep(files, switchover())
    (kept,) = history.read(files)
    assert (kept["bg_id"], kept["outcome"]) == ("orders", "completed")
    assert kept["hosts"] == [{"name": "db.example.com", "port": 5432, "colour": "blue", "addresses": ["10.0.0.1"]}]
    assert [(e["event"], e["offset_ms"], e["evidence"]) for e in kept["events"]] == [
        ("PREPARATION", -2000, ""),
        ("IN_PROGRESS", 0, ""),
        ("POST", 1500, "green promoted"),
        ("COMPLETED", 7000, "DNS"),
    ]
    assert files.history.stat().st_mode & 0o777 == 0o600


def test_nothing_is_kept_before_the_end(files: RunFiles) -> None:
    history.keep(files, switchover(last=Phase.POST))
    history.keep(files, Snapshot("orders", Phase.CREATED, timeline=(TimelineEntry(1, 1, "CREATED"),)))
    assert not files.history.exists()


def test_a_late_addition_completes_the_record_and_makes_no_second_one(files: RunFiles) -> None:
    first = switchover()
    history.keep(files, first)
    late = TimelineEntry(20_000 * MS, 20_000 * MS, "Blue DNS updated")
    history.keep(files, replace(first, timeline=(*first.timeline, late)))
    (kept,) = history.read(files)
    assert kept["events"][-1]["event"] == "Blue DNS updated"


def test_the_last_switchovers_are_kept(files: RunFiles) -> None:
    for number in range(HISTORY_RECORDS + 3):
        history.keep(files, switchover(start_ms=100_000 * number))
    kept = history.read(files)
    assert len(kept) == HISTORY_RECORDS
    assert kept[0]["events"][0]["at_unix_ns"] == 3 * 100_000 * MS


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a": 1}', "[1, 2]", '[{"events": 7}]', " " * (HISTORY_BYTES + 1)]
)
def test_a_broken_file_is_replaced_and_this_is_logged(
    files: RunFiles, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    files.history.write_text(text)
    files.history.chmod(0o600)
    problem = history.look(files).problem
    history.keep(files, switchover())
    said = [record.getMessage() for record in caplog.records]
    # A list of objects may be records of another version.
    assert said == ([f"{problem}; the file is replaced"] if problem else [])
    assert problem.startswith(f"the history is damaged: {files.history} ") or text == '[{"events": 7}]'
    assert history.read(files)[-1]["outcome"] == "completed"
    json.loads(files.history.read_text())


def test_a_link_is_not_followed(files: RunFiles, tmp_path: Path) -> None:
    history.keep(files, switchover())
    files.history.rename(tmp_path / "elsewhere")
    files.history.symlink_to(tmp_path / "elsewhere")
    assert history.read(files) == []
    assert history.look(files).problem.startswith("the history is refused: ")


def test_outcomes_are_counted_beyond_the_kept_records(files: RunFiles) -> None:
    for number in range(HISTORY_RECORDS + 3):
        history.keep(files, switchover(start_ms=100_000 * number))
        # Once more, like a late addition to a record.
        history.keep(files, switchover(start_ms=100_000 * number))
    history.keep(files, replace(switchover(start_ms=10**7), rolled_back=True))
    assert history.totals(history.read(files)) == {"completed": HISTORY_RECORDS + 3, "rolled back": 1}
    assert history.totals([]) == {}
    assert history.totals([{"totals": {"completed": "many", "else": 1}}]) == {}

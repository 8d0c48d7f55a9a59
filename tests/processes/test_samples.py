"""The monitor's samples of its workers during a switchover: bounded, kept in time, and validated when read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bgpool.core.limits import (
    SAMPLE_AFTER_S,
    SAMPLE_BEFORE_S,
    SAMPLED_SWITCHOVERS,
    SAMPLED_WORKERS,
    SAMPLES,
    SAMPLES_BYTES,
)
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot, TimelineEntry
from bgpool.monitor import samples
from bgpool.monitor.lanes import COLUMNS, Lanes
from bgpool.monitor.sampler import Sampler
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.pending_files import new_pending_file, pending_files_of
from bgpool.segment.table import Table, Usage

S = 1_000_000_000
EVENTS = {
    Phase.CREATED: (40, "CREATED"),
    Phase.PREPARATION: (100, "PREPARATION"),
    Phase.IN_PROGRESS: (102, "IN_PROGRESS"),
    Phase.POST: (104, "POST"),
    Phase.COMPLETED: (110, "COMPLETED"),
}


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    prepare_run_dir(tmp_path / "run")
    return RunFiles.of(tmp_path / "run", "orders")


@pytest.fixture
def table(files: RunFiles) -> Table:
    return Table(files)


def at(phase: Phase, later_s: int = 0) -> Snapshot:
    timeline = tuple(
        TimelineEntry((s + later_s) * S, (s + later_s) * S, event) for p, (s, event) in EVENTS.items() if p <= phase
    )
    return Snapshot("orders", phase, timeline=timeline)


def play(sampler: Sampler, table: Table, until_s: float, later_s: int = 0) -> None:
    """Play a worker that is served 10 times a second, and held in IN_PROGRESS, through a switchover from 40 s on."""
    for tick in range(40 * 4, int(until_s * 4)):
        second = tick / 4
        phase = max(p for p, (s, _) in EVENTS.items() if s <= second)
        sampler.note(at(phase, later_s))
        held = 3 * (phase is Phase.IN_PROGRESS)
        now_ns = round((second + later_s) * S)
        table.write_row(0, 77, now_ns, Usage(held=held, served=1000 + int(second * 10), cut=2 * (second > 103)))
        sampler.look(now_ns)


def test_a_switchover_is_kept_with_the_time_before_and_after(files: RunFiles, table: Table) -> None:
    play(Sampler(files, lambda: True), table, 110 + SAMPLE_AFTER_S + 20)
    recording = samples.read(files, 40 * S)
    (worker,) = recording.workers
    offsets = [sample.offset_ms for sample in worker.samples]
    assert worker.pid == 77
    assert (min(offsets), max(offsets)) == (-2000 - 1000 * SAMPLE_BEFORE_S, 8000 + 1000 * SAMPLE_AFTER_S)
    assert offsets == sorted(set(offsets))
    by_offset = {sample.offset_ms: sample for sample in worker.samples}
    assert [by_offset[ms].held for ms in (-250, 0, 1750, 2000)] == [0, 3, 3, 0]
    assert by_offset[2000].cut == 2
    assert by_offset[0].served - by_offset[-2000].served == 20
    assert worker.samples[0].served == 0, "counted from the first sample"
    assert files.samples(40 * S).stat().st_mode & 0o777 == 0o600


def test_the_recording_exists_when_the_switchover_has_ended(files: RunFiles, table: Table) -> None:
    play(Sampler(files, lambda: True), table, 110)
    assert files.all_samples() == []
    play(Sampler(files, lambda: True), table, 110.25)
    assert samples.read(files, 40 * S).workers


def test_a_deployment_that_is_deleted_at_once_is_kept(files: RunFiles, table: Table) -> None:
    sampler = Sampler(files, lambda: True)
    play(sampler, table, 106)
    sampler.note(Snapshot("orders", Phase.NOT_CREATED, timeline=(TimelineEntry(106 * S, 106 * S, "NOT_CREATED"),)))
    sampler.look(106 * S)
    assert samples.read(files, 40 * S).workers


def test_nothing_is_kept_without_a_switchover_or_by_a_former_monitor(files: RunFiles, table: Table) -> None:
    play(Sampler(files, lambda: True), table, 99)
    play(Sampler(files, lambda: False), table, 120)
    assert files.all_samples() == []
    assert pending_files_of(files.pending_samples) == []


def test_the_last_switchovers_are_kept(files: RunFiles, table: Table) -> None:
    sampler = Sampler(files, lambda: True)
    dead = new_pending_file(files.pending_samples)
    dead.path.touch(0o600)
    for number in range(SAMPLED_SWITCHOVERS + 2):
        play(sampler, table, 112, later_s=1000 * number)
    assert [path.name for path in files.all_samples()] == [
        f"orders.samples-{(40 + 1000 * number) * S}.json" for number in range(2, SAMPLED_SWITCHOVERS + 2)
    ]
    assert not dead.path.exists()


def test_a_long_switchover_loses_resolution_and_no_event() -> None:
    lanes = Lanes()
    for tick in range(10_000):
        lanes.take([(0, 77, tick * S // 4, Usage(held=tick == 5000, served=tick, failed=tick > 7000))], 0)
    (worker,) = lanes.told(0, 0)
    assert len(worker["samples"]) <= SAMPLES + 1
    assert worker["samples"][-1][COLUMNS.index("failed")] == 1
    assert worker["samples"][-1][COLUMNS.index("served")] >= 10_000 - 1 - 64


def test_workers_beyond_the_maximum_are_counted() -> None:
    lanes = Lanes()
    crowd = [(row, 100 + row, S, Usage()) for row in range(SAMPLED_WORKERS + 5)]
    lanes.take(crowd, 0)
    lanes.take([(row, pid, 2 * S, usage) for row, pid, _, usage in crowd], 0)
    assert len(list(lanes.told(0, 0))) == SAMPLED_WORKERS
    assert lanes.left_out == 5
    lanes.take([(0, 1, S, Usage())], 3 * S)
    lanes.forget_before(3 * S)
    assert list(lanes.told(0, 0)) == []


def test_the_largest_file_is_read(files: RunFiles) -> None:
    big = [[10**7 + n, 10**5, 10**5, 10**8 + n, *[10**5] * 4, *[0] * 7] for n in range(SAMPLES)]
    workers = [{"pid": 4_000_000 + n, "samples": big} for n in range(SAMPLED_WORKERS)]
    samples.keep(files, 1, workers, 0, lambda: True)
    assert files.samples(1).stat().st_size < SAMPLES_BYTES
    assert len(samples.read(files, 1).workers) == SAMPLED_WORKERS


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "[" * 100_000, '{"columns": []}', " " * (SAMPLES_BYTES + 1),
        json.dumps({"columns": COLUMNS, "left_out": 0, "workers": [{"pid": 1, "samples": [[1, 2]]}]}),
        json.dumps({"columns": COLUMNS, "left_out": 0, "workers": [{"pid": "<b>", "samples": []}]}),
        json.dumps({"columns": COLUMNS, "left_out": 2**60, "workers": []}),
    ],
)  # fmt: skip
def test_an_invalid_recording_is_refused(files: RunFiles, text: str) -> None:
    files.samples(1).write_text(text)
    files.samples(1).chmod(0o600)
    text = f"the samples are damaged: {files.samples(1)} is no recording"
    assert samples.read(files, 1) == samples.Recording(problem=text)
    files.samples(1).unlink()
    assert samples.read(files, 1) == samples.Recording()


def test_columns_are_those_of_a_sample() -> None:
    assert samples.WorkerSample._fields == COLUMNS


def test_a_link_is_not_followed(files: RunFiles, tmp_path: Path) -> None:
    samples.keep(files, 1, [{"pid": 1, "samples": [[0] * len(COLUMNS)]}], 0, lambda: True)
    assert samples.read(files, 1).workers
    files.samples(1).rename(tmp_path / "elsewhere")
    files.samples(1).symlink_to(tmp_path / "elsewhere")
    recording = samples.read(files, 1)
    assert recording.workers == ()
    assert recording.problem.startswith("the samples are refused: ")

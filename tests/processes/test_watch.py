"""A process's row and lock in a deployment; both disappear when the process, or its last pool, is gone."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.pools import pace, watch, watcher
from bgpool.pools.participant import Participant
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence, anybody_present, workers
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage, read_rows
from bgpool.segment.writer import Writer

WaitUntil = Callable[..., None]


class Member:
    """A pool that does nothing."""

    def apply(self, _: Reading) -> None: ...

    def tick(self) -> float:
        return math.inf

    def usage(self) -> Usage:
        return Usage()

    def is_holding(self, _: Reading) -> bool:
        return False

    def take_longest_hold_s(self) -> float:
        return 0.0


class Holder(Member):
    """A pool whose callers a test holds."""

    def __init__(self) -> None:
        self.counts = Usage()

    def usage(self) -> Usage:
        return self.counts

    def is_holding(self, reading: Reading) -> bool:
        return reading.snapshot is not None and reading.snapshot.phase is Phase.IN_PROGRESS

    def take_longest_hold_s(self) -> float:
        return 1.25


class SlowPresence(Presence):
    """A Presence that is slow to create, between the row's lock and the moment when its owner knows it."""

    locked = threading.Event()
    go = threading.Event()

    def __init__(self, files: RunFiles) -> None:
        super().__init__(files)
        self.locked.set()
        self.go.wait(60)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles.of(tmp_path / "run", "1")


@pytest.fixture
def participant(files: RunFiles) -> Participant:
    return Participant("1", files.directory, lambda _: None)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SlowPresence]]:
    monkeypatch.setattr(watch, "Presence", SlowPresence)
    SlowPresence.locked.clear()
    SlowPresence.go.clear()
    yield SlowPresence
    SlowPresence.go.set()


def test_a_child_forked_while_the_parent_joins_does_not_keep_its_row(
    files: RunFiles, participant: Participant, slow: type[SlowPresence], wait_until: WaitUntil
) -> None:
    member = Member()
    joining = threading.Thread(target=participant.join, args=(member,))
    joining.start()
    assert slow.locked.wait(30)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        slow.go.set()
        joining.join(30)
        assert [row.pid for row in workers(files)] == [os.getpid()]
        participant.leave(member)
        # The child may not have begun yet.
        wait_until(lambda: not anybody_present(files))
        assert workers(files) == ()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_pool_that_leaves_while_the_watcher_joins_is_gone(
    files: RunFiles, participant: Participant, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    member = Member()
    participant.join(member)
    SlowPresence.locked.clear()
    SlowPresence.go.clear()
    monkeypatch.setattr(watch, "Presence", SlowPresence)
    # As if the run directory was deleted: the watcher creates it again.
    files.workers.unlink()
    assert SlowPresence.locked.wait(30)
    participant.leave(member)
    SlowPresence.go.set()
    wait_until(lambda: workers(files) == ())
    assert not anybody_present(files)


def test_a_pool_that_rejoins_at_once_is_present_once(
    files: RunFiles, participant: Participant, wait_until: WaitUntil
) -> None:
    member = Member()
    for _ in range(50):
        participant.join(member)
        assert [row.pid for row in workers(files)] == [os.getpid()]
        participant.leave(member)
        # The watcher's thread may be taking a row at this moment, and then gives it up.
        wait_until(lambda: workers(files) == ())


def test_one_process_represents_the_host_and_another_one_after_it(files: RunFiles, participant: Participant) -> None:
    member, other = Member(), Participant("1", files.directory, lambda _: None)
    assert not participant.speaks_for_host()
    participant.join(member)
    other.join(member)
    assert participant.speaks_for_host()
    assert not other.speaks_for_host()
    participant.leave(member)
    assert other.speaks_for_host()
    assert not participant.speaks_for_host()
    other.leave(member)


def test_in_a_switchover_rows_are_written_though_nothing_is_published(
    files: RunFiles, participant: Participant, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    # So that nothing else wakes the watcher.
    monkeypatch.setattr(watch, "HEARTBEAT_STALE_S", 3600.0)
    prepare_run_dir(files.directory)
    Writer(files, 1, Snapshot("1", Phase.IN_PROGRESS)).beat()
    member = Member()
    participant.join(member)

    def written_ns() -> int:
        ((_, _, updated_ns, _, _),) = read_rows(files)
        return updated_ns

    try:
        for _ in range(3):
            before = written_ns()
            wait_until(lambda before=before: written_ns() > before)
    finally:
        participant.leave(member)


def test_a_failing_member_does_not_prevent_a_monitor(files: RunFiles) -> None:
    class Failing(Member):
        def apply(self, _: Reading) -> None:
            raise RuntimeError("a defect")

    tried = threading.Semaphore(0)
    participant, member = Participant("1", files.directory, lambda _: tried.release()), Failing()
    participant.join(member)
    try:
        # The watcher requests a monitor repeatedly, as long as there is none.
        assert all(tried.acquire(timeout=30) for _ in range(3))
    finally:
        participant.leave(member)


@pytest.mark.parametrize("what", ["prepare_run_dir", "Presence"])
def test_a_refusal_by_the_system_fails_no_checkout(
    participant: Participant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(watch, what, refuse)
    member, other = Member(), Member()
    participant.join(member)
    participant.join(other)
    assert [r.getMessage() for r in caplog.records if "No locks available" in r.getMessage()]
    assert len(caplog.records) == 1
    participant.leave(other)
    participant.leave(member)


def test_a_process_at_its_limit_of_threads_has_a_plain_pool(
    files: RunFiles, participant: Participant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    # Otherwise another pool's watcher would be used.
    monkeypatch.setattr(watcher, "_watchers", watcher._Watchers())
    member = Member()
    participant.join(member)
    # Other parts of this process may log warnings at the same time.
    (_record,) = [record for record in caplog.records if "plain pool" in record.getMessage()]
    # No watcher would update the row.
    assert workers(files) == ()
    participant.leave(member)


def test_one_line_when_callers_begin_to_be_held_and_one_when_they_are_released(
    files: RunFiles, participant: Participant, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    prepare_run_dir(files.directory)
    writer = Writer(files, 1, Snapshot("1", Phase.IN_PROGRESS))
    caplog.set_level(logging.INFO, "bgpool.pool")
    first, second = Holder(), Holder()
    participant.join(first)
    participant.join(second)
    first.counts, second.counts = Usage(held=2, holds=2), Usage(held=1, holds=1)
    wait_until(lambda: len(caplog.records) == 1)
    # One caller times out, and for a moment no caller is held: this is still the same hold.
    first.counts, second.counts = Usage(holds=2, hold_timeouts=1), Usage(holds=1)
    wait_until(lambda: workers(files)[0].usage.held == 0)
    first.counts = Usage(held=2, holds=4, hold_timeouts=1)
    wait_until(lambda: workers(files)[0].usage.held == 2)
    writer.publish(Snapshot("1", Phase.POST))
    first.counts = Usage(holds=4, hold_timeouts=1)
    wait_until(lambda: len(caplog.records) == 2)
    participant.leave(first)
    participant.leave(second)
    began, ended = caplog.records
    assert began.getMessage() == "[bg_id: '1'] holding callers: 3 so far"
    text = "[bg_id: '1'] callers released: 5 held, the longest for 1.2 s; 1 timed out"
    assert ended.getMessage() == text
    told = [(record.levelname, record.event, record.phase) for record in (began, ended)]  # type: ignore[attr-defined]  # extra
    assert told == [("INFO", "hold_started", "IN_PROGRESS"), ("INFO", "hold_ended", "POST")]


def test_alternating_warnings_are_logged_once_each(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A process of an older version finds the newer table and the newer segment alternately, again and again."""
    part = Participant("watch", tmp_path, lambda _: None)
    watching = watch.Watch("watch", part.files, part.reader, part.pools, lambda _: None)
    for text in ["the table is newer", "the segment is newer"] * 3:
        watching._complain("hindered", text)
    assert [record.getMessage() for record in caplog.records] == [
        "[bg_id: 'watch'] the table is newer",
        "[bg_id: 'watch'] the segment is newer",
    ]


def test_the_row_of_a_process_that_resumes_work_is_updated_soon(
    files: RunFiles, participant: Participant, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    """In an idle process, the watcher reads counts rarely. CPU time of other threads shows that it works again."""
    monkeypatch.setattr(pace, "LOOK_INTERVAL_MAX_S", 3600.0)
    monkeypatch.setattr(pace, "_EARLY", 1.0)
    prepare_run_dir(files.directory)
    writer = Writer(files, 1, Snapshot("1", Phase.CREATED))
    writer.beat()
    holder = Holder()
    participant.join(holder)
    try:
        watching = participant._watch
        assert watching is not None
        # The watcher has repeatedly found that nothing has changed.
        wait_until(lambda: watching._pace._found != ())
        watching._pace._interval_s = 3600.0
        wait_until(lambda: watching._pace.look_at > time.monotonic() + 60)
        holder.counts = Usage(in_use=1)

        def works_and_is_seen() -> bool:
            sum(range(100_000))
            writer.beat()
            return workers(files)[0].usage.in_use == 1

        wait_until(works_and_is_seen)
    finally:
        participant.leave(holder)


def test_the_row_of_a_process_with_a_held_caller_is_updated_soon(
    files: RunFiles, participant: Participant, wait_until: WaitUntil
) -> None:
    prepare_run_dir(files.directory)
    Writer(files, 1, Snapshot("1", Phase.CREATED)).beat()
    holder = Holder()
    participant.join(holder)
    watching = participant._watch
    assert watching is not None
    wait_until(lambda: watching._pace._found != ())
    watching._pace._set(math.inf, math.inf, math.inf)
    holder.counts = Usage(held=1, holds=1)
    participant.note_hold()
    assert watching._pace.look_at < math.inf
    wait_until(lambda: workers(files)[0].usage.held == 1)
    participant.leave(holder)

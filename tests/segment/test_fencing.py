"""A monitor may be stopped anywhere and resume at any time: no process that knows its successor follows it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bgpool.core.phase import Phase
from bgpool.core.snapshot import EPOCH_OF_DECISION, Snapshot, TimelineEntry
from bgpool.errors import SegmentError
from bgpool.monitor import election
from bgpool.segment import history, layout, pending_files, reader, writer
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.pending_files import pending_files_of
from bgpool.segment.reader import Reader, SegmentMap
from bgpool.segment.writer import Superseded, Writer, first_snapshot
from tests.segment.conftest import Fork

#: The modules whose every line is a place to be stopped at.
STEPS = {module.__file__ for module in (writer, reader, pending_files, history)}

BEFORE = Snapshot("orders", Phase.PREPARATION, epoch=2)
STALE = Snapshot("orders", Phase.IN_PROGRESS, epoch=3)
TRUTH = Snapshot("orders", Phase.POST, epoch=4)
UNKNOWN = Snapshot("orders")


def stopped(call: Callable[[], object], at: int, meanwhile: Callable[[], object]) -> bool:
    """Run *call*, and the second callable before its line number *at*; return whether that line was reached.

    *call* may end with the error that another monitor has taken over, or has removed its pending file.
    """
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in STEPS:
            return None
        if event == "line":
            lines += 1
            if lines == at:
                meanwhile()
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(Superseded, FileNotFoundError):
            call()
    finally:
        sys.settrace(usual)
    return lines >= at


def everywhere(files: RunFiles) -> Iterator[tuple[int, RunFiles]]:
    """Numbers of lines to be stopped at, each with a run directory of its own: what is in it makes lines, too."""
    for at in itertools.count(1):
        directory = files.directory / str(at)
        prepare_run_dir(directory)
        yield at, RunFiles.of(directory, "orders")
        shutil.rmtree(directory)


def truth_is_told(files: RunFiles) -> None:
    found = Writer(files, SegmentMap(files).header.term + 1, UNKNOWN) if files.segment.exists() else None
    (found or Writer(files, 1, UNKNOWN)).publish(TRUTH)


def test_publishing(files: RunFiles) -> None:
    for at, mine in everywhere(files):
        old = Writer(mine, 1, BEFORE)
        knows = Reader(mine)
        admitted = knows.refresh()
        came_so_far = stopped(lambda old=old: old.publish(STALE), at, lambda mine=mine: truth_is_told(mine))  # type: ignore[misc]
        if not came_so_far:
            break
        assert not admitted.is_current, f"stopped before line {at}: the quick way is open"
        assert knows.refresh().snapshot == TRUTH, f"stopped before line {at}: the old one is obeyed"
        assert knows.refresh().is_current
    assert at > 5


def test_reading(files: RunFiles) -> None:
    """A reader that is stopped while another monitor takes over and the old one writes its last values."""
    for at, mine in everywhere(files):
        old = Writer(mine, 1, UNKNOWN)
        knows = Reader(mine)
        knows.refresh()
        old.publish(BEFORE)
        seen: list[Snapshot | None] = []

        def change(mine: RunFiles = mine, old: Writer = old) -> None:
            truth_is_told(mine)
            old._superseded = memoryview(bytearray(8)).cast("Q")  # It has looked already, and was stopped then.
            old.publish(STALE)

        if not stopped(lambda knows=knows, seen=seen: seen.append(knows.refresh().snapshot), at, change):  # type: ignore[misc]
            break
        assert seen[0] in (UNKNOWN, BEFORE, TRUTH), f"stopped before line {at}"
        assert knows.refresh().snapshot == TRUTH, f"stopped before line {at}"
    assert at > 5


@pytest.mark.parametrize("first", [True, False], ids=["the first", "a later one"])
def test_beginning(files: RunFiles, first: bool) -> None:
    """One that is stopped while it puts its file in place never puts it in the place of a later term's."""
    for at, mine in everywhere(files):
        if not first:
            Writer(mine, 1, BEFORE)
        later: list[Writer] = []

        def overtake(mine: RunFiles = mine, later: list[Writer] = later) -> None:
            later.append(Writer(mine, 3, UNKNOWN))
            later[0].publish(TRUTH)

        if not stopped(lambda mine=mine: Writer(mine, 2, STALE), at, overtake):  # type: ignore[misc]
            break
        assert later[0].is_in_place(), f"stopped before line {at}: the lower term is in place"
        later[0].beat()
        assert Reader(mine).refresh().snapshot == TRUTH, f"stopped before line {at}"
        assert pending_files_of(mine.segment) == []
    assert at > 20


def test_what_was_said_while_the_next_one_began_is_not_lost(files: RunFiles) -> None:
    """A monitor that only seemed dead publishes until it is fenced off: nothing that a reader saw is taken back."""
    heard = 0
    for at, mine in everywhere(files):
        old = Writer(mine, 1, BEFORE)
        knows = Reader(mine)
        knows.refresh()
        seen: list[Snapshot | None] = []

        def speak(old: Writer = old, knows: Reader = knows, seen: list[Snapshot | None] = seen) -> None:
            with suppress(Superseded):
                old.publish(TRUTH)
            seen.append(knows.refresh().snapshot)

        if not stopped(lambda mine=mine: Writer(mine, 2, UNKNOWN), at, speak):  # type: ignore[misc]
            break
        heard += seen == [TRUTH]
        assert knows.refresh().snapshot in (TRUTH, seen[0]), f"stopped before line {at}: taken back"
        assert Reader(mine).refresh().snapshot == knows.refresh().snapshot
    assert 5 < heard < at


def test_two_that_begin_at_once_leave_one(files: RunFiles) -> None:
    """Whichever is stopped where, one of two terms is in place in the end, and the other knows."""
    for at, mine in everywhere(files):
        made: list[Writer] = []

        def lower(mine: RunFiles = mine, made: list[Writer] = made) -> None:
            with suppress(Superseded):
                made.append(Writer(mine, 1, STALE))

        if not stopped(lambda mine=mine, made=made: made.append(Writer(mine, 2, TRUTH)), at, lower):  # type: ignore[misc]
            break
        assert SegmentMap(mine).header.term == 2
        assert [one.is_in_place() for one in made] == [False] * (len(made) - 1) + [True]
        assert pending_files_of(mine.segment) == []
    assert at > 20


def switchover(number: int, *events: str) -> Snapshot:
    timeline = tuple(TimelineEntry(number * 100 + n, number * 100 + n, event) for n, event in enumerate(events))
    return Snapshot("orders", Phase.COMPLETED, timeline=timeline)


def test_writing_the_history(files: RunFiles) -> None:
    """Old news never takes the place of new, wherever the one that has them was stopped."""
    for at, mine in everywhere(files):
        history.keep(mine, switchover(1, "IN_PROGRESS", "COMPLETED"))
        leads = [True]

        def take_over(mine: RunFiles = mine, leads: list[bool] = leads) -> None:
            leads.clear()
            history.keep(mine, switchover(1, "IN_PROGRESS", "COMPLETED", "Blue DNS updated"))
            history.keep(mine, switchover(2, "IN_PROGRESS", "COMPLETED"))

        def woken(mine: RunFiles = mine, leads: list[bool] = leads) -> None:
            history.keep(mine, switchover(1, "IN_PROGRESS", "COMPLETED", "stale"), lambda: bool(leads))

        if not stopped(woken, at, take_over):
            break
        told = [[event["event"] for event in kept["events"]] for kept in history.read(mine)]
        news = ["IN_PROGRESS", "COMPLETED", "Blue DNS updated"]
        assert told == [news, ["IN_PROGRESS", "COMPLETED"]], f"stopped before line {at}"
        assert pending_files_of(mine.history) == []
    assert at > 10


class TestProcesses:
    """The same with real processes, stopped and killed in the middle."""

    @pytest.fixture
    def start(self, fork: Fork) -> Fork:
        """Runs a function in a child; returns its pid once it has stopped itself or ended."""

        def start(function: Callable[[], object]) -> int:
            pid = fork(function)
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            return pid

        return start

    @staticmethod
    def wake(pid: int) -> int:
        os.kill(pid, signal.SIGCONT)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @staticmethod
    def signalled_in(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
        """Send a signal to this process whenever it calls *name*."""
        real: Callable[..., object] = getattr(owner, name)

        def function(*args: Any) -> object:
            os.kill(os.getpid(), number)
            return real(*args)

        monkeypatch.setattr(owner, name, function)

    def test_stopped_in_publish(
        self, files: RunFiles, start: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lead() -> None:
            writer = Writer(files, 1, BEFORE)
            self.signalled_in(monkeypatch, layout, "slot_offset", signal.SIGSTOP)
            writer.publish(STALE)
            with pytest.raises(Superseded):
                writer.beat()
            with pytest.raises(Superseded):
                writer.publish(STALE)

        pid = start(lead)
        knows = Reader(files)
        assert knows.refresh().snapshot == BEFORE
        new = Writer(files, 2, UNKNOWN)
        new.publish(TRUTH)
        assert self.wake(pid) == 0
        assert knows.refresh().snapshot == TRUTH
        assert new.is_in_place()

    def test_stopped_before_its_file_is_in_place(
        self, files: RunFiles, start: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It holds the lock of term 1 and has a draft: it is passed over, and gives up when it wakes."""
        # The claim is made between once and twice this time, which a busy machine must not sleep through.
        monkeypatch.setattr(election, "HEARTBEAT_HUNG_S", 1.5)

        def lead() -> None:
            tenure = election.claim(files)
            assert tenure is not None
            assert tenure.term == 1
            self.signalled_in(monkeypatch, Path, "replace", signal.SIGSTOP)
            with pytest.raises(Superseded, match="term 1 is over"):
                Writer(files, 1, STALE)

        pid = start(lead)
        tenure = election.claim(files)
        assert tenure is not None
        assert tenure.term == 2
        new = Writer(files, 2, TRUTH)
        assert self.wake(pid) == 0
        assert new.is_in_place()
        assert Reader(files).refresh().snapshot == TRUTH
        assert pending_files_of(files.segment) == []
        tenure.lock.release()

    def test_killed_before_its_file_is_in_place(
        self, files: RunFiles, start: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its pending file is removed, and the file in place, which it has fenced off, is used until the next one."""
        old = Writer(files, 1, BEFORE)
        knows = Reader(files)
        knows.refresh()

        def begin() -> None:
            self.signalled_in(monkeypatch, Path, "replace", signal.SIGKILL)
            Writer(files, 2, UNKNOWN)

        start(begin)
        assert [pending.term for pending in pending_files_of(files.segment)] == [2]
        with pytest.raises(Superseded):
            old.beat()
        assert knows.refresh().is_current
        assert Reader(files).refresh().snapshot == BEFORE, "the old snapshot remains readable"
        old._beat[0] = 0
        tenure = election.claim(files)
        assert tenure is not None
        assert tenure.term == 2
        new = Writer(files, tenure.term, UNKNOWN)
        assert new.snapshot == BEFORE
        assert pending_files_of(files.segment) == []
        new.publish(TRUTH)
        assert knows.refresh().snapshot == TRUTH
        tenure.lock.release()


def test_a_superseded_file_without_a_successor_is_unmapped(files: RunFiles) -> None:
    """The run directory was deleted: no number in the old file may open the quick way any more."""
    old = Writer(files, 1, BEFORE)
    knows = Reader(files)
    admitted = knows.refresh()
    files.segment.unlink()
    old.leave()
    assert admitted.wait_changed(0.0)
    for _ in range(2):
        left = knows.refresh()
        assert left.snapshot == BEFORE, "the last good one goes on"
        assert not left.is_current
        assert left.mapped is None
    assert knows.monitor_is_silent()
    Writer(files, 1, TRUTH)
    assert knows.refresh().snapshot == TRUTH


def test_to_leave_a_file_in_place_says_nothing(files: RunFiles) -> None:
    old = Writer(files, 1, BEFORE)
    reading = Reader(files).refresh()
    old.leave()
    assert reading.is_current
    old.remove()
    assert not files.segment.exists()
    assert not reading.is_current


def test_a_word_broken_so_that_it_says_superseded_is_no_way_in(files: RunFiles) -> None:
    Writer(files, 1, BEFORE)
    knows = Reader(files)
    knows.refresh()
    SegmentMap(files, write=True).word[0] = layout.SUPERSEDED
    for _ in range(2):
        assert not knows.refresh().is_current
        assert knows.refresh().snapshot == BEFORE


def test_a_segment_of_a_newer_version_is_not_replaced(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(layout, "FORMAT", layout.FORMAT + 1)
        Writer(files, 1, BEFORE)
    content = files.segment.read_bytes()
    with pytest.raises(layout.FutureFormat):
        Writer(files, 2, UNKNOWN)
    assert files.segment.read_bytes() == content
    assert pending_files_of(files.segment) == []


def test_a_file_that_cannot_be_replaced_is_a_bgpool_error(files: RunFiles) -> None:
    files.segment.mkdir()
    with pytest.raises(SegmentError, match="cannot be replaced"):
        Writer(files, 1, BEFORE)
    assert pending_files_of(files.segment) == []


def test_epochs_of_another_life_are_no_epochs_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment was lost; a worker still has connections of before, under an epoch that must not come again."""
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5 * 10**9)
    first = first_snapshot("orders").epoch
    monkeypatch.setattr(time, "monotonic_ns", lambda: 6 * 10**9)
    # A second later, and after more decisions than there are in a hundred switchovers.
    assert first_snapshot("orders").epoch > first + 100 * 2 * EPOCH_OF_DECISION

"""The watcher leaves the core to callers that are released in its process, and still does all its work in time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest

from bgpool.core.limits import CALLERS_FIRST_S, LINE_S
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.pools.watch import Watch
from bgpool.segment import wake
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader, Reading
from bgpool.segment.release_queue import ReleaseQueue
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer
from tests.segment.conftest import files

__all__ = ["files"]


class Pool:
    """A pool that records the phases that it receives; *due_s* is the time when it is due to cut."""

    def __init__(self) -> None:
        self.phases: list[Phase | None] = []
        self.held = 1
        self.due_s = math.inf

    def apply(self, reading: Reading) -> None:
        self.phases.append(reading.snapshot.phase if reading.snapshot else None)

    def tick(self) -> float:
        return self.due_s

    def usage(self) -> Usage:
        return Usage(held=self.held)

    def is_holding(self, reading: Reading) -> bool:
        return reading.snapshot is not None and reading.snapshot.phase is Phase.IN_PROGRESS

    def take_longest_hold_s(self) -> float:
        return 0.0


class Scene:
    """A watch that runs in the thread of the test."""

    def __init__(self, files: RunFiles) -> None:
        self.writer = Writer(files, 1, Snapshot("orders", Phase.IN_PROGRESS))
        self.pool, self.woken = Pool(), 0
        self.watch = Watch("orders", files, Reader(files), lambda: [self.pool], lambda _: None, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def look(self) -> None:
        """Run the watch once and clear the records."""
        self.watch.hear(time.monotonic())
        self.watch.attend(time.monotonic())
        self.pool.phases.clear()
        self.woken = 0


@pytest.fixture
def scene(files: RunFiles) -> Iterator[Scene]:
    scene = Scene(files)
    scene.look()
    yield scene
    scene.watch.end()
    scene.writer.leave()


def test_the_watcher_acts_after_the_callers(scene: Scene) -> None:
    scene.writer.publish(Snapshot("orders", Phase.POST))
    now = time.monotonic()
    scene.watch.hear(now)
    assert not scene.pool.phases
    assert scene.woken == 1, "only the watcher wakes tasks"
    assert scene.watch.word() is None, "otherwise it would wake again and again"
    assert scene.watch.due_at(now) == pytest.approx(now + CALLERS_FIRST_S)
    scene.watch.hear(now + CALLERS_FIRST_S / 2)
    assert (scene.woken, scene.pool.phases) == (1, [])
    scene.watch.hear(now + CALLERS_FIRST_S)
    assert scene.pool.phases == [Phase.POST]
    assert scene.watch.word() is not None


def test_work_that_is_due_is_done_in_time(scene: Scene) -> None:
    scene.pool.due_s = CALLERS_FIRST_S / 4
    scene.watch.attend(time.monotonic())
    scene.pool.phases.clear()
    scene.writer.publish(Snapshot("orders", Phase.POST))
    now = time.monotonic()
    scene.watch.hear(now)
    assert not scene.pool.phases
    due_at = scene.watch.due_at(now)
    assert due_at < now + CALLERS_FIRST_S / 2
    scene.watch.hear(due_at)
    assert scene.pool.phases == [Phase.POST]


def test_the_watcher_acts_at_once_if_no_caller_is_held(scene: Scene) -> None:
    scene.pool.held = 0
    scene.look()
    scene.writer.publish(Snapshot("orders", Phase.POST))
    scene.watch.hear(time.monotonic())
    assert scene.pool.phases == [Phase.POST]


@pytest.mark.parametrize("held_before", [True, False])
def test_callers_whose_turn_is_lost_are_woken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, held_before: bool
) -> None:
    """The monitor was killed during the release, and a caller that had a turn is stopped."""
    if not wake.has_futex():
        pytest.skip("waiters poll here")
    monkeypatch.setattr(wake, "FUTEX_SLEEP_S", 3600.0)
    monkeypatch.setattr(ReleaseQueue, "let_go", lambda line: wake.wake_others(line._address))
    scene.pool.held = int(held_before)
    scene.look()
    reading = scene.watch._reader.refresh()
    caller = threading.Thread(target=reading.wait_changed, args=(20.0,), kwargs={"in_line": True})
    caller.start()
    scene.pool.held = 1
    # By then the caller sleeps in the kernel; there is no way to observe this.
    time.sleep(0.05)
    now = time.monotonic()
    scene.writer.publish(Snapshot("orders", Phase.POST))
    scene.watch.hear(now)
    heard_at = now
    if held_before:
        heard_at = now + CALLERS_FIRST_S
        scene.watch.hear(heard_at)
    scene.watch.attend(heard_at + LINE_S / 2)
    caller.join(0.1)
    assert caller.is_alive(), "the release queue is still in use: other callers would lose their turns"
    scene.watch.attend(heard_at + 2 * LINE_S)
    caller.join(10)
    assert not caller.is_alive()


def test_held_callers_are_not_woken_without_a_release(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    monkeypatch.setattr(wake, "wake_all", woken.append)
    for _ in range(3):
        scene.watch.attend(time.monotonic() + 10)
    assert not woken


def test_callers_are_woken_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """All callers of the host wake. Some may be held for other reasons, such as a server that refuses writes."""
    scene.writer.publish(Snapshot("orders", Phase.POST))
    scene.watch.hear(time.monotonic() + CALLERS_FIRST_S)
    scene.watch.hear(time.monotonic() + 2 * CALLERS_FIRST_S)
    woken: list[int] = []
    monkeypatch.setattr(wake, "wake_all", woken.append)
    for _ in range(3):
        scene.watch.attend(time.monotonic() + 10)
    assert len(woken) == 1

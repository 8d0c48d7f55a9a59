"""Waiters in the queue are woken one after the other, and none waits for long for one that does not wake the next."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.segment import release_queue, wake
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader
from bgpool.segment.release_queue import ReleaseQueue
from bgpool.segment.writer import Writer
from tests.waiting import wait_until

#: Longer than any of this takes, and than a test may.
LONG_S = 30.0


def wait_asleep(thread: threading.Thread) -> None:
    """Wait until *thread* sleeps in the kernel on a word of a shared page, as far as that can be seen from here."""
    try:
        wait_until(lambda: _sleeps(thread))
    except OSError:
        time.sleep(0.5)


def _sleeps(thread: threading.Thread) -> bool:
    call, *arguments = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text(encoding="ascii").split()
    # futex on x86-64 and on ARM; the interpreter's own locks are private to the process.
    return call in ("202", "98") and not int(arguments[1], 16) & 128


class Queue:
    """Threads that wait for a word to change, in the order in which they came."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.word = memoryview(self.page).cast("Q")
        self.address = wake.address_of(self.page, 0)
        self.gone: list[str] = []
        self._threads: list[threading.Thread] = []

    def join(self, name: str, *, in_line: bool = True) -> None:
        """A thread of *name* waits from now on."""

        def wait() -> None:
            assert wake.wait_changed(self.word, self.address, 0, LONG_S, in_line=in_line)
            self.gone.append(name)

        thread = threading.Thread(target=wait, name=name)
        thread.start()
        self._threads.append(thread)
        wait_asleep(thread)

    def change(self) -> None:
        """Change the word that all wait for, without waking a waiter."""
        self.word[0] = 1

    def until_gone(self, *names: str) -> None:
        """Wait until exactly *names* are."""
        deadline = time.monotonic() + LONG_S / 2
        while len(self.gone) < len(names) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert sorted(self.gone) == sorted(names)

    def end(self) -> None:
        """Wake all waiters."""
        self.change()
        wake.wake_all(self.address)
        for thread in self._threads:
            thread.join(LONG_S)


@pytest.fixture
def queue() -> Iterator[Queue]:
    if not wake.has_futex():
        pytest.skip("waiters poll here")
    queue = Queue()
    yield queue
    queue.end()


def test_the_one_that_has_waited_longest_is_woken(queue: Queue) -> None:
    for name in ("first", "second", "third"):
        queue.join(name)
    queue.join("watcher", in_line=False)
    queue.change()
    wake.wake_others(queue.address)
    queue.until_gone("watcher")
    assert wake.wake_in_line(queue.address, 1) == 1
    queue.until_gone("watcher", "first")
    assert wake.wake_in_line(queue.address, 5) == 2
    queue.until_gone("watcher", "first", "second", "third")
    assert wake.wake_in_line(queue.address, 5) == 0


def test_waiters_that_no_other_wakes_are_woken_over_time(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_queue, "cores", lambda: 1)
    monkeypatch.setattr(release_queue, "CONNECTS_PER_CORE", 1)
    monkeypatch.setattr(release_queue, "LINE_PACE_S", LONG_S)
    monkeypatch.setattr(release_queue, "LINE_S", LONG_S)
    for name in ("first", "second", "third"):
        queue.join(name)
    queue.change()
    waiting = ReleaseQueue(queue.address)
    waiting.let_go()
    queue.until_gone("first")
    assert waiting.moves
    waiting.end()
    queue.until_gone("first", "second", "third")
    assert not waiting.moves


def test_an_empty_queue_ends_by_itself(queue: Queue) -> None:
    waiting = ReleaseQueue(queue.address)
    waiting.let_go()
    deadline = time.monotonic() + LONG_S
    while waiting.moves:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_release_wakes_in_line_and_other_changes_wake_all(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(ReleaseQueue, "let_go", lambda _: told.append("line"))
    monkeypatch.setattr(wake, "wake_all", lambda _: told.append("all"))
    writer = Writer(files, 1, Snapshot("orders"))
    told.clear()
    for phase in (Phase.CREATED, Phase.PREPARATION, Phase.IN_PROGRESS, Phase.IN_PROGRESS, Phase.POST, Phase.POST):
        writer.publish(Snapshot("orders", phase))
    assert told == ["all", "all", "all", "all", "line", "all"]
    writer.leave()


def test_a_woken_waiter_wakes_the_next(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever process: what wakes it is the reader, which may not write."""
    if not wake.has_futex():
        pytest.skip("waiters poll here")
    monkeypatch.setattr(release_queue, "cores", lambda: 1)
    monkeypatch.setattr(release_queue, "CONNECTS_PER_CORE", 1)
    monkeypatch.setattr(release_queue, "LINE_PACE_S", LONG_S)
    monkeypatch.setattr(release_queue, "LINE_S", LONG_S)
    writer = Writer(files, 1, Snapshot("orders", Phase.IN_PROGRESS))
    gone: list[int] = []

    def wait(number: int) -> None:
        reader = Reader(files)
        assert reader.refresh().wait_changed(LONG_S, in_line=True)
        gone.append(number)
        reader.refresh()
        reader.wake_next()

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
        wait_asleep(thread)
    writer.publish(Snapshot("orders", Phase.POST))
    for thread in threads:
        thread.join(LONG_S)
    assert gone == [0, 1, 2]
    writer.leave()


def test_a_waiter_in_line_does_not_wake_up_early(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time a thread wakes up costs more than anything else that a held caller costs."""
    monkeypatch.setattr(wake, "FUTEX_SLEEP_S", LONG_S)
    slept = []
    sleep = wake._sleep

    def count(*args: int, in_line: bool) -> int:
        slept.append(in_line)
        return sleep(*args, in_line=in_line)

    monkeypatch.setattr(wake, "_sleep", count)
    assert not wake.wait_changed(queue.word, queue.address, 0, 1.0, in_line=True)
    assert slept == [True]

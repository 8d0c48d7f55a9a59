"""Features that a kernel may refuse, one at a time: the fallback, and where it is reported."""

from __future__ import annotations

import array
import ctypes
import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable

import pytest

from bgpool.core.snapshot import Snapshot
from bgpool.pools import fork as forks
from bgpool.pools import watch
from bgpool.pools.fork import PidWord, parents_word
from bgpool.pools.participant import Participant
from bgpool.report.reading import read_status
from bgpool.segment import boot, kernel_features, wake
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import Presence, workers
from bgpool.segment.reader import Reader
from bgpool.segment.writer import Writer
from tests.processes.test_fork import in_child, in_child_untold

NAMES = [lack.name for lack in kernel_features.LACKS.values()]


@pytest.fixture(params=NAMES)
def refused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of what is refused in this test."""
    refusals: dict[str, Callable[[], object]] = {
        "boot id": lambda: monkeypatch.setattr(boot, "_BOOT", boot._BOOT / "hidden"),
        "futex": lambda: refuse_futex(monkeypatch),
        "memfd_create": lambda: monkeypatch.setattr(os, "memfd_create", refuse),
        # The kernel takes no such advice.
        "MADV_WIPEONFORK": lambda: monkeypatch.setattr(kernel_features, "_MADV_WIPEONFORK", 999),
    }
    refusals[request.param]()
    return str(request.param)


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def refuse_futex(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has every call of futex fail; the list of calls by this thread grows."""
    calls: list[int] = []
    waiter = threading.get_ident()

    def call(*_: object) -> int:
        if threading.get_ident() == waiter:
            calls.append(1)
        ctypes.set_errno(errno.ENOSYS)
        return -1

    monkeypatch.setattr(wake, "_FUTEX", call)
    return calls


def test_nothing_is_refused_here() -> None:
    assert kernel_features.lacks() == 0


def test_it_is_found_by_trying_and_said(
    files: RunFiles, refused: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (bit,) = (bit for bit, lack in kernel_features.LACKS.items() if lack.name == refused)
    assert kernel_features.lacks() == bit
    Writer(files, 1, Snapshot("orders"))
    presence = Presence(files)
    assert [row.lacks for row in workers(files)] == [bit]
    status = read_status(files)
    assert status.workers[0].lacks == (refused,)
    (text,) = status.notes
    assert text.startswith(f"{refused}, in 1 of 1 workers (pid {os.getpid()}): it ")
    presence.close()
    # Once in a process, however many deployments it uses.
    monkeypatch.setattr(watch, "_lacks_logged", [0])
    caplog.set_level(logging.INFO)
    for bg_id in ("one", "two"):
        watch._log_lacks(bg_id)
    (record,) = (record for record in caplog.records if getattr(record, "event", "") == "system_call_refused")
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"[bg_id: 'one'] {refused}: it ")


def test_a_pool_that_opens_says_it(
    files: RunFiles, refused: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Member:
        pass

    monkeypatch.setattr(watch, "_lacks_logged", [0])
    monkeypatch.setattr("bgpool.pools.watcher.take", lambda _: None)
    participant, member = Participant("1", files.directory, lambda _: None), Member()
    participant.join(member)  # type: ignore[arg-type]  # nothing is asked of it
    participant.leave(member)  # type: ignore[arg-type]  # as above
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [f"'1'] {refused}"]


def test_a_waiter_that_is_refused_futex_looks_and_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = refuse_futex(monkeypatch)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    word = memoryview(page).cast("Q")
    assert not wake.wait_changed(word, wake.address_of(page, 0), 0, 0.1)
    assert len(calls) <= 11
    timer = threading.Timer(0.05, lambda: word.__setitem__(0, 7))
    timer.start()
    began = time.monotonic()
    assert wake.wait_changed(word, wake.address_of(page, 0), 0, 60.0)
    assert time.monotonic() - began < 30.0
    timer.join()
    assert not wake.has_futex()


def test_a_change_without_a_wake_up_is_detected(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor is in a sandbox without futex, the waiter is not: a caller is held for 30 s."""
    monkeypatch.setattr(wake, "FUTEX_SLEEP_S", 0.05)
    writer = Writer(files, 1, Snapshot("orders"))
    reader = Reader(files)
    reader.refresh()
    monkeypatch.setattr("bgpool.segment.wake.wake_all", lambda _address: None)
    timer = threading.Timer(0.02, lambda: writer.publish(Snapshot("orders", epoch=3)))
    timer.start()
    began = time.monotonic()
    assert reader.refresh().wait_changed(90.0)
    assert time.monotonic() - began < 30.0
    timer.join()


@pytest.mark.parametrize("wiped", [True, False], ids=["wiped by the kernel", "by process id"])
@pytest.mark.parametrize("hooks", [True, False], ids=["with hooks", "without hooks"])
def test_the_parents_word_is_zero_in_a_child(monkeypatch: pytest.MonkeyPatch, wiped: bool, hooks: bool) -> None:
    if not wiped:
        monkeypatch.setattr(forks, "wiped_page", lambda: None)
    word, mapped = parents_word(7), memoryview(array.array("Q", [7]))
    assert isinstance(word, PidWord) != wiped
    # As the quick way through a pool compares them.
    assert mapped == word

    def child() -> None:
        assert (word[0], mapped == word) == (0, False)

    assert (in_child if hooks else in_child_untold)(child) == 0
    word[0] = 0
    assert (word[0], mapped == word) == (0, False)


def test_a_python_built_for_an_older_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert kernel_features.memory_file() is None

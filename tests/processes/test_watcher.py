"""One thread watches all deployments of a process, and no event in one deployment delays another one."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgpool.core.phase import Phase
from bgpool.core.routing import Purpose
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.participant import Participant
from bgpool.pools.watch import Watch
from bgpool.segment import wake
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import workers
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer
from tests.processes.test_fork import in_child
from tests.processes.test_watch import Member

WaitUntil = Callable[..., None]

_unit_context = itertools.count(1)


class Noting(Member):
    """Records the phases that it receives, and then acts as the test requests."""

    def __init__(self, act: Callable[[Reading], object] = lambda _: None) -> None:
        self.phases: list[Phase] = []
        self._act = act

    def apply(self, reading: Reading) -> None:
        if reading.snapshot is not None:
            self.phases.append(reading.snapshot.phase)
        self._act(reading)


class Deployment:
    """A deployment whose monitor is the test; this process has a pool in it."""

    def __init__(self, directory: Path, bg_id: str, act: Callable[[Reading], object] = lambda _: None) -> None:
        self.files = RunFiles.of(directory, bg_id)
        self.writer = Writer(self.files, next(_unit_context), Snapshot(bg_id, Phase.CREATED))
        self.writer.beat()
        self.participant = Participant(bg_id, directory, lambda _: None)
        self.member = Noting(act)
        self.participant.join(self.member)

    def publish(self, phase: Phase) -> None:
        self.writer.publish(Snapshot(self.files.stem, phase))

    def has_heard(self, phase: Phase) -> bool:
        return phase in self.member.phases

    def leave(self) -> None:
        self.participant.leave(self.member)


Join = Callable[..., Deployment]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Join the deployment of a bg_id; at the end leave all, and check that no thread remains."""
    joined: list[Deployment] = []

    def join(bg_id: str, act: Callable[[Reading], object] = lambda _: None, where: str = "run") -> Deployment:
        prepare_run_dir(tmp_path / where)
        joined.append(Deployment(tmp_path / where, bg_id, act))
        return joined[-1]

    yield join
    for one in joined:
        one.leave()


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bgpool-watch"]


def refuse_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel lack the wait for several words, like before Linux 5.16."""
    monkeypatch.setattr(wake, "_futex_waitv", lambda _words: lambda _at: errno.ENOSYS)


@pytest.fixture(params=["one thread", "a thread each", "polling"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way of waiting, by the capabilities of the kernel."""
    if request.param == "a thread each":
        refuse_many(monkeypatch)
    elif request.param == "polling":
        monkeypatch.setattr(wake, "_FUTEX", None)
    return str(request.param)


def test_sixteen_deployments_have_as_few_threads_as_the_kernel_allows(
    join: Join, way: str, wait_until: WaitUntil
) -> None:
    deployments = [join(str(number)) for number in range(16)]
    assert len(watchers()) == (16 if way == "a thread each" else 1)
    for one in deployments:
        one.publish(Phase.PREPARATION)
        wait_until(lambda one=one: one.has_heard(Phase.PREPARATION))
    assert [len(workers(one.files)) for one in deployments] == [1] * 16
    for one in deployments[:15]:
        one.leave()
    deployments[15].publish(Phase.IN_PROGRESS)
    wait_until(lambda: deployments[15].has_heard(Phase.IN_PROGRESS))
    deployments[15].leave()
    wait_until(lambda: not watchers())


def test_more_deployments_than_one_wait_allows_have_another_thread(
    join: Join, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(wake, "_FUTEX_WAITV_MAX", 4)
    deployments = [join(str(number)) for number in range(7)]
    assert len(watchers()) == 3
    for one in deployments:
        one.publish(Phase.PREPARATION)
        wait_until(lambda one=one: one.has_heard(Phase.PREPARATION))


def test_a_deployment_that_comes_back_is_watched_again(join: Join, wait_until: WaitUntil) -> None:
    join("0")
    for _ in range(50):
        join("1").leave()
    again = join("1")
    again.publish(Phase.PREPARATION)
    wait_until(lambda: again.has_heard(Phase.PREPARATION))
    assert len(watchers()) == 1


@pytest.mark.usefixtures("way")
def test_a_failing_member_does_not_stop_deliveries_to_others(join: Join, wait_until: WaitUntil) -> None:
    def fail(_: Reading) -> None:
        raise SystemExit("a defect of the worst kind")

    broken, sound = join("0", fail), join("1")
    other = Noting()
    broken.participant.join(other)
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS):
        for one in (broken, sound):
            one.publish(phase)
        wait_until(lambda phase=phase: sound.has_heard(phase))
        # The other pools of the same deployment receive it, too.
        wait_until(lambda phase=phase: phase in other.phases)
    # The failed call is repeated.
    before = len(broken.member.phases)
    wait_until(lambda: len(broken.member.phases) > before + 1)
    broken.participant.leave(other)


def test_a_failing_log_handler_ends_no_watch(
    join: Join, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a handler of the application's")

    broken, sound = join("0", fail), join("1")
    monkeypatch.setattr("bgpool.pools.watch._logger.warning", fail)
    for one in (broken, sound):
        one.publish(Phase.IN_PROGRESS)
    wait_until(lambda: sound.has_heard(Phase.IN_PROGRESS))
    assert all(one.participant.is_watched() for one in (broken, sound))


def test_all_deployments_act_before_rows_and_logs_are_written(
    join: Join, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    """Rows and log lines are written after all deployments have acted on the published change."""
    order: list[str] = []
    both = [join(str(number), lambda reading, number=number: note(f"apply {number}", reading)) for number in range(2)]

    def note(what: str, reading: Reading) -> None:
        if reading.snapshot is not None and reading.snapshot.phase is Phase.IN_PROGRESS:
            order.append(what)

    for number, one in enumerate(both):
        watch = one.participant._watch
        monkeypatch.setattr(watch, "_report", lambda _, reading, number=number: note(f"row {number}", reading))
    for one in both:
        one.publish(Phase.IN_PROGRESS)
    wait_until(lambda: {"row 0", "row 1"} <= set(order))
    first_row = min(order.index("row 0"), order.index("row 1"))
    assert {"apply 0", "apply 1"} <= set(order[:first_row])


def test_a_stalled_deployment_does_not_delay_the_others(join: Join, wait_until: WaitUntil) -> None:
    go, stalled = threading.Event(), threading.Event()

    def stall(reading: Reading) -> None:
        if reading.snapshot is not None and reading.snapshot.phase is Phase.PREPARATION:
            stalled.set()
            go.wait(60)

    stuck = join("0", stall)
    others = [join(str(number)) for number in range(1, 4)]
    try:
        stuck.publish(Phase.PREPARATION)
        assert stalled.wait(20)
        for phase in (Phase.PREPARATION, Phase.IN_PROGRESS):
            for one in others:
                one.publish(phase)
            wait_until(lambda phase=phase: all(one.has_heard(phase) for one in others))
        assert all(one.participant.is_watched() for one in (stuck, *others))
        assert len(watchers()) == 2
        late = join("late")
        late.publish(Phase.PREPARATION)
        wait_until(lambda: late.has_heard(Phase.PREPARATION))
    finally:
        go.set()
    # The stalled member receives the missed change when it continues.
    stuck.publish(Phase.POST)
    wait_until(lambda: stuck.has_heard(Phase.POST))
    stuck.leave()
    wait_until(lambda: len(watchers()) == 1)


def test_the_deputy_ends_when_there_is_one_deployment_left(join: Join, wait_until: WaitUntil) -> None:
    def deputies() -> int:
        return sum(thread.name == "bgpool-watch-deputy" for thread in threading.enumerate())

    first = join("0")
    # The deputy of an earlier test may still be about to end.
    wait_until(lambda: deputies() == 0)
    for _ in range(2):
        second = join("1")
        assert deputies() == 1
        second.leave()
        wait_until(lambda: deputies() == 0)
    first.publish(Phase.PREPARATION)
    wait_until(lambda: first.has_heard(Phase.PREPARATION))


def test_a_removed_run_directory_does_not_stop_deliveries(join: Join, wait_until: WaitUntil) -> None:
    lost, sound = join("0", where="lost"), join("1")
    shutil.rmtree(lost.files.directory)
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS):
        sound.publish(phase)
        wait_until(lambda phase=phase: sound.has_heard(phase))
    # The process has its row again, and receives changes of the next monitor.
    wait_until(lambda: len(workers(lost.files)) == 1)
    Writer(lost.files, next(_unit_context), Snapshot("0", Phase.POST)).beat()
    wait_until(lambda: lost.has_heard(Phase.POST))


def test_a_held_caller_switches_to_the_file_of_the_next_monitor(
    join: Join, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    """The file was removed while no monitor lived: the mapped file of the waiting caller no longer changes."""
    monkeypatch.setattr(wake, "FUTEX_SLEEP_S", 3600.0)
    one = join("0")
    place, settings, _ = parse("postgresql://app@127.0.0.1/app", {"bg_connect_timeout_ms": 60_000})
    gate = Gate(one.participant.reader, settings, Endpoint(place, settings))
    held = Snapshot("0", Phase.CREATED, hold_until_ns=time.monotonic_ns() + 3600 * 10**9)
    one.writer.publish(held)
    caller = threading.Thread(target=gate.wait_admitted, args=(Purpose.CHECKOUT,), kwargs={"timeout_s": 60})
    caller.start()
    wait_until(lambda: gate.tally.held == 1)
    shutil.rmtree(one.files.directory)
    wait_until(lambda: len(workers(one.files)) == 1)
    Writer(one.files, next(_unit_context), Snapshot("0", Phase.CREATED)).beat()
    caller.join(20)
    assert not caller.is_alive()


def test_the_watcher_does_not_spin_without_a_monitor_while_callers_are_held(
    join: Join, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    looks: list[float] = []
    attend = Watch.attend

    def note(watch: Watch, now: float) -> None:
        looks.append(now)
        attend(watch, now)

    monkeypatch.setattr(Watch, "attend", note)
    one = join("0")
    monkeypatch.setattr(one.member, "usage", lambda: Usage(held=1))
    one.publish(Phase.IN_PROGRESS)
    one.participant.note_hold()
    wait_until(lambda: any(row.usage.held for row in workers(one.files)))
    one.files.segment.unlink()
    one.writer.leave()
    wait_until(lambda: one.participant.reader.refresh().mapped is None)
    time.sleep(0.2)
    looks.clear()
    time.sleep(1.0)
    assert len(looks) < 10


def test_a_change_published_without_a_wake_up_is_passed_on(
    join: Join, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    """A sandbox refuses futex to the monitor. Callers sleep for longer than the watcher, which wakes them."""
    monkeypatch.setattr(wake, "FUTEX_SLEEP_S", 3600.0)
    one = join("0")
    wait_until(lambda: one.has_heard(Phase.CREATED))
    real, monitor = wake.wake_all, threading.current_thread()
    monkeypatch.setattr(wake, "wake_all", lambda address: threading.current_thread() is monitor or real(address))

    def is_passed_on(phase: Phase) -> bool:
        reading = one.participant.reader.refresh()
        looks = threading.Event()

        def is_over() -> bool:
            looks.set()
            return False

        caller = threading.Thread(target=reading.wait_changed, args=(60.0, is_over))
        caller.start()
        assert looks.wait(30)
        # By then the caller sleeps.
        time.sleep(0.2)
        one.publish(phase)
        caller.join(5)
        is_woken = not caller.is_alive()
        assert reading.mapped is not None
        real(reading.mapped.address)
        caller.join(30)
        return is_woken

    # A watcher that happens to be awake assumes that the monitor wakes the callers.
    assert any(is_passed_on(phase) for phase in (Phase.PREPARATION, Phase.CREATED) * 3)


def test_a_child_has_its_own_thread(join: Join, wait_until: WaitUntil) -> None:
    one = join("0")
    wait_until(lambda: one.has_heard(Phase.CREATED))

    def child() -> None:
        assert not one.participant.is_watched()
        member = Noting()
        one.participant.join(member)
        assert one.participant.is_watched()
        wait_until(lambda: Phase.CREATED in member.phases)
        assert sorted(row.pid for row in workers(one.files)) == sorted([os.getpid(), os.getppid()])
        one.participant.leave(member)

    assert in_child(child) == 0
    assert one.participant.is_watched()
    one.publish(Phase.PREPARATION)
    wait_until(lambda: one.has_heard(Phase.PREPARATION))

"""``bgpool watch`` as a whole process: through switchovers, on a terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgpool.cli.watch import moments
from bgpool.core.phase import Phase
from bgpool.report import Event, Fleet, Monitor
from bgpool.segment.paths import prepare_run_dir
from tests.cli.conftest import PROGRAM, Hand, StartWorker
from tests.cli.screens import READY, SWITCHING
from tests.pools.callers import wait_until

END_S = 60


class Watch:
    """A watch without a terminal, whose lines can be waited for."""

    def __init__(self, program: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self.advice = ""

    def wait_for(self, text: str) -> str:
        """The next line with *text*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in {self.lines}, {self.process.stderr and self.process.stderr.read()}")

    def end(self) -> int:
        """The exit status; what was said to the operator last is the advice."""
        out, err = self.process.communicate(timeout=END_S)
        self.lines += out.splitlines()
        *_, self.advice = err.splitlines()
        return self.process.returncode


StartWatch = Callable[..., Watch]


@pytest.fixture
def start_watch(run_dir: Path, environment: dict[str, str]) -> Iterator[StartWatch]:
    """Starts a watch on the test's run directory."""
    begun: list[Watch] = []

    def start(*options: str, program: list[str] = PROGRAM) -> Watch:
        begun.append(Watch([*program, "watch", "--run-dir", str(run_dir), *options], environment))
        return begun[-1]

    yield start
    for watch in begun:
        watch.process.kill()
        watch.process.communicate()


def test_until_completed(hand: Hand, start_worker: StartWorker, start_watch: StartWatch) -> None:
    start_worker(held=3)
    watch = start_watch("--json", "--until-done")
    watch.wait_for('"phase": "CREATED"')
    for phase, evidence in (("PREPARATION", ""), ("IN_PROGRESS", ""), ("POST", "green promoted"), ("COMPLETED", "DNS")):
        hand.enter(Phase[phase], evidence)
        watch.wait_for(f'"event": "{phase}"')
    assert watch.end() == 0
    told = [json.loads(line) for line in watch.lines]
    assert list(told[0]) == [
        *("at", "bg_id", "phase", "event", "evidence", "offset_ms", "ready", "missing", "monitor", "fleet"),
        *("workers", "behind", "held", "in_use", "idle", "waiting", "drained", "cut"),
        *("failed", "longest_hold_ms", "max_size", "taking_part", "outside"),
    ]
    events = [(line["event"], line["evidence"]) for line in told if line["event"]]
    assert events == [("PREPARATION", ""), ("IN_PROGRESS", ""), ("POST", "green promoted"), ("COMPLETED", "DNS")]
    assert {(line["bg_id"], line["held"], line["workers"]) for line in told} == {("ledger", 3, 1)}
    assert watch.advice.startswith(
        "bg_id 'ledger': the switchover is complete and callers connect to green; check your"
    )


@pytest.mark.once
def test_until_rolled_back(hand: Hand, start_watch: StartWatch) -> None:
    hand.enter(Phase.PREPARATION)
    hand.enter(Phase.CREATED, event="CREATED (rollback)")
    watch = start_watch("--until-done")
    # The rollback of before is another attempt's.
    watch.wait_for("phase=CREATED")
    hand.enter(Phase.PREPARATION)
    watch.wait_for("event=PREPARATION")
    hand.enter(Phase.CREATED, event="CREATED (rollback)")
    assert watch.end() == 1
    assert 'event="CREATED (rollback)"' in watch.lines[-1]
    assert "was rolled back and callers connect to blue; find the reason in the deployment's events" in watch.advice


@pytest.mark.once
def test_a_switchover_that_is_over_already(hand: Hand, start_watch: StartWatch) -> None:
    hand.enter(Phase.PREPARATION)
    hand.enter(Phase.COMPLETED)
    assert start_watch("--until-done").end() == 0


@pytest.mark.once
def test_over_by_the_timer(hand: Hand, start_watch: StartWatch) -> None:
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS):
        hand.enter(phase)
    watch = start_watch("--until-done")
    watch.wait_for("phase=IN_PROGRESS")
    hand.enter(Phase.COMPLETED, "timer")
    assert watch.end() == 4
    assert "event=COMPLETED evidence=timer" in watch.lines[-1]
    assert "check in AWS which side is production before you do anything else" in watch.advice


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_the_time_is_up(start_watch: StartWatch) -> None:
    watch = start_watch("--until-done", "--timeout", "0.2")
    assert watch.end() == 3
    assert "phase=CREATED" in watch.lines[0]
    assert "the time is up, and no switchover has begun; this host is not ready: no worker" in watch.advice


@pytest.mark.once
def test_the_time_is_up_in_a_switchover(hand: Hand, start_watch: StartWatch) -> None:
    hand.enter(Phase.IN_PROGRESS)
    watch = start_watch("--timeout", "0.2")
    assert watch.end() == 3
    assert "the time is up in IN_PROGRESS; bgpool goes on without this command: watch again" in watch.advice


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_a_bg_id_that_may_be_mistyped(start_watch: StartWatch) -> None:
    watch = start_watch("--bg-id", "ledgre")
    assert watch.process.stderr is not None
    said = watch.process.stderr.readline()
    assert said.startswith("waiting: bg_id 'ledgre' is not known in run directory ")
    assert said.endswith("; known: 'ledger'\n")


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(start_watch: StartWatch, number: signal.Signals) -> None:
    watch = start_watch()
    watch.wait_for("phase=CREATED")
    watch.process.send_signal(number)
    assert watch.end() == 130
    assert watch.advice.startswith("bg_id 'ledger': stopped, and no switchover has begun; ")


def test_it_sleeps_in_the_kernel_until_something_is_published(hand: Hand, start_watch: StartWatch) -> None:
    patient = "from bgpool.cli import main, watch; watch._QUIET_S = watch.WATCH_INTERVAL_S = 3600.0; main()"
    watch = start_watch("--until-done", program=[sys.executable, "-c", patient])
    watch.wait_for("phase=CREATED")
    hand.enter(Phase.PREPARATION)
    watch.wait_for("event=PREPARATION")
    hand.enter(Phase.COMPLETED)
    assert watch.end() == 0


@pytest.mark.once
def test_a_watch_started_before_any_process(run_dir: Path, start_watch: StartWatch) -> None:
    prepare_run_dir(run_dir)
    watch = start_watch("--bg-id", "Ledger", "--until-done")
    watch.wait_for("no process on this host uses this bg_id")
    anywhere = start_watch("--until-done")
    assert anywhere.process.stderr is not None
    said = anywhere.process.stderr.readline()
    assert said.startswith(f"waiting: no process on this host has used a pool with run directory {run_dir} (user ")
    hand = Hand(run_dir, "ledger")
    with hand.alive():
        for each in (watch, anywhere):
            each.wait_for("phase=CREATED")
        hand.enter(Phase.PREPARATION)
        hand.enter(Phase.COMPLETED)
        assert (watch.end(), anywhere.end()) == (0, 0)
    assert sorted(path.name for path in run_dir.iterdir()) == ["ledger.history.json", "ledger.segment"]


@pytest.mark.once
def test_another_monitor_takes_over(hand: Hand, run_dir: Path, start_watch: StartWatch) -> None:
    watch = start_watch("--until-done")
    watch.wait_for("phase=CREATED")
    hand.writer.remove()
    watch.wait_for("no process on this host uses this bg_id")
    successor = Hand(run_dir, "ledger")
    with successor.alive():
        successor.enter(Phase.PREPARATION)
        watch.wait_for("PREPARATION")
        successor.enter(Phase.COMPLETED)
        assert watch.end() == 0


@pytest.mark.once
def test_several_deployments(run_dir: Path, start_watch: StartWatch) -> None:
    ledger, orders = Hand(run_dir, "ledger"), Hand(run_dir, "orders")
    with ledger.alive(), orders.alive():
        done = start_watch()
        out, err = done.process.communicate(timeout=END_S)
    assert (done.process.returncode, out) == (2, "")
    assert err == "there are several: choose one with --bg-id; there are 'ledger', 'orders'\n"
    watch = start_watch("--bg-id", "orders")
    watch.wait_for("bg_id=orders")


@pytest.mark.once
def test_what_is_in_use_comes_before_what_others_left_behind(
    run_dir: Path, start_watch: StartWatch, start_worker: StartWorker
) -> None:
    left = [Hand(run_dir, bg_id) for bg_id in ("ledger", "orders")]
    for hand in left:
        hand.writer._beat[0] = time.monotonic_ns() - 60 * 10**9
    start_worker(bg_id="orders")
    start_watch().wait_for("bg_id=orders")


@pytest.mark.once
def test_a_hostile_directory(run_dir: Path, start_watch: StartWatch) -> None:
    Hand(run_dir, "ledger")
    run_dir.chmod(0o755)
    watch = start_watch()
    out, err = watch.process.communicate(timeout=END_S)
    assert (watch.process.returncode, out) == (2, "")
    assert "has mode 0755" in err


class Terminal:
    """A watch on a terminal of 80 columns."""

    def __init__(self, run_dir: Path, environment: dict[str, str], rows: int, **more: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
        self.process = subprocess.Popen(
            [*PROGRAM, "watch", "--run-dir", str(run_dir)],
            env={**environment, "TERM": "xterm-256color", **more},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def read_until(self, text: str) -> None:
        """Read until *text* is there."""
        deadline = time.monotonic() + END_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self._ours], [], [], 0.2)[0] and not self._read():
                break
        assert text in self.seen, self.seen[-2000:]

    def close(self) -> int:
        """Read to the end; the exit status."""
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(END_S)

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            # What Linux makes of the end of a terminal.
            return False
        self.seen += data.decode()
        return bool(data)


def test_on_a_terminal(hand: Hand, start_worker: StartWorker, run_dir: Path, environment: dict[str, str]) -> None:
    for held in range(40):
        start_worker(held=held)
    terminal = Terminal(run_dir, environment, rows=24)
    terminal.read_until("CREATED")
    terminal.read_until(" more")
    hand.enter(Phase.PREPARATION)
    terminal.read_until("PREPARATION")
    hand.enter(Phase.IN_PROGRESS)
    terminal.read_until("IN_PROGRESS")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    assert "Traceback" not in terminal.seen
    assert terminal.seen.rfind("\x1b[?25h") > terminal.seen.rfind("\x1b[?25l"), "the cursor is there again"
    frames = terminal.seen.split("\x1b[2K")
    assert max(frame.count("\n") for frame in frames) < 24, "no frame is higher than the terminal"
    assert "IN_PROGRESS" in frames[-1], "what was seen last stays"


@pytest.mark.once
def test_colours_follow_the_environment(hand: Hand, run_dir: Path, environment: dict[str, str]) -> None:
    hand.enter(Phase.PREPARATION)
    terminal = Terminal(run_dir, environment, rows=24, NO_COLOR="1")
    terminal.read_until("PREPARATION")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    assert "\x1b[33m" not in terminal.seen
    assert "\x1b[1;33m" not in terminal.seen


# -- lines ---------------------------------------------------------------------------------------------------------


def test_the_first_line_tells_what_is_there() -> None:
    (moment,) = moments(None, SWITCHING)
    assert (moment.phase, moment.event, moment.offset_ms, moment.held) == ("IN_PROGRESS", "", 1420, 15)


def test_every_event_has_a_line_once() -> None:
    first, second = SWITCHING.events
    later = replace(SWITCHING, events=(first,))
    assert [moment.event for moment in moments(READY, SWITCHING)] == ["PREPARATION", "IN_PROGRESS"]
    # Offsets move when IN_PROGRESS becomes time zero.
    moved = replace(SWITCHING, events=(replace(first, offset_ms=-4000), second))
    assert [moment.event for moment in moments(later, moved)] == ["IN_PROGRESS"]
    (moment,) = moments(later, moved)
    assert (moment.at, moment.offset_ms) == (second.at, 0)


def test_what_is_no_change() -> None:
    busier = tuple(replace(worker, in_use=7, idle=0, age_s=0.3) for worker in READY.workers)
    older = Monitor("alive", 2101, 3, 0.4)
    assert list(moments(READY, replace(READY, workers=busier, monitor=older, sequence=8))) == []
    follower = Fleet("follower", "2f7c1b90a4d85e63", 0.2, 30, 0, "")
    later = replace(follower, leader="90b3cc41de07a152", age_s=0.4, hosts=29)
    assert list(moments(replace(READY, fleet=follower), replace(READY, fleet=later))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.PREPARATION},
        {"missing": ("green does not answer the monitor",)},
        {"monitor": Monitor("silent", 2101, 3, 9.0)},
        {"fleet": Fleet("follower", "2f7c1b90a4d85e63", 0.2, 30, 0, "")},
        {"workers": READY.workers[:3]},
        {"workers": (replace(READY.workers[0], held=1), *READY.workers[1:])},
        {"workers": (replace(READY.workers[0], failed=1), *READY.workers[1:])},
        {"workers": (replace(READY.workers[0], stale=True), *READY.workers[1:])},
        {"workers": (replace(READY.workers[0], taking_part=0, outside=1), *READY.workers[1:])},
    ],
)
def test_what_is_a_change(changes: dict[str, Any]) -> None:
    (moment,) = moments(READY, replace(READY, **changes))
    assert moment.event == ""


def test_a_line_tells_the_place_in_a_fleet() -> None:
    (moment,) = moments(None, replace(READY, fleet=Fleet("direct", "", None, None, 1, "no message for 1.5 s")))
    assert " monitor=alive fleet=direct workers=4 " in str(moment)


def test_a_line_can_be_taken_apart() -> None:
    event = Event("2026-11-25T14:12:24.500Z", 2587, "POST", "green promoted")
    (moment,) = moments(SWITCHING, replace(SWITCHING, bg_id='a "b"', events=(*SWITCHING.events, event), missing=()))
    assert str(moment) == (
        '2026-11-25T14:12:24.500Z bg_id="a \\"b\\"" phase=IN_PROGRESS event=POST evidence="green promoted" '
        "offset_ms=2587 ready=true monitor=alive workers=4 behind=1 held=15 in_use=3 idle=2 waiting=0 drained=13 cut=1 "
        "failed=2 longest_hold_ms=1420 max_size=20 taking_part=4 outside=0"
    )


@pytest.mark.once
def test_a_held_caller_is_reported_without_a_new_snapshot(
    start_worker: StartWorker, hand: Hand, start_watch: StartWatch
) -> None:
    hand.enter(Phase.IN_PROGRESS)
    watch = start_watch()
    watch.wait_for("held=0")
    start_worker(held=9)
    watch.wait_for("held=9")
    wait_until(lambda: watch.process.poll() is None)

"""``bgpool hold`` and ``bgpool release``, with the monitor of a database that is away."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing

import bgpool
from bgpool.cli import order
from bgpool.cli.app import app
from bgpool.cli.timeline.switchover import stories
from bgpool.core.events import Order
from bgpool.core.phase import Phase
from bgpool.core.timeline import HELD_BY_HAND, HOLD_OVER, RELEASED_BY_HAND
from bgpool.errors import ConfigurationError
from bgpool.segment import history
from bgpool.segment.orders import pack, unpack
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import workers
from bgpool.segment.table import Table
from tests.cli.conftest import Command, Hand, StartWorker
from tests.pools.callers import wait_until
from tests.processes.test_monitor import foreground, line_of


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run directory of a monitor that lives, of bg_id ``ledger``."""
    directory = tmp_path_factory.mktemp("order") / "run"
    prepare_run_dir(directory)
    with foreground("postgresql://app@127.0.0.1:1/app?bg_id=ledger", "--run-dir", str(directory)) as monitor:
        assert "started, term" in line_of(monitor)
        yield directory


def run(directory: Path, *words: str) -> tuple[int, str]:
    """The exit status of a command, and everything that it says."""
    done = typer.testing.CliRunner().invoke(app, [words[0], "--run-dir", str(directory), *words[1:]])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def status(command: Command, directory: Path) -> dict[str, Any]:
    (found,) = json.loads(command("status", "--run-dir", str(directory), "--json").stdout)
    return dict(found)


@pytest.mark.once
def test_hold_and_release(watched: Path, bgpool_command: Command) -> None:
    held = bgpool_command("hold", "--run-dir", str(watched), "--bg-id", "Ledger", "--for", "1h")
    assert (held.returncode, held.stderr) == (0, "")
    told = status(bgpool_command, watched)
    assert told["by_hand"]["order"] == "hold"
    assert 3_500_000 < told["by_hand"]["left_ms"] <= 3_600_000
    assert re.fullmatch(
        r"bg_id 'ledger': every checkout on this host waits until \S+T\S+Z; bgpool release ends it; "
        r"0 of 0 workers have acted on it\n",
        held.stdout,
    )
    assert any("an operator holds every checkout" in reason for reason in told["missing"])
    assert told["events"][-1]["event"] == "Held by hand"
    assert "by hand" in bgpool_command("status", "--run-dir", str(watched)).stdout
    assert run(watched, "release") == (0, "bg_id 'ledger': the hold is over; 0 of 0 workers have acted on it\n")
    told = status(bgpool_command, watched)
    assert told["by_hand"] is None
    assert (told["events"][-1]["event"], told["events"][-1]["evidence"]) == ("Hold over", "bgpool release")


def test_a_release_without_held_callers(watched: Path) -> None:
    assert run(watched, "release") == (0, "bg_id 'ledger': no caller is held (NOT_CREATED); nothing was changed\n")


def test_a_hold_that_takes_the_place_of_another(watched: Path, bgpool_command: Command) -> None:
    assert run(watched, "hold", "--for", "3600")[0] == 0
    assert run(watched, "hold", "--for", "300")[0] == 0
    assert status(bgpool_command, watched)["by_hand"]["left_ms"] <= 300_000
    assert run(watched, "hold", "--for", "1")[0] == 0
    wait_until(lambda: run(watched, "release")[1].endswith("no caller is held (NOT_CREATED); nothing was changed\n"))


@pytest.mark.parametrize("text", ["0", "3601", "2h", "61m", "-5", "1.5", "5 min", "", "99999999999"])
def test_durations_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 3600 seconds are allowed"):
        order.read_duration(text)
    assert run(Path("/nowhere"), "hold", "--for", text)[0] == 2


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("90s", 90), (" 5m ", 300), ("1h", 3600)])
def test_durations(text: str, seconds: int) -> None:
    assert order.read_duration(text) == seconds


@pytest.mark.parametrize("words", [("release",), ("hold", "--for", "60")], ids=" ".join)
@pytest.mark.parametrize("there", ["nothing", "a directory"])
def test_without_a_process_the_text_names_directory_and_user(words: tuple[str, ...], there: str, run_dir: Path) -> None:
    if there == "a directory":
        prepare_run_dir(run_dir)
    status, text = run(run_dir, *words)
    assert status == 2
    assert f"no process on this host has used a pool with run directory {run_dir} (user " in text
    assert "run this as the application's user" in text


@pytest.mark.parametrize("words", [("release",), ("hold", "--for", "60")], ids=" ".join)
def test_a_mistyped_bg_id(words: tuple[str, ...], watched: Path) -> None:
    status, text = run(watched, *words, "--bg-id", "leger")
    assert status == 2
    assert f"bg_id 'leger' is not known in run directory {watched}" in text
    assert "known: 'ledger'" in text


@pytest.mark.parametrize("words", [("release",), ("hold", "--for", "60")], ids=" ".join)
def test_with_a_monitor_that_is_silent(words: tuple[str, ...], run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hand(run_dir, "ledger")
    monkeypatch.setattr("bgpool.segment.reader.HEARTBEAT_STALE_S", -1.0)
    status, text = run(run_dir, *words)
    assert status == 2
    assert "bg_id 'ledger': no monitor lives on this host" in text


@pytest.mark.parametrize(
    ("limits", "said"), [((), ""), ((60_000,), ""), ((30_000, 5500), "; a caller gives up after 5.5 s")]
)
def test_a_hold_that_outlasts_its_callers(
    limits: tuple[int, ...], said: str, run_dir: Path, start_worker: StartWorker
) -> None:
    prepare_run_dir(run_dir)
    for limit_ms in limits:
        start_worker(hold_limit_ms=limit_ms)
    text = order._patience(RunFiles.of(run_dir, "ledger"), 60)
    assert text.startswith(said)
    assert bool(text) is bool(said)


def test_a_switchover_that_released_before_the_operator(hand: Hand, run_dir: Path) -> None:
    hand.enter(Phase.POST)
    text = order._result(hand.snapshot, Order.RELEASE, bgpool.status("ledger", run_dir))
    assert text == "no caller is held any more (POST); 0 of 0 workers have acted on it"


def test_an_order_is_obeyed_once(watched: Path) -> None:
    """A monitor that takes over, or one after a reboot, must not find it again."""
    table = Table(RunFiles.of(watched, "ledger"))
    assert run(watched, "hold", "--for", "60")[0] == 0
    assert table.order[0] == 0
    assert run(watched, "release")[0] == 0
    assert table.order[0] == 0


def test_a_directory_that_is_not_to_be_trusted(run_dir: Path) -> None:
    run_dir.mkdir()
    run_dir.chmod(0o777)
    assert run(run_dir, "release")[0] == 2


def test_a_hold_in_a_switchover(hand: Hand, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.segment.reader.HEARTBEAT_STALE_S", 3600.0)
    hand.enter(Phase.PREPARATION)
    status, text = run(run_dir, "hold", "--for", "60")
    assert status == 1
    assert "a switchover is under way (PREPARATION)" in text
    assert hand.snapshot.hold_until_ns == 0


def test_an_order_that_no_monitor_takes_is_taken_back(
    hand: Hand, run_dir: Path, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgpool.segment.reader.HEARTBEAT_STALE_S", 3600.0)
    monkeypatch.setattr(order, "ORDER_WAIT_S", 0.1)
    start_worker()
    status, text = run(run_dir, "hold", "--for", "60")
    assert status == 2
    assert "it was taken back" in text
    assert Table(hand.files).order[0] == 0
    assert len(workers(hand.files)) == 1, "and the table is as it was"


def test_what_is_held_after_a_switchover_is_no_part_of_its_record(hand: Hand) -> None:
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED):
        hand.enter(phase)
    kept = history.read(hand.files)
    for event in (HELD_BY_HAND, HOLD_OVER):
        hand.enter(Phase.COMPLETED, event=event)
    assert history.read(hand.files) == kept


@pytest.mark.parametrize(("kind", "seconds"), [(Order.RELEASE, 0), (Order.HOLD, 1), (Order.HOLD, 3600)])
def test_an_order_on_its_way(kind: Order, seconds: int) -> None:
    word = pack(kind, seconds, 123_456_789_999)
    assert word < 2**64
    assert unpack(word) == (kind, 123_456_000_000, 123_456_000_000 + (seconds or 3600) * 10**9)


@pytest.mark.parametrize("word", [0, 3601, 4095, (10**9 << 12) + 3601])
def test_what_is_no_order(word: int) -> None:
    assert unpack(word) is None
    with pytest.raises(ValueError, match="1 to 3600"):
        pack(Order.HOLD, 3601, 0)


def test_a_release_by_hand_ends_the_hold_of_the_record(hand: Hand, run_dir: Path) -> None:
    for phase, event in (
        (Phase.PREPARATION, ""),
        (Phase.IN_PROGRESS, ""),
        (Phase.IN_PROGRESS, RELEASED_BY_HAND),
        (Phase.POST, ""),
        (Phase.COMPLETED, ""),
    ):
        hand.enter(phase, "an operator" if event else "", event=event)
        time.sleep(0.002)
    ((story,), problems) = stories(hand.files, 1)
    assert problems == ()
    assert (story.evidence, story.release) == ("an operator", story.events[2])
    last = bgpool.status("ledger", run_dir).last_switchover
    assert last is not None
    assert last.evidence == "an operator"
    assert last.released_ms is not None
    assert story.hold_s is not None
    assert abs(last.released_ms - 1000 * story.hold_s) <= 1
    assert story.hold_s < story.bands[1].end_s, "the phase itself went on"

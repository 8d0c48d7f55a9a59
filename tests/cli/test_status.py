"""``bgpool status`` as a whole process: its exit status, its JSON, and what it looks like."""

from __future__ import annotations

import html
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.phase import Phase
from bgpool.report import Fleet
from bgpool.segment.paths import prepare_run_dir
from tests.cli.conftest import BLUE, GREEN, PROGRAM, Command, Hand, StartWorker
from tests.cli.screens import PICTURE, READY, SWITCHING, as_text

UntilReady = Callable[[], None]
HOST = os.uname().nodename


@pytest.mark.once
def test_ready(hand: Hand, start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command) -> None:
    for _ in range(64):
        start_worker(in_use=1)
    until_ready()
    # A worker that is up to date stays so while nothing is published.
    hand.publish(target_read_only=None)
    done = bgpool_command("status", "--ready")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{HOST}: bg_id 'ledger' is not ready: green does not answer the monitor\n" in done.stdout
    hand.publish(target_read_only=True)
    until_ready()


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_ready_tells_of_time_limits_that_do_not_fit(
    start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command
) -> None:
    for _ in range(2):
        start_worker(hold_limit_ms=30_000, busy_limit_ms=30_000, timer_ms=180_000)
    until_ready()
    done = bgpool_command("status", "--ready")
    assert done.returncode == 0, "it is ready all the same"
    first, _, *notes = done.stdout.splitlines()
    assert "is ready for a switchover: 2 workers" in first
    assert len(notes) == 2
    assert "bg_switchover_timeout_ms is 180 s, and AWS allows a switchover 300 s by default" in notes[0]
    assert "a caller is held for up to 30 s" in notes[1]
    assert "busy for 30 s" in notes[1]


def test_ready_takes_every_deployment(run_dir: Path, bgpool_command: Command) -> None:
    good, bad = Hand(run_dir, "good"), Hand(run_dir, "bad")
    bad.enter(Phase.PREPARATION)
    with good.alive(), bad.alive():
        done = bgpool_command("status", "--ready")
        assert done.returncode == 1
        assert "bg_id 'bad' is not ready: a switchover is under way: PREPARATION" in done.stdout


@pytest.mark.once
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_there(run_dir: Path, bgpool_command: Command, exists: bool) -> None:
    if exists:
        prepare_run_dir(run_dir)
    user = pwd.getpwuid(os.geteuid()).pw_name
    nobody = (
        f"no process on this host has used a pool with run directory {run_dir} (user {user}); run this as the "
        "application's user, or name its directory with --run-dir or $BGPOOL_RUN_DIR\n"
    )
    unready = f"{HOST}: bg_id 'orders' is not ready: no process on this host uses this bg_id\n"
    for options, code, text in (
        ([], 0, nobody),
        (["--ready"], 1, nobody),
        (["--json"], 0, "[]\n"),
        (["--bg-id", "Orders"], 1, nobody),
        (["--ready", "--bg-id", "Orders"], 1, unready + nobody),
    ):
        done = bgpool_command("status", *options)
        assert (done.returncode, done.stdout, done.stderr) == (code, text, "")
    assert list(run_dir.iterdir() if exists else run_dir.parent.iterdir()) == []


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_a_bg_id_that_is_not_known(run_dir: Path, bgpool_command: Command) -> None:
    """A mistyped name fails, and the text has the right one."""
    Hand(run_dir, "orders/eu")
    user = pwd.getpwuid(os.geteuid()).pw_name
    where = f"bg_id 'ledgre' is not known in run directory {run_dir} (user {user}); known: 'ledger', 'orders/eu'\n"
    done = bgpool_command("status", "--bg-id", "ledgre")
    assert (done.returncode, done.stdout, done.stderr) == (1, where, "")
    done = bgpool_command("status", "--bg-id", "ledgre", "--ready")
    unready = f"{HOST}: bg_id 'ledgre' is not ready: no process on this host uses this bg_id\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, unready + where, "")
    done = bgpool_command("status", "--bg-id", "ledgre", "--json")
    assert (done.returncode, json.loads(done.stdout)[0]["bg_id"], done.stderr) == (1, "ledgre", where)
    assert bgpool_command("status", "--bg-id", "Ledger").returncode == 0


@pytest.mark.once
@pytest.mark.parametrize(
    ("command", "code"), [("status", 2), ("watch", 2), ("timeline", 2), ("doctor", 2), ("monitor", 2), ("rehearse", 2)]
)
def test_arguments_that_are_no_utf8(command: str, code: int, tmp_path: Path, environment: dict[str, str]) -> None:
    """Seen: a traceback of thirty lines."""
    asked = {"doctor": ["-"], "monitor": ["-"]}.get(command, [])
    name: list[str | bytes] = ["--env", b"\xff"] if command == "rehearse" else ["--bg-id", b"\xff"]
    rest = ["--", "true"] if command == "rehearse" else []
    done = subprocess.run(
        [*PROGRAM, command, *asked, *name, *rest],
        env={**environment, "PYTHONIOENCODING": "utf-8:strict", "BGPOOL_RUN_DIR": str(tmp_path / "run")},
        input=b"postgresql://app@127.0.0.1:1/app",
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(("bg_id='\\udcff': text that can be written as UTF-8 is allowed", "--env '\\udcff': a name"))


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_directory_that_is_no_utf8(encoding: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """And output that has no arrows."""
    run_dir = tmp_path / os.fsdecode(b"run-\xff")
    program = [*PROGRAM, "status", "--run-dir", str(run_dir)]
    environment["PYTHONIOENCODING"] = encoding
    done = subprocess.run(program, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"run-\\udcff (user " in done.stdout
    Hand(run_dir, "ledger")
    done = subprocess.run(program, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert GREEN.encode() in done.stdout


def test_run_as_a_module(run_dir: Path, environment: dict[str, str]) -> None:
    program = [sys.executable, "-m", "bgpool", "status", "--run-dir", str(run_dir), "--json"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_where_bgpool_is_disabled_no_host_is_ready(start_worker: StartWorker, bgpool_command: Command) -> None:
    start_worker()
    done = bgpool_command("status", "--ready", BGPOOL_DISABLE="1")
    assert done.returncode == 1
    assert "bg_id 'ledger' is not ready: $BGPOOL_DISABLE is set here: with it every pool is a plain pool" in done.stdout
    (status,) = json.loads(bgpool_command("status", "--json", BGPOOL_DISABLE="on").stdout)
    assert status["disabled"]


def test_no_process_is_known_because_bgpool_is_disabled(bgpool_command: Command) -> None:
    assert "$BGPOOL_DISABLE is set here" in bgpool_command("status", BGPOOL_DISABLE="1").stdout


@pytest.mark.once
@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("options", [[], ["--ready"], ["--json"]], ids=" ".join)
def test_a_hostile_directory(run_dir: Path, bgpool_command: Command, options: list[str]) -> None:
    run_dir.chmod(0o755)
    done = bgpool_command("status", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"run directory {run_dir} has mode 0755; allowed are 0700, and 2770 to share it with the users of its group\n"
    )


@pytest.mark.parametrize("options", [["--bg-id", " "], ["--redy"], ["ledger"], ["--run-dir", ""]], ids=" ".join)
def test_a_wrong_call(bgpool_command: Command, options: list[str]) -> None:
    done = bgpool_command("status", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


NUMBER, TEXT = (int, float), str
FIGURES = (
    *("held", "in_use", "idle", "waiting", "drained", "cut", "failed", "longest_hold_ms", "max_size"),
    *("taking_part", "outside"),
)
SCHEMA: dict[str, Any] = {
    "bg_id": TEXT,
    "host": TEXT,
    "run_dir": TEXT,
    "phase": TEXT,
    "sequence": int,
    "missing": [TEXT],
    "monitor": {"state": TEXT, "pid": int, "term": int, "age_s": NUMBER, "parameters": TEXT, "visibility": TEXT},
    "timer_ms": int,
    "offset_ms": int,
    "endpoints": [{"blue": TEXT, "port": int, "blue_addresses": [TEXT], "green": TEXT, "green_addresses": [TEXT]}],
    "green_max_connections": int,
    "workers": [
        {
            **dict.fromkeys(("pid", "behind", *FIGURES), int),
            "age_s": NUMBER,
            "stale": bool,
            "stuck_passwords": int,
            "behind_proxy": int,
            "locked_out": int,
            "no_receipts": int,
            "lacks": list,
        }
    ],
    "events": [{"at": TEXT, "offset_ms": int, "event": TEXT, "evidence": TEXT}],
    "last_switchover": {"at": TEXT, "outcome": TEXT, "duration_ms": int, "released_ms": int, "evidence": TEXT},
    "disabled": bool,
    "blind": [TEXT],
    "by_hand": {"order": TEXT, "until": TEXT, "left_ms": int},
    "notes": [TEXT],
    "fleet": {
        "standing": TEXT,
        "leader": TEXT,
        "age_s": NUMBER,
        "hosts": int,
        "fallbacks": int,
        "reason": TEXT,
    },
    "ready": bool,
    "totals": dict.fromkeys(("workers", "behind", *FIGURES), int),
}


def assert_fits(value: Any, schema: Any, where: str = "") -> None:
    """Exactly these keys in this order, values of these types, and something in every list."""
    if isinstance(schema, dict):
        assert list(value) == list(schema), where
        for key, inner in schema.items():
            assert_fits(value[key], inner, f"{where}.{key}")
    elif isinstance(schema, list):
        assert value, f"{where} is empty"
        for item in value:
            assert_fits(item, schema[0], where)
    else:
        assert isinstance(value, schema), (where, value)


def test_the_json_stays_as_it_is(hand: Hand, start_worker: StartWorker, bgpool_command: Command) -> None:
    start_worker(held=4, timer_ms=180_000)
    hand.publish(target_max_connections=100)
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED, Phase.PREPARATION):
        hand.enter(phase, "metadata" if phase is Phase.POST else "")
    hand.writer.note_bus(time.monotonic_ns())
    hand.publish(
        release_until_ns=time.monotonic_ns() + 60 * 10**9, fleet=FleetView(FleetRole.FOLLOWER, "2f7c1b90a4d85e63", 30)
    )
    done = bgpool_command("status", "--json")
    assert done.returncode == 0
    (status,) = json.loads(done.stdout)
    assert_fits(status, SCHEMA)
    assert (status["phase"], status["endpoints"][0]["green"], status["totals"]["held"]) == ("PREPARATION", GREEN, 4)


@pytest.mark.once
def test_ready_tells_of_a_host_that_asks_the_database_itself(
    hand: Hand, start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command
) -> None:
    start_worker()
    hand.publish(fleet=FleetView(FleetRole.DIRECT, reason="bus-1 refuses\x1b[2J: NOPERM"))
    until_ready()
    done = bgpool_command("status", "--ready")
    assert done.returncode == 0, "it is ready all the same"
    assert "has a fleet's bus, but queries the database itself: bus-1 refuses" in done.stdout.splitlines()[-1]
    text = bgpool_command("status").stdout
    assert "fleet      direct, no message yet: bus-1 refuses" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("fleet", "line"),
    [
        (Fleet("leader", "2f7c1b90a4d85e63", 0.2, 30, 0, ""), "fleet      leader, 30 hosts, last message 0.2 s ago"),
        (
            Fleet("follower", "2f7c1b90a4d85e63", 0.2, 1, 1, ""),
            "fleet      follower of 2f7c1b90a4d85e63, 1 host, last message 0.2 s ago, 1\n           fallback",
        ),
        (
            Fleet("direct", "2f7c1b90a4d85e63", 7.2, 30, 3, "no message for 1.5 s"),
            "fleet      direct, 30 hosts, last message 7.2 s ago, 3 fallbacks: no message for\n           1.5 s",
        ),
    ],
)
def test_the_line_of_the_fleet(fleet: Fleet, line: str) -> None:
    assert line in as_text(replace(READY, fleet=fleet))
    assert "fleet" not in as_text(READY)


def test_reconnections_are_previewed(
    hand: Hand, start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command
) -> None:
    for _ in range(2):
        start_worker(max_size=10)
    hand.publish(target_max_connections=20)
    until_ready()
    ready = f"{HOST}: bg_id 'ledger' is ready for a switchover: 2 workers\n"
    wanted = "at the release 2 processes (max_size 10) may open up to 20 connections to green"
    text = f"{ready}{HOST}: bg_id 'ledger': {wanted}; its max_connections is 20, for all hosts\n"
    assert bgpool_command("status", "--ready").stdout == text
    hand.publish(target_max_connections=19)
    until_ready()
    done = bgpool_command("status", "--ready")
    assert done.returncode == 0, "a pool need not be full"
    assert f"WARNING: {wanted}; its max_connections is 19, for all hosts. Callers may time out: " in done.stdout
    hand.publish(target_max_connections=0)
    until_ready()
    assert f"{wanted}; how many it takes is not known yet\n" in bgpool_command("status", "--ready").stdout


@pytest.mark.once
def test_connections_that_an_application_keeps_itself_are_counted_as_they_are(
    hand: Hand, start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command
) -> None:
    start_worker(in_use=3, idle=9)
    start_worker(max_size=10, idle=1)
    hand.publish(target_max_connections=22)
    until_ready()
    wanted = "at the release 2 processes, not all of them with a max_size, may open 22 connections to green, or more"
    assert f"bg_id 'ledger': {wanted}; its max_connections is 22" in bgpool_command("status", "--ready").stdout
    hand.publish(target_max_connections=21)
    until_ready()
    assert f"WARNING: {wanted}; its max_connections is 21" in bgpool_command("status", "--ready").stdout


@pytest.mark.usefixtures("hand")
def test_the_text(start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command) -> None:
    pid = start_worker(held=4)
    until_ready()
    text = bgpool_command("status").stdout
    for part in ("ledger  CREATED", f"{BLUE}:5432  10.0.0.1", f"→ {GREEN}  10.0.0.2", str(pid), "term 3"):
        assert part in text
    assert "\x1b" not in text, "no terminal, no colours"
    assert max(map(len, bgpool_command("status", COLUMNS="80").stdout.splitlines())) <= 80


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_colours_are_for_terminals_that_want_them(bgpool_command: Command) -> None:
    assert "\x1b[1;36m  CREATED" in bgpool_command("status", FORCE_COLOR="1", TERM="xterm").stdout
    assert "36m" not in bgpool_command("status", FORCE_COLOR="1", TERM="xterm", NO_COLOR="1").stdout


def test_over_by_the_timer(hand: Hand, bgpool_command: Command) -> None:
    for phase, evidence in ((Phase.PREPARATION, ""), (Phase.IN_PROGRESS, ""), (Phase.COMPLETED, "timer")):
        hand.enter(phase, evidence)
    text = bgpool_command("status").stdout
    assert "ledger  COMPLETED by the timer\n" in text
    assert "by the timer: nothing showed that green was promoted" in text


@pytest.mark.once
@pytest.mark.usefixtures("hand")
def test_a_history_that_cannot_be_used_is_said(
    run_dir: Path, start_worker: StartWorker, until_ready: UntilReady, bgpool_command: Command
) -> None:
    """Seen: a host without a past, as far as status and timeline told."""
    start_worker()
    path = run_dir / "ledger.history.json"
    path.write_text("[{")
    path.chmod(0o600)
    until_ready()  # It is no obstacle.
    damaged = f"the history is damaged: {path} is no list in JSON"
    assert json.loads(bgpool_command("status", "--json").stdout)[0]["notes"] == [damaged]
    assert re.search(r"^note +the history is damaged: ", bgpool_command("status").stdout, re.MULTILINE)
    done = bgpool_command("timeline")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", damaged + "\n")
    path.write_text('[{"events": 7}]')
    assert "its last record cannot be read" in json.loads(bgpool_command("status", "--json").stdout)[0]["notes"][0]
    path.chmod(0o644)
    (note,) = json.loads(bgpool_command("status", "--json").stdout)[0]["notes"]
    assert note.startswith(f"the history is refused: {path} has mode 0644")


@pytest.mark.once
def test_names_from_files_do_nothing_to_a_terminal(run_dir: Path, bgpool_command: Command) -> None:
    Hand(run_dir, "x\x1b[2J[red]\n")
    done = bgpool_command("status", TERM="xterm", FORCE_COLOR="1")
    assert "\x1b[2J" not in done.stdout
    assert "x\N{REPLACEMENT CHARACTER}[2J[red]" in done.stdout
    assert "\x1b" not in bgpool_command("status", "--ready").stdout


def test_the_pipe_that_is_closed(run_dir: Path, environment: dict[str, str]) -> None:
    Hand(run_dir, "ledger")
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = [sys.executable, "-c", "from bgpool.cli import main; main()", "status", "--run-dir", str(run_dir)]
    done = subprocess.run(program, env=environment, stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments", [["--help"], ["status", "--json"], ["lab", "scenarios"], ["lab", "simulate", "--trace"]], ids=" ".join
)
def test_every_command_ends_with_its_reader(arguments: list[str], environment: dict[str, str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = [sys.executable, "-c", "from bgpool.cli import main; main()", *arguments]
    done = subprocess.run(program, env=environment, stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "standard output cannot be written: No"),
    ],
)
def test_output_that_goes_nowhere(
    redirection: str, status: int, said: str, run_dir: Path, environment: dict[str, str]
) -> None:
    """Seen: a traceback where standard output was closed, and another on a full disk."""
    Hand(run_dir, "ledger")
    command = f'"$@" --run-dir "$RUN_DIR" {redirection}'
    program = ["sh", "-c", command, "sh", sys.executable, "-m", "bgpool", "status"]
    more = {**environment, "RUN_DIR": str(run_dir)}
    done = subprocess.run(program, env=more, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert bool(done.stderr) is bool(said)


@pytest.mark.once
@pytest.mark.parametrize("command", ["status", "watch", "timeline", "monitor", "doctor"])
def test_no_second_try_will_help(command: str, tmp_path: Path, environment: dict[str, str]) -> None:
    tmp_path.chmod(0o755)
    asked = ["-"] if command in ("monitor", "doctor") else []
    calls = [([*asked, "--bg-id", " "], "postgresql://app@127.0.0.1:1/app")]
    if command != "doctor":
        calls.append(([*asked, "--run-dir", str(tmp_path)], "postgresql://app@127.0.0.1:1/app"))
    if asked:
        calls.append((asked, "postgresql://app@127.0.0.1:1/app?bg_nonsense=1"))
    for options, dsn in calls:
        program = [sys.executable, "-c", "from bgpool.cli import main; main()", command, *options]
        done = subprocess.run(program, env=environment, input=dsn, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, ""), (command, options)
        assert len(done.stderr.splitlines()) == 1


PAGE = Path(__file__).parents[2] / "docs" / "status.md"


def test_the_docs_show_what_it_looks_like() -> None:
    assert as_text(READY) in PAGE.read_text(encoding="utf-8")
    shown = html.unescape("".join(re.findall(r">([^<]*)</text>", PICTURE.read_text(encoding="utf-8"))))
    assert "".join(as_text(SWITCHING).split()) in "".join(shown.split()), "draw it again: python -m tests.cli.screens"


@pytest.mark.usefixtures("hand")
def test_the_snippet_of_the_docs(run_dir: Path, environment: dict[str, str]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    there = {**environment, "BGPOOL_RUN_DIR": str(run_dir)}
    done = subprocess.run([sys.executable, "-c", snippet], env=there, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 0\n")

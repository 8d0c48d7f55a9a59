"""Every log line carries its fields, and each kind of line is documented."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import bgpool
from bgpool import registry
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Notice, Snapshot
from bgpool.logs import utc_formatter
from bgpool.pools.participant import Participant
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer
from bgpool.settings import Settings
from tests.pools.callers import wait_until

PACKAGE = Path(bgpool.__file__).parent
DOCS = Path(__file__).parents[1] / "docs" / "errors.md"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the library; the lab is for its developers."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "lab" not in path.relative_to(PACKAGE).parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path, node


def test_every_line_has_fields() -> None:
    found = 0
    for path, call in calls():
        name = call.func
        is_line = (
            isinstance(name, ast.Attribute) and name.attr in LEVELS and "logger" in ast.unparse(name.value).lower()
        )
        if is_line:
            found += 1
            assert any(keyword.arg == "extra" for keyword in call.keywords), f"{path}:{call.lineno} has no extra="
    assert found > 15


def test_every_kind_of_line_is_documented() -> None:
    made = set()
    for _, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        where = {"log_fields": 0, "_fields": 0, "_complain": 0, "add_notice": 3, "_say": 2}.get(name)
        if where is not None and len(call.args) > where and isinstance(kind := call.args[where], ast.Constant):
            made.add(kind.value)
    table = DOCS.read_text(encoding="utf-8").split("| logger | `event` |")[1].split("\n\n")[0]
    documented = {word for line in table.splitlines()[2:] for word in re.findall(r"`([a-z_]+)`", line)} - {"bg_id"}
    assert documented == made


class Nobody:
    """A pool that does nothing."""

    def apply(self, reading: Reading) -> None: ...

    def tick(self) -> float:
        return math.inf

    def __init__(self, **usage: int) -> None:
        self._usage = Usage(**usage)

    def usage(self) -> Usage:
        return self._usage

    def is_holding(self, _: Reading) -> bool:
        return False

    def take_longest_hold_s(self) -> float:
        return 0.0


def test_what_the_monitor_says_is_relayed_with_its_fields(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_run_dir(tmp_path / "run")
    writer = Writer(RunFiles.of(tmp_path / "run", "ledger"), 1, Snapshot("ledger", Phase.CREATED))
    participant, nobody = Participant("ledger", tmp_path / "run", lambda _files: None), Nobody()
    participant.join(nobody)
    caplog.set_level(logging.INFO, "bgpool")
    line = Notice(1, logging.INFO, "bgpool.switchover", "ready for a switchover", "ready")
    writer.publish(Snapshot("ledger", Phase.CREATED, ready=True, notices=(line,)))
    wait_until(lambda: bool(caplog.records))
    participant.leave(nobody)
    (record,) = caplog.records
    assert record.name == "bgpool.switchover"
    assert record.getMessage() == "[bg_id: 'ledger'] ready for a switchover"
    assert told(record) == {"bg_id": "ledger", "phase": "CREATED", "event": "ready", "host": ""}


def test_at_readiness_a_server_that_may_end_a_held_worker_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = RunFiles.of(tmp_path / "run", "ledger")
    prepare_run_dir(files.directory)
    writer = Writer(files, 1, Snapshot("ledger", Phase.CREATED))
    participant = Participant("ledger", files.directory, lambda _files: None)
    member = Nobody(hold_limit_ms=30_000, busy_limit_ms=30_000)
    participant.join(member)
    caplog.set_level(logging.INFO, "bgpool")
    line = Notice(1, logging.INFO, "bgpool.switchover", "ready for a switchover", "ready")
    writer.publish(Snapshot("ledger", Phase.CREATED, ready=True, notices=(line,)))
    wait_until(lambda: len(caplog.records) == 2)
    participant.leave(member)
    assert "held for up to 30 s" in caplog.text
    assert "busy for 30 s" in caplog.text
    assert told(caplog.records[1])["event"] == "misfit"


def _is_said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


def test_what_a_segment_made_anew_has_to_say_is_relayed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its lines count from 1 again."""
    files = RunFiles.of(tmp_path / "run", "ledger")
    prepare_run_dir(files.directory)
    lines = [Notice(number, logging.INFO, "bgpool.switchover", f"line {number}", "ready") for number in (1, 2, 3)]
    writer = Writer(files, 1, Snapshot("ledger", Phase.CREATED, notices=tuple(lines)))
    participant, nobody = Participant("ledger", files.directory, lambda _files: None), Nobody()
    caplog.set_level(logging.INFO, "bgpool.switchover")
    participant.join(nobody)
    for number in (4, 5):
        lines.append(Notice(number, logging.INFO, "bgpool.switchover", f"line {number}", "ready"))
        writer.publish(Snapshot("ledger", Phase.CREATED, notices=tuple(lines[-2:])))
        wait_until(partial(_is_said, caplog, f"line {number}"))
    anew = Notice(1, logging.INFO, "bgpool.switchover", "begun anew", "ready")
    writer.publish(Snapshot("ledger", Phase.CREATED, notices=(anew,)))
    wait_until(lambda: "begun anew" in caplog.text)
    writer.publish(Snapshot("ledger", Phase.CREATED, ready=True, notices=(anew,)))
    participant.leave(nobody)
    said = [record.message.partition("] ")[2] for record in caplog.records]
    assert said == ["line 4", "line 5", "begun anew"], "each once, and what was said before we came, not at all"


def test_a_format_may_name_every_field(caplog: pytest.LogCaptureFixture) -> None:
    Settings.from_mapping({"bg_interval_high_ms": 5000})
    (record,) = caplog.records
    text = logging.Formatter("%(event)s bg_id=%(bg_id)s phase=%(phase)s host=%(host)s").format(record)
    assert text == "unusual_parameter bg_id= phase= host="


def told(record: logging.LogRecord) -> dict[str, str]:
    return {name: getattr(record, name) for name in ("bg_id", "phase", "event", "host")}


def test_logs_of_bgpools_own_have_a_zone() -> None:
    record = logging.makeLogRecord({"msg": "phase", "created": 1795000000.25, "msecs": 250.0, "levelname": "INFO"})
    assert utc_formatter("%(levelname)s %(message)s").format(record) == "2026-11-18T11:06:40.250Z INFO phase"


def test_a_closed_pool_is_not_opened_by_a_hook(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bgpool.get_pool("postgresql://app@127.0.0.1:1/app", "closed", bg_run_dir=tmp_path).close()
    registry.open_pools()
    assert "'closed'" not in caplog.text

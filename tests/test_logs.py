"""Every log line carries its fields, and each kind of line is documented."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
NIGHT = Path(__file__).parents[1] / "docs" / "night.md"
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


class Line(NamedTuple):
    """A kind of line, from one call in the source.

    Attributes:
        where: File and line number.
        level: Its name; empty if the call does not name it.
        texts: Patterns of the possible texts; none if the call does not contain them.
    """

    where: str
    event: str
    level: str
    texts: tuple[str, ...]


#: By the name of the function called: the places of the event, of the text and of the level among its arguments.
_KINDS = {"_complain": (0, 1, None), "add_notice": (3, 4, 1), "_say": (2, 3, 1)}


def lines() -> Iterator[Line]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "lab" in path.relative_to(PACKAGE).parts:
            continue
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _lines_of(function, path)


def _lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> Iterator[Line]:
    found: list[ast.Call] = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    # A function of the module may stand for log_fields with an event of its own.
    fields = [call for call in found if _name(call) in ("log_fields", "_fields")]
    logged = [call for call in found if any(keyword.arg == "extra" for keyword in call.keywords)]
    for call in fields:
        if not call.args or not isinstance(call.args[0], ast.Constant):
            continue
        near = min(logged, key=lambda one: abs(one.lineno - call.lineno), default=None)
        texts = _texts(near.args[0], function) if near is not None and near.args else ()
        yield Line(f"{path}:{call.lineno}", str(call.args[0].value), _level(near), texts)
    for call in found:
        kind = _KINDS.get(_name(call))
        if kind is not None and len(call.args) > kind[0] and isinstance(event := call.args[kind[0]], ast.Constant):
            level = ast.unparse(call.args[kind[2]]).removeprefix("logging.") if kind[2] is not None else "WARNING"
            yield Line(f"{path}:{call.lineno}", str(event.value), level, _texts(call.args[kind[1]], function))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _level(call: ast.Call | None) -> str:
    name = _name(call) if call is not None else ""
    return {"exception": "ERROR", "_warn": "WARNING"}.get(name, name.upper() if name in LEVELS else "")


def _texts(node: ast.AST, function: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        # The last one above the call.
        values = [
            (assigned.lineno, pattern(assigned.value))
            for assigned in ast.walk(function)
            if isinstance(assigned, ast.Assign) and ast.unparse(assigned.targets[0]) == node.id
        ]
        return tuple(filter(None, (text for line, text in sorted(values)[::-1] if line < node.lineno)))[:1]
    return tuple(filter(None, [pattern(node)]))


def pattern(node: ast.AST) -> str:
    """A regular expression for a text that *node* makes; empty where less than two words of it are fixed."""
    parts: list[str] = []
    fixed = ""
    for part in node.values if isinstance(node, ast.JoinedStr) else [node]:
        if not isinstance(part, ast.Constant) or not isinstance(part.value, str):
            parts.append(".*?")
            continue
        for place, text in enumerate(re.split(r"%(?:\.\d)?[rsdf]", part.value.removeprefix("[bg_id: %r] "))):
            parts += [".*?"] if place else []
            parts.append(re.sub(r"\\\s+", r"\\s+", re.escape(text)))
            fixed += f"{text} "
    return "".join(parts) if len(re.findall(r"[a-z]{2,}", fixed)) > 1 else ""


def on_the_page() -> dict[str, str]:
    """By event, its row in docs/night.md."""
    rows = re.findall(r"^\| `([a-z_]+)` (\|.*)$", NIGHT.read_text(encoding="utf-8").split("## Status")[0], re.MULTILINE)
    assert len({event for event, _ in rows}) == len(rows), "an event has two rows"
    return dict(rows)


def test_every_kind_of_line_is_documented() -> None:
    made = list(lines())
    assert len(made) > 50
    rows = on_the_page()
    assert set(rows) == {line.event for line in made}
    for line in made:
        if line.level:
            assert line.level in rows[line.event].split("|")[1], line
    for event, row in rows.items():
        texts = {text for line in made if line.event == event for text in line.texts}
        for text in texts:
            assert re.search(text, row), f"the row of {event} has no example of {text!r}"


#: The modules whose texts are the reasons and notes of a status, and the last sentences of a watch.
TOLD_IN = ["report/reasons.py", "core/timeouts.py", "segment/kernel_features.py", "cli/advice.py"]


def strings(module: str) -> Iterator[str]:
    """Patterns of the texts that *module* of bgpool makes for people."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inner = {id(part) for node in joined for part in ast.walk(node) if part != node}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner | docs:
            is_text = isinstance(node, ast.JoinedStr) or (isinstance(node.value, str) and " " in node.value)
            if is_text and (text := pattern(node)):
                yield text


@pytest.mark.parametrize(
    "module", ["report/reasons.py", "core/timeouts.py", "segment/kernel_features.py", "cli/advice.py"]
)
def test_every_reason_is_documented(module: str) -> None:
    page = " ".join(NIGHT.read_text(encoding="utf-8").split("## Status")[1].split())
    found = list(strings(module))
    assert len(found) > 2
    for text in found:
        assert re.search(text, page), f"docs/night.md has no example of {text!r}"


def test_every_line_of_the_status_is_documented() -> None:
    page = NIGHT.read_text(encoding="utf-8").split("## Status")[1]
    labels = {
        label
        for node in ast.walk(ast.parse((PACKAGE / "cli" / "view.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple)
        for constant in ast.walk(node.value.elts[0])
        if isinstance(constant, ast.Constant) and isinstance(label := constant.value, str) and label
    }
    assert len(labels) > 10
    assert set(re.findall(r"^\| `([a-z ]+)` \|", page, re.MULTILINE)) >= labels


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


def test_at_readiness_a_server_that_may_end_a_held_worker_is_logged(
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
    assert told(caplog.records[1])["event"] == "time_limit_too_short"


def _is_said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


def test_notices_of_a_new_segment_are_relayed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    anew = Notice(1, logging.INFO, "bgpool.switchover", "restarted", "ready")
    writer.publish(Snapshot("ledger", Phase.CREATED, notices=(anew,)))
    wait_until(lambda: "restarted" in caplog.text)
    writer.publish(Snapshot("ledger", Phase.CREATED, ready=True, notices=(anew,)))
    participant.leave(nobody)
    said = [record.message.partition("] ")[2] for record in caplog.records]
    assert said == ["line 4", "line 5", "restarted"], "each once, without lines from before the relay began"


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

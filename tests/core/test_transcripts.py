"""Incidents as text files that read like a story; every line is an event and what must be true after it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bgpool.core.events import (
    Answered,
    CertificateRenewed,
    Event,
    Instant,
    MetadataAbsent,
    ProbeFailed,
    Resolved,
    StatusRead,
    StatusRow,
    Tick,
)
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Action, Purpose, decide
from bgpool.core.snapshot import Snapshot

BLUE = "db.c0.us-east-1.rds.amazonaws.com"
GREEN = "db-green-abc123.c0.us-east-1.rds.amazonaws.com"
OLD = "db-old1.c0.us-east-1.rds.amazonaws.com"
HERE = Path(__file__).parent / "transcripts"
LINE = re.compile(
    r"(?P<at>[\d.]+)\s+(?P<event>.+?)\s+->\s+(?P<phase>\w+)(?P<ready> ready)?(?: \((?P<evidence>.+)\))?\s*(?P<hosts>.*)"
)


def event_of(text: str, at: Instant) -> Event:
    who, _, what = text.partition(" ")
    if who == "tick":
        return Tick(at)
    if who == "dns":
        found = dict(item.split("=") for item in what.split())
        return Resolved(
            at,
            {name: () if found[key] == "gone" else (found[key],) for key, name in (("blue", BLUE), ("green", GREEN))},
        )
    role = Role.SOURCE if who.startswith("blue") else Role.TARGET
    if what == "error":
        return ProbeFailed(at, role, "connection refused")
    if what == "absent":
        return MetadataAbsent(at, role, "nothing to be seen")
    if what == "empty":
        return StatusRead(at, role, ())
    if what in ("reads-only", "takes-writes"):
        return Answered(at, role, what == "reads-only")
    if what == "certificate":
        return CertificateRenewed(at, GREEN)
    names = (OLD, BLUE) if who.endswith("-renamed") else (BLUE, GREEN)
    return StatusRead(
        at, role, tuple(StatusRow(name, 5432, side.value, what) for name, side in zip(names, Role, strict=True))
    )


def outcome(snapshot: Snapshot, host: str) -> str:
    decision = decide(snapshot, host, Purpose.CHECKOUT)
    return decision.addresses[0] if decision.action is Action.ROUTE else decision.action.value


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    snapshot = Snapshot("1")
    seen = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        assert match, f"{path.name}:{number} cannot be read: {line}"
        ns = int(float(match["at"]) * 1e9)
        epoch = snapshot.epoch
        snapshot = step(snapshot, event_of(match["event"], Instant(ns, ns)), Rules())
        where = f"{path.name}:{number}: {line.strip()}\n{snapshot}"
        assert snapshot.phase is Phase[match["phase"]], where
        assert snapshot.epoch >= epoch, where
        if match["evidence"]:
            assert [e.evidence for e in snapshot.timeline if e.event == snapshot.phase.name][-1] == match["evidence"]
        if match["ready"]:
            assert snapshot.ready, where
        for expected in match["hosts"].split():
            side, _, what = expected.partition("=")
            assert outcome(snapshot, BLUE if side == "blue" else GREEN) == what, where
        seen += 1
    assert seen > 3

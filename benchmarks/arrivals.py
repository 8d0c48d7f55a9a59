"""Connections as a PostgreSQL server sees them come, from its log: when each was received, and when it was let in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

__all__ = ["SETTINGS", "Attempt", "attempts", "most_at_once"]

#: What a server needs, beside the lab's own line prefix, to tell. Its log is in UTC.
SETTINGS: Final[Mapping[str, str]] = {"log_connections": "on"}

_LINE: Final = re.compile(
    r"^(?P<at>\S+ \S+) UTC \[(?P<pid>\d+)\] (?P<user>[^@ ]+)@\S+ .*?(?P<level>LOG|FATAL): +(?P<text>.*)$"
)
_AUTHORIZED: Final = re.compile(r"connection authorized: user=(?P<user>\S+)")
_UNKNOWN: Final = "[unknown]"


@dataclass(slots=True)
class Attempt:
    """One connection that somebody tried to open; times are seconds since 1970, in whole ms.

    Attributes:
        user: The role; empty if nobody came to say.
        ended_s: When it was let in, or refused; for one that was given up by the other side, when it came.
        ok: Whether it was let in.
    """

    user: str
    received_s: float
    ended_s: float
    ok: bool = False


def attempts(lines: Iterable[str]) -> list[Attempt]:
    """The attempts that *lines* of a log tell of, in the order in which they came."""
    found: list[Attempt] = []
    # By process: a server gives each connection one of its own.
    coming: dict[str, Attempt] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        at_s = datetime.fromisoformat(match["at"]).replace(tzinfo=timezone.utc).timestamp()
        if match["text"].startswith("connection received"):
            coming[match["pid"]] = attempt = Attempt("", at_s, at_s)
            found.append(attempt)
            continue
        waiting = coming.get(match["pid"])
        if waiting is None:
            continue
        let_in = _AUTHORIZED.match(match["text"])
        if let_in is not None or match["level"] == "FATAL":
            del coming[match["pid"]]
            waiting.ok, waiting.ended_s = let_in is not None, at_s
        user = let_in["user"] if let_in is not None else match["user"]
        waiting.user = waiting.user if user == _UNKNOWN else user
    return found


def most_at_once(of: Iterable[Attempt]) -> int:
    """Most of *of* that were under way at one moment: received, and neither let in nor refused."""
    steps = [step for each in of for step in ((each.received_s, 0, 1), (each.ended_s, 1, -1))]
    most = now = 0
    # Of what happens in one ms, what begins is counted first: rather one too many than one too few.
    for _, _, change in sorted(steps):
        now += change
        most = max(most, now)
    return most

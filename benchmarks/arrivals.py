"""Connection attempts from the log of a PostgreSQL server: the times at which each was received and authorized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

__all__ = ["SETTINGS", "Attempt", "attempts", "most_at_once"]

#: The setting that a server needs in addition to the lab's line prefix. Its log is in UTC.
SETTINGS: Final[Mapping[str, str]] = {"log_connections": "on"}

_LINE: Final = re.compile(
    r"^(?P<at>\S+ \S+) UTC \[(?P<pid>\d+)\] (?P<user>[^@ ]+)@\S+ .*?(?P<level>LOG|FATAL): +(?P<text>.*)$"
)
_AUTHORIZED: Final = re.compile(r"connection authorized: user=(?P<user>\S+)")
_UNKNOWN: Final = "[unknown]"


@dataclass(slots=True)
class Attempt:
    """An attempt of a client to open a connection. Times are seconds since 1970, in whole ms.

    Attributes:
        user: The role; empty if the client did not send one.
        ended_s: The time at which the attempt was authorized or refused. If the client gave up, the time at which it
            was received.
        ok: True if it was authorized.
    """

    user: str
    received_s: float
    ended_s: float
    ok: bool = False


def attempts(lines: Iterable[str]) -> list[Attempt]:
    """Return the attempts in *lines* of a log, in the order in which they were received."""
    found: list[Attempt] = []
    # By process: the server has one for each connection.
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
    """Return the largest number of *of* that were under way at the same time: received but not yet ended."""
    steps = [step for each in of for step in ((each.received_s, 0, 1), (each.ended_s, 1, -1))]
    most = now = 0
    # Within one ms, attempts that begin are counted first: the result may be one too many, never one too few.
    for _, _, change in sorted(steps):
        now += change
        most = max(most, now)
    return most

"""The monitors' queries and connections of a PostgreSQL server, with their times, read from its log.

A log is complete and disturbs little. Every host's monitor logs in under a role of its own, which identifies the host
of each line, also of a refused login.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, NamedTuple

from bgpool.lab.pair import MONITOR_ROLE, Pair

__all__ = [
    "SETTINGS",
    "Query",
    "ServerSession",
    "Traffic",
    "busiest",
    "make_roles",
    "most_at_once",
    "read_log",
    "role_of",
]

SETTINGS: Final[Mapping[str, str]] = {"log_connections": "on", "log_disconnections": "on"}
"""The servers' settings for the log."""

# The format of log_line_prefix in POSTGRESQL_CONF.
_LINE: Final = re.compile(
    rf"(?P<at>\S+ \S+) UTC \[(?P<pid>\d+)\] {MONITOR_ROLE}_(?P<host>\d+)@\S+ .*?(?P<level>LOG|FATAL):  (?P<text>.*)"
)
#: Every query of a monitor contains this.
_QUESTION: Final = "pg_is_in_recovery()"


class Query(NamedTuple):
    """A query, or a login that was refused; the time is on the wall clock, in seconds, to the millisecond."""

    at_s: float
    host: int
    refused: bool = False


class ServerSession(NamedTuple):
    """A connection, from the login to its end, which is infinite for one that never ended."""

    from_s: float
    to_s: float
    host: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """The traffic of one server, in the order of time."""

    questions: tuple[Query, ...]
    stays: tuple[ServerSession, ...]

    def between(self, from_s: float, to_s: float) -> Sequence[Query]:
        """Return the queries from *from_s* to *to_s*, without the latter."""
        times = [question.at_s for question in self.questions]
        return self.questions[bisect_left(times, from_s) : bisect_left(times, to_s)]


def role_of(host: int) -> str:
    """Return the role of the monitor of *host*."""
    return f"{MONITOR_ROLE}_{host}"


def make_roles(pair: Pair, hosts: int) -> None:
    """Create the roles of so many hosts on an open pair of PostgreSQL; their queries are logged."""
    for host in range(hosts):
        role = role_of(host)
        pair.define(
            f"CREATE ROLE {role} LOGIN PASSWORD '{pair.lab_password}' IN ROLE {MONITOR_ROLE}",
            f"ALTER ROLE {role} SET log_statement = 'all'",
        )


def read_log(path: Path) -> Traffic:
    """Return the traffic of monitors in the log at *path*."""
    questions, stays = [], []
    began: dict[str, tuple[float, int]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (found := _LINE.match(line)) is None:
                continue
            at_s, pid, host, text = _seconds(found["at"]), found["pid"], int(found["host"]), found["text"]
            if text.startswith("connection authorized:"):
                began[pid] = (at_s, host)
            elif text.startswith("disconnection:"):
                if pid in began:
                    stays.append(ServerSession(began.pop(pid)[0], at_s, host))
            elif found["level"] == "FATAL":
                # A connection that was cut has another line at its end.
                if pid not in began:
                    questions.append(Query(at_s, host, refused=True))
            elif _QUESTION in text:
                questions.append(Query(at_s, host))
    stays += [ServerSession(at_s, float("inf"), host) for at_s, host in began.values()]
    return Traffic(tuple(sorted(questions)), tuple(sorted(stays)))


def most_at_once(stays: Iterable[ServerSession], from_s: float, to_s: float) -> int:
    """Return the largest number of simultaneous *stays* between *from_s* and *to_s*."""
    steps = []
    for stay in stays:
        if stay.from_s < to_s and stay.to_s > from_s:
            # An end in the same millisecond as a beginning counts first.
            steps += [(max(stay.from_s, from_s), 1), (stay.to_s, -1)]
    most = now = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def busiest(questions: Sequence[Query], window_s: float, wanted: Callable[[Query], bool] = lambda _: True) -> int:
    """Return the largest number of *wanted* ones within any *window_s* seconds."""
    times = [question.at_s for question in questions if wanted(question)]
    first = most = 0
    for last, at_s in enumerate(times):
        while times[first] <= at_s - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()

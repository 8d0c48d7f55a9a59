"""A table that applications write to, and its check for lost, doubled, split-brain and half-committed rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, NamedTuple

from bgpool.core.engine import Engine
from bgpool.lab.pair import DATABASE, ROLE, Pair
from bgpool.lab.server import Server

Key = tuple[int, int, int]
"""The worker, the thread and that thread's own running number: a client's knowledge of its row."""

INSERT_SQL = "INSERT INTO ledger (worker, thread, n) VALUES (%s, %s, %s)"
"""The statement of a client, with a `Key` as parameters; valid for psycopg's and PyMySQL's placeholders."""

MOST_EXAMPLES = 20


def second_of(key: Key) -> Key:
    """Return the key of the second row of a unit of work that writes two: the first one's number, negated."""
    worker, thread, n = key
    return worker, thread, -n


# Deliberately no unique key on (worker, thread, n): a row that was written twice must be found, not refused.
_CREATE: Final[Mapping[Engine, tuple[str, ...]]] = {
    Engine.POSTGRESQL: (
        """
        CREATE TABLE ledger (
            seq bigserial PRIMARY KEY, worker integer NOT NULL, thread integer NOT NULL, n integer NOT NULL,
            at timestamptz DEFAULT clock_timestamp()
        )
        """,
        f"ALTER TABLE ledger OWNER TO {ROLE}",
    ),
    Engine.MYSQL: (
        """
        CREATE TABLE ledger (
            seq BIGINT AUTO_INCREMENT PRIMARY KEY, worker INT NOT NULL, thread INT NOT NULL, n INT NOT NULL,
            at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
        )
        """,
    ),
}


class Row(NamedTuple):
    """A row as a server holds it. *seq* and *at* distinguish two writes of one key."""

    seq: int
    worker: int
    thread: int
    n: int
    at: datetime

    @property
    def key(self) -> Key:
        """The part that the client chose."""
        return self.worker, self.thread, self.n


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check. Counts are exact; the examples are the first `MOST_EXAMPLES`, in order."""

    acknowledged: int
    """Distinct keys whose commit was reported to a client."""

    lost: int
    """Acknowledged keys that the surviving primary does not hold."""

    doubled: int
    """Keys that it holds more than once: a statement was repeated."""

    split: int
    """Rows of the other server that it does not hold: written on a former primary."""

    landed: int
    """The written ones of the keys whose outcome the client could not know. Either outcome is right."""

    unexplained: int
    """Keys of existing rows that no client reported, as acknowledged or unknown.

    A client that was killed leaves some."""

    half: int = 0
    """Units of work of two rows (see `second_of`) with only one row: committed in part."""

    abandoned: int = 0
    """Acknowledged keys that only the former primary holds, after a failover: lost by replication, not by a client."""

    lost_examples: tuple[Key, ...] = ()
    doubled_examples: tuple[Key, ...] = ()
    split_examples: tuple[Row, ...] = ()
    unexplained_examples: tuple[Key, ...] = ()
    half_examples: tuple[Key, ...] = ()

    @property
    def clean(self) -> bool:
        """True if no row is lost, doubled, split or half."""
        return not (self.lost or self.doubled or self.split or self.half)


def create(pair: Pair) -> None:
    """Create the empty table on blue, owned by the application's role; an existing ledger is replaced."""
    pair.define("DROP TABLE IF EXISTS ledger", *_CREATE[pair.engine])


def judge(pair: Pair, acknowledged: Iterable[Key], unknown: Iterable[Key] = ()) -> Verdict:
    """Judge a switchover: green holds every acknowledged row once, and blue holds none that green does not hold.

    Of a unit of two rows, green holds both or none.

    Clients must have ended. No cut-off time is needed: green is a copy of blue, byte by byte (PostgreSQL) or row by row
    (MySQL), so replicated rows are there with the same seq and time. A row of blue that differs in any of these was
    written after the cut.

    Args:
        pair: The pair, with both servers running.
        acknowledged: Keys whose commit a client received.
        unknown: Keys of statements that were cut before an answer.

    Raises:
        psycopg.Error, pymysql.Error: A server does not answer.
    """
    return _verdict(read(pair.green), read(pair.blue), acknowledged, unknown)


def judge_rollback(pair: Pair, acknowledged: Iterable[Key], unknown: Iterable[Key] = ()) -> Verdict:
    """Judge a rollback: blue holds every acknowledged row once, and green holds none that blue does not hold.

    Arguments and errors are the same as for `judge`. Green may lag behind; that is no fault.
    """
    # Green first: a row that reaches it between the two readings must not look like one that blue lacks.
    green = read(pair.green)
    return _verdict(read(pair.blue), green, acknowledged, unknown)


def judge_failover(
    survivor: Server, former: Server | None, acknowledged: Iterable[Key], unknown: Iterable[Key] = ()
) -> Verdict:
    """Judge a failover: *survivor* holds every acknowledged row once, except for rows that replication has lost.

    Rows that only *former* holds, which accepted writes before, are not split: they were written before the failure.

    Args:
        survivor: The server that is the primary now.
        former: The former primary, running; None if it is the same server.
        acknowledged: Keys whose commit a client received.
        unknown: Keys of statements that were cut before an answer.

    Raises:
        psycopg.Error, pymysql.Error: A server does not answer.
    """
    reported, rows = set(acknowledged), read(survivor)
    held = {row.key for row in rows}
    left = {row.key for row in read(former)} if former is not None else set()
    abandoned = (reported - held) & left
    return replace(_verdict(rows, [], reported - abandoned, unknown), abandoned=len(abandoned))


def read(server: Server) -> list[Row]:
    """Return every row of the ledger on *server*, in the order of seq."""
    rows = server.execute("SELECT seq, worker, thread, n, at FROM ledger ORDER BY seq", database=DATABASE)
    return [Row(*row) for row in rows]


def _verdict(survivor: list[Row], other: list[Row], acknowledged: Iterable[Key], unknown: Iterable[Key]) -> Verdict:
    reported, uncertain = set(acknowledged), set(unknown)
    held = Counter(row.key for row in survivor)
    identities = set(survivor)
    lost = sorted(reported - held.keys())
    doubled = sorted(key for key, count in held.items() if count > 1)
    split = [row for row in other if row not in identities]
    firsts = {key for key in held if key[2] >= 0}
    half = _halves(held.keys())
    unexplained = sorted(firsts - reported - uncertain)
    return Verdict(
        acknowledged=len(reported),
        lost=len(lost),
        doubled=len(doubled),
        split=len(split),
        landed=len((uncertain - reported) & held.keys()),
        unexplained=len(unexplained),
        half=len(half),
        lost_examples=tuple(lost[:MOST_EXAMPLES]),
        doubled_examples=tuple(doubled[:MOST_EXAMPLES]),
        split_examples=tuple(split[:MOST_EXAMPLES]),
        unexplained_examples=tuple(unexplained[:MOST_EXAMPLES]),
        half_examples=tuple(half[:MOST_EXAMPLES]),
    )


def _halves(held: Set[Key]) -> list[Key]:
    """Return keys without the other row of their unit; a thread that ever wrote a second row always writes two."""
    pairing = {key[:2] for key in held if key[2] < 0}
    return sorted(key for key in held if key[:2] in pairing and second_of(key) not in held)

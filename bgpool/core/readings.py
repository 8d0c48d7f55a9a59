"""What two hosts' readings of the same server have in common, and what each tells."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from bgpool.core import topology
from bgpool.core.events import MetadataAbsent, MetadataFailed, ProbeFailed, StatusRead
from bgpool.core.fleet import Fact, Reading
from bgpool.core.phase import Role
from bgpool.core.snapshot import Snapshot

__all__ = ["has_rows", "is_same", "mark_of", "meaning", "named", "rank"]


def meaning(reading: Reading) -> tuple[Fact, ...]:
    """What hosts agree about: not the words in which a failure was told to each, nor the order of rows."""
    found: list[Fact] = []
    for fact in reading.facts:
        if isinstance(fact, (ProbeFailed, MetadataFailed)):
            fact = replace(fact, error="")
        elif isinstance(fact, MetadataAbsent):
            fact = replace(fact, remedy="")
        elif isinstance(fact, StatusRead):
            rows = sorted(fact.rows, key=lambda row: (row.endpoint, row.port, row.role, row.status, row.version))
            fact = replace(fact, rows=tuple(rows), servers=(*fact.servers[:1], *sorted(fact.servers[1:])))
        found.append(fact)
    return tuple(found)


def is_same(one: Reading, other: Reading) -> bool:
    """Whether both tell the same. A heartbeat repeats the very facts of the message that it stands on."""
    return one.facts is other.facts or meaning(one) == meaning(other)


def mark_of(snapshot: Snapshot) -> str:
    """Eight hex digits that are the same for all who know the same blue; empty while none is known.

    Two deployments may have one bg_id, which by default is 1, and one bus.
    """
    for host in snapshot.hosts_of(Role.SOURCE):
        return hashlib.sha256(f"{host.name}:{host.port}".encode(errors="replace")).hexdigest()[:8]
    return ""


def rank(reading: Reading) -> int:
    """How much a reading tells: nothing, that the server is there, what its metadata say."""
    return 0 if not reading.is_answer else 2 if isinstance(reading.facts[-1], StatusRead) else 1


def named(reading: Reading) -> frozenset[tuple[str, int]]:
    """The hosts that an inventory would take from a reading."""
    status = reading.facts[-1]
    if not isinstance(status, StatusRead):
        return frozenset()
    return frozenset(
        (host.name, host.port)
        for role in Role
        for host in topology.hosts_from(status.rows, status.servers if role is status.role else (), role)
    )


def has_rows(reading: Reading) -> bool:
    status = reading.facts[-1]
    return isinstance(status, StatusRead) and bool(status.rows)

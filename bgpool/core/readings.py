"""Comparison of two hosts' readings of the same server."""

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
    """Return the comparable part of a reading: without error texts, and with rows in a fixed order."""
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
    """Return whether both have the same meaning. A heartbeat refers to the same fact objects as its full message."""
    return one.facts is other.facts or meaning(one) == meaning(other)


def mark_of(snapshot: Snapshot) -> str:
    """Return a digest of blue's name, eight hex digits; empty while blue is not known.

    It distinguishes two deployments that share a bus and a bg_id, which is 1 by default.
    """
    for host in snapshot.hosts_of(Role.SOURCE):
        return hashlib.sha256(f"{host.name}:{host.port}".encode(errors="replace")).hexdigest()[:8]
    return ""


def rank(reading: Reading) -> int:
    """Return the amount of information in a reading: 0 no answer, 1 an answer, 2 an answer with metadata."""
    return 0 if not reading.is_answer else 2 if isinstance(reading.facts[-1], StatusRead) else 1


def named(reading: Reading) -> frozenset[tuple[str, int]]:
    """Return the hosts, with their ports, that an inventory would record from a reading."""
    status = reading.facts[-1]
    if not isinstance(status, StatusRead):
        return frozenset()
    return frozenset(
        (host.name, host.port)
        for role in Role
        for host in topology.hosts_from(status.rows, status.servers if role is status.role else (), role)
    )


def has_rows(reading: Reading) -> bool:
    """Return whether the reading's metadata have rows."""
    status = reading.facts[-1]
    return isinstance(status, StatusRead) and bool(status.rows)

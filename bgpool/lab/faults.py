"""What goes wrong with the metadata: for a scenario to add to the director's steps."""

from __future__ import annotations

from dataclasses import replace

from bgpool.lab import metadata
from bgpool.lab.director import Director
from bgpool.lab.pair import MONITOR_ROLE, Pair

__all__ = [
    "break_metadata",
    "delete_metadata",
    "drop_metadata",
    "freeze_metadata",
    "lock_out_monitor",
    "publish_version",
]


def freeze_metadata(director: Director) -> None:
    """As seen on RDS for PostgreSQL: green's rows are deleted, and blue's are never updated again.

    The director's steps that would update them must be dropped.
    """
    for server in director.pair.side("green"):
        metadata.publish(server, [])


def delete_metadata(director: Director) -> None:
    """An empty table on every server."""
    director.empty()


def break_metadata(director: Director) -> None:
    """The question for the status fails on every server."""
    for server in director.pair.servers:
        metadata.publish_broken(server)


def drop_metadata(pair: Pair) -> None:
    """What tells the status, a function or a table, is no more, on any server."""
    for server in pair.servers:
        server.drop_metadata()


def lock_out_monitor(pair: Pair, colour: str) -> None:
    """The servers of *colour* let the role `MONITOR_ROLE` in no more."""
    for server in pair.side(colour):
        server.lock_out(MONITOR_ROLE)


def publish_version(director: Director, status: str, version: str) -> None:
    """Show *status* in rows of another *version* on every server."""
    rows = [replace(row, version=version) for row in director.rows(status)]
    for server in director.pair.servers:
        metadata.publish(server, rows)

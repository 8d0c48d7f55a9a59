"""Faults of metadata and COMMITs, which a scenario adds to the director's steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bgpool.lab import metadata
from bgpool.lab.director import Director
from bgpool.lab.errors import LabError
from bgpool.lab.pair import MONITOR_ROLE, Pair
from bgpool.lab.postgres import PostgresServer
from bgpool.lab.server import Server

__all__ = [
    "answer_at_once",
    "break_metadata",
    "commit_at_once",
    "commit_slowly",
    "delay_answers",
    "delete_metadata",
    "drop_metadata",
    "freeze_metadata",
    "lock_out_monitor",
    "prepare_slow_commits",
    "publish_version",
]


def freeze_metadata(director: Director) -> None:
    """Delete green's rows and never update blue's again, like a fault of RDS for PostgreSQL.

    The director's steps that would update them must be dropped.
    """
    for server in director.pair.side("green"):
        metadata.publish(server, [])


def delete_metadata(director: Director) -> None:
    """Empty the table on every server."""
    director.empty()


def break_metadata(director: Director) -> None:
    """Make the query for the status fail on every server."""
    for server in director.pair.servers:
        metadata.publish_broken(server)


def drop_metadata(pair: Pair) -> None:
    """Drop the source of the status, a function or a table, on every server."""
    for server in pair.servers:
        server.drop_metadata()


def lock_out_monitor(pair: Pair, colour: str) -> None:
    """Reject the role `MONITOR_ROLE` on the servers of *colour* from now on."""
    for server in pair.side(colour):
        server.lock_out(MONITOR_ROLE)


def publish_version(director: Director, status: str, version: str) -> None:
    """Show *status* in rows of another *version* on every server."""
    rows = [replace(row, version=version) for row in director.rows(status)]
    for server in director.pair.servers:
        metadata.publish(server, rows)


def delay_answers(server: Server) -> None:
    """Leave every COMMIT on *server* (PostgreSQL) done but unanswered: it waits for a standby that does not exist."""
    _postgres(server).set_standby("nobody")


def answer_at_once(server: Server) -> None:
    """Undo `delay_answers`."""
    _postgres(server).set_standby("")


SLOW_FILE: Final = "bgpool_slow_commits"


def prepare_slow_commits(pair: Pair, commit_s: float) -> None:
    """Prepare COMMITs of rows of the ledger that take *commit_s* seconds before they commit (PostgreSQL).

    A deferred trigger sleeps if a file, which each server has for itself, requests it.
    """
    pair.define(
        f"""
        CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            IF (pg_stat_file('{SLOW_FILE}', true)).size IS NOT NULL THEN PERFORM pg_sleep({commit_s:g}); END IF;
            RETURN NULL;
        END $$
        """,
        "CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW WHEN (NEW.n > 0) EXECUTE FUNCTION slow_commit()",
    )


def commit_slowly(server: Server) -> None:
    """Make COMMITs on *server* take the prepared time from now on."""
    server.write_file(SLOW_FILE, "")


def commit_at_once(server: Server) -> None:
    """Undo `commit_slowly`."""
    (server.data_dir / SLOW_FILE).unlink(missing_ok=True)


def _postgres(server: Server) -> PostgresServer:
    if not isinstance(server, PostgresServer):
        raise LabError(f"{server.name} is no PostgreSQL server")
    return server

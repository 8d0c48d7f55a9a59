"""What goes wrong with metadata and COMMITs: for a scenario to add to the director's steps."""

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


def delay_answers(server: Server) -> None:
    """Every COMMIT on *server* (PostgreSQL) is done, and is not answered: it waits for a standby that there is not."""
    _postgres(server).set_standby("nobody")


def answer_at_once(server: Server) -> None:
    """The opposite of `delay_answers`."""
    _postgres(server).set_standby("")


SLOW_FILE: Final = "bgpool_slow_commits"


def prepare_slow_commits(pair: Pair, commit_s: float) -> None:
    """A COMMIT of rows of the ledger can be made to take *commit_s* seconds before it commits (PostgreSQL).

    A deferred trigger sleeps where a file says so, which each server has for itself.
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
    """COMMITs on *server* take as long as was prepared, from now on."""
    server.write_file(SLOW_FILE, "")


def commit_at_once(server: Server) -> None:
    """The opposite of `commit_slowly`."""
    (server.data_dir / SLOW_FILE).unlink(missing_ok=True)


def _postgres(server: Server) -> PostgresServer:
    if not isinstance(server, PostgresServer):
        raise LabError(f"{server.name} is no PostgreSQL server")
    return server

"""What became of a COMMIT that was cut: asked of the server where it can tell, never guessed.

A physical replica has blue's transaction ids, so once it is promoted ``txid_status`` tells what became of each. But
only of those that reached it: an id that blue had given out and that never got there is given out again, to somebody
else, and then the same question has an answer that is about another transaction. A trace therefore carries, beside
the id, a place in blue's log behind the transaction's last write. What was replayed that far knows the transaction;
what was not cannot hold its commit, which lies further on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.pq import ConnStatus
from psycopg.rows import tuple_row

from bgpool.failures import sqlstate_of
from bgpool.pools.units import Outcome
from bgpool.pools.waits import settled

__all__ = [
    "LINEAGE",
    "NOTHING_WRITTEN",
    "TRACE",
    "TRACE_LINEAGE",
    "AnyConnection",
    "Trace",
    "lineage_of",
    "outcome_by",
    "outcome_of",
    "row_of",
    "saved",
]

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a transaction is known by once its connection is gone; taken in it, before its COMMIT.

    Attributes:
        xid: Its id; None if it has written nothing.
        lsn: A place in the server's log behind everything that it has written.
        taken_at: When, on the server's clock, in seconds since 1970.
        address: The server's IP address.
        lineage: The identifier of the database cluster, the same on a primary and its physical replicas.
    """

    xid: str | None
    lsn: str
    taken_at: float
    address: str
    lineage: str


#: Of a transaction that has written nothing.
NOTHING_WRITTEN: Final = Trace(None, "0/0", 0.0, "", "")
LINEAGE: Final = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
# On a replica, which has neither an id nor a place of its own, both are null. The names that begin with txid are those
# that PostgreSQL 12 has, too.
_TRACE: Final = """
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN txid_current_if_assigned()::text END,
           CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
           extract(epoch FROM clock_timestamp())::float8
"""
#: What a trace is made of: id, place in the log, time; and the lineage, where it is asked for.
TRACE: Final = f"{_TRACE}, NULL::text"
TRACE_LINEAGE: Final = f"{_TRACE}, ({LINEAGE})"
# In a savepoint, so that the transaction survives a refusal, and all in one round trip.
_SAVED: Final = "SAVEPOINT bgpool_unit; {}; RELEASE SAVEPOINT bgpool_unit"
_BACK: Final = "ROLLBACK TO SAVEPOINT bgpool_unit"
# A server that was restarted since has replayed other things than the trace's server wrote.
_SAME_LIFE: Final = """
    SELECT pg_is_in_recovery(),
           extract(epoch FROM pg_postmaster_start_time())::float8 < {}::float8,
           pg_last_wal_replay_lsn() >= {}::text::pg_lsn
"""
_STATUS: Final = "SELECT txid_status({}::text::bigint)"

#: The class of SQLSTATEs for a value that cannot be.
_OF_DATA: Final = "22"

#: Asks a server: a query with {} in the place of each parameter, and the parameters; returns the first row.
Ask: TypeAlias = Callable[..., Awaitable[tuple[Any, ...]]]


async def lineage_of(connection: AnyConnection) -> str:
    """The identifier of the database cluster. Ends a transaction at hand.

    Raises:
        psycopg.Error: The server refuses to say, or the connection was cut.
    """
    try:
        return str((await row_of(connection, LINEAGE))[0])
    finally:
        if not connection.autocommit and connection.pgconn.status == ConnStatus.OK:
            await settled(connection.rollback())


async def saved(connection: AnyConnection, query: str) -> tuple[Any, ...]:
    """The first row that *query* gives, in a savepoint of the transaction at hand on *connection*; one round trip.

    Raises:
        psycopg.Error: It failed, and the transaction is as it was before; or the connection was cut.
    """
    try:
        return await row_of(connection, _SAVED.format(query))
    except psycopg.Error:
        if connection.pgconn.status == ConnStatus.OK:
            await settled(_cursor(connection).execute(_BACK))
        raise


async def outcome_of(trace: Trace, connection: AnyConnection, *, promoted: bool) -> Outcome:
    """What the server of *connection* knows of the transaction of *trace*.

    Args:
        trace: Of a transaction whose COMMIT was sent and not answered.
        connection: To the server that is the primary now.
        promoted: The server was a physical replica when the trace was taken.

    Raises:
        psycopg.OperationalError: The connection was cut, or the server is not at its best; ask again.
        psycopg.Error: The server refuses to say.
    """

    async def ask(query: str, *params: object) -> tuple[Any, ...]:
        if query is LINEAGE:
            return (await lineage_of(connection),)
        return await row_of(connection, query.format(*["%s"] * len(params)), params)

    return await outcome_by(trace, connection.info.hostaddr, ask, promoted=promoted)


async def outcome_by(trace: Trace, address: str, ask: Ask, *, promoted: bool) -> Outcome:
    """As outcome_of, of the server at *address*, by whatever driver *ask* asks it."""
    same_server = address == trace.address
    # First what needs no question: a server that was no replica may refuse the one of how far it has replayed.
    if trace.xid is None or not trace.lineage or not (same_server or promoted):
        return Outcome.UNKNOWN
    if (await ask(LINEAGE))[0] != trace.lineage:
        return Outcome.UNKNOWN
    if not same_server:
        in_recovery, same_life, replayed = await ask(_SAME_LIFE, trace.taken_at, trace.lsn)
        if in_recovery or not same_life or replayed is None:
            return Outcome.UNKNOWN
        if not replayed:
            # The commit is further on in a log of which this server has seen less.
            return Outcome.NOT_COMMITTED
    try:
        (status,) = await ask(_STATUS, trace.xid)
    except Exception as error:
        if not sqlstate_of(error).startswith(_OF_DATA):
            raise
        return Outcome.UNKNOWN  # an id of the future
    if status == "in progress" and same_server:
        return Outcome.PENDING
    return {"committed": Outcome.COMMITTED, "aborted": Outcome.NOT_COMMITTED}.get(status, Outcome.UNKNOWN)


def _cursor(connection: AnyConnection) -> Any:
    """Not the connection's own kind of cursor, which may want other placeholders."""
    if isinstance(connection, psycopg.AsyncConnection):
        return psycopg.AsyncCursor(connection, row_factory=tuple_row)
    return psycopg.Cursor(connection, row_factory=tuple_row)


async def row_of(connection: AnyConnection, query: Any, params: tuple[object, ...] = ()) -> tuple[Any, ...]:
    """The first row that *query* gives, or an empty one; not prepared: several statements at a time cannot be."""
    cursor = _cursor(connection)
    await settled(cursor.execute(query, params or None, prepare=False))
    while cursor.description is None and cursor.nextset():
        pass
    row: Any = await settled(cursor.fetchone())
    cursor._close()
    if row is None:
        return ()
    # From a database in SQL_ASCII text comes as bytes.
    return tuple(value.decode("ascii") if isinstance(value, bytes) else value for value in row)

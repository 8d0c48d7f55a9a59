"""The outcome of a COMMIT that was cut: queried from the server if it can answer, never guessed.

A physical replica has blue's transaction ids, so once it is promoted ``txid_status`` reports the outcome of each. But
that is valid only for transactions that reached it. An id that blue had assigned and that never arrived there is
assigned again, to another transaction, and then the same query returns an answer about that one. So a trace contains,
in addition to the id, a position in blue's log after the transaction's last write. A server that has replayed the log
up to that position knows the transaction. A server that has not cannot contain its commit, which lies further on.
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
    """The identification of a transaction after its connection is gone; taken within it, before its COMMIT.

    Attributes:
        xid: Its id; None if it has written nothing.
        lsn: A position in the server's log after everything that it has written.
        taken_at: The time of the trace, on the server's clock, in seconds since 1970.
        address: The server's IP address.
        lineage: The identifier of the database cluster, the same on a primary and its physical replicas.
    """

    xid: str | None
    lsn: str
    taken_at: float
    address: str
    lineage: str


#: The trace of a transaction that has written nothing.
NOTHING_WRITTEN: Final = Trace(None, "0/0", 0.0, "", "")
LINEAGE: Final = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
# On a replica, which has neither an id nor a position of its own, both are null. PostgreSQL 12 also has the names that
# begin with txid.
_TRACE: Final = """
    SELECT CASE WHEN NOT pg_is_in_recovery() THEN txid_current_if_assigned()::text END,
           CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
           extract(epoch FROM clock_timestamp())::float8
"""
#: Returns the parts of a trace: id, position in the log, time; and the lineage, if it is requested.
TRACE: Final = f"{_TRACE}, NULL::text"
TRACE_LINEAGE: Final = f"{_TRACE}, ({LINEAGE})"
# In a savepoint, so that the transaction survives a refusal, and all in one round trip.
_SAVED: Final = "SAVEPOINT bgpool_unit; {}; RELEASE SAVEPOINT bgpool_unit"
_BACK: Final = "ROLLBACK TO SAVEPOINT bgpool_unit"
# If a server was restarted since, its replay position does not refer to the writes of the trace's server.
_SAME_LIFE: Final = """
    SELECT pg_is_in_recovery(),
           extract(epoch FROM pg_postmaster_start_time())::float8 < {}::float8,
           pg_last_wal_replay_lsn() >= {}::text::pg_lsn
"""
_STATUS: Final = "SELECT txid_status({}::text::bigint)"

#: The class of SQLSTATEs for a value out of range.
_OF_DATA: Final = "22"

#: Queries a server: takes a query with {} in place of each parameter, and the parameters; returns the first row.
Ask: TypeAlias = Callable[..., Awaitable[tuple[Any, ...]]]


async def lineage_of(connection: AnyConnection) -> str:
    """Return the identifier of the database cluster. Ends the current transaction.

    Raises:
        psycopg.Error: The server refuses to report it, or the connection was cut.
    """
    try:
        return str((await row_of(connection, LINEAGE))[0])
    finally:
        if not connection.autocommit and connection.pgconn.status == ConnStatus.OK:
            await settled(connection.rollback())


async def saved(connection: AnyConnection, query: str) -> tuple[Any, ...]:
    """Return the first row of *query*, in a savepoint of the current transaction on *connection*; one round trip.

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
    """Return the outcome of the transaction of *trace* by the server of *connection*.

    Args:
        trace: The trace of a transaction whose COMMIT was sent and not answered.
        connection: A connection to the server that is the primary now.
        promoted: The server was a physical replica when the trace was taken.

    Raises:
        psycopg.OperationalError: The connection was cut, or the server has a temporary problem; query again.
        psycopg.Error: The server refuses to report it.
    """

    async def ask(query: str, *params: object) -> tuple[Any, ...]:
        if query is LINEAGE:
            return (await lineage_of(connection),)
        return await row_of(connection, query.format(*["%s"] * len(params)), params)

    return await outcome_by(trace, connection.info.hostaddr, ask, promoted=promoted)


async def outcome_by(trace: Trace, address: str, ask: Ask, *, promoted: bool) -> Outcome:
    """Like outcome_of, for the server at *address*, with any driver in *ask*."""
    same_server = address == trace.address
    # First the checks without a query: a server that was no replica may refuse the query of its replay position.
    if trace.xid is None or not trace.lineage or not (same_server or promoted):
        return Outcome.UNKNOWN
    if (await ask(LINEAGE))[0] != trace.lineage:
        return Outcome.UNKNOWN
    if not same_server:
        in_recovery, same_life, replayed = await ask(_SAME_LIFE, trace.taken_at, trace.lsn)
        if in_recovery or not same_life or replayed is None:
            return Outcome.UNKNOWN
        if not replayed:
            # The commit is further on in a log of which this server has replayed less.
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
    """Return a plain cursor: the connection's own kind of cursor may use other placeholders."""
    if isinstance(connection, psycopg.AsyncConnection):
        return psycopg.AsyncCursor(connection, row_factory=tuple_row)
    return psycopg.Cursor(connection, row_factory=tuple_row)


async def row_of(connection: AnyConnection, query: Any, params: tuple[object, ...] = ()) -> tuple[Any, ...]:
    """Return the first row of *query*, or an empty one; not prepared, because several statements at once cannot be."""
    cursor = _cursor(connection)
    await settled(cursor.execute(query, params or None, prepare=False))
    while cursor.description is None and cursor.nextset():
        pass
    row: Any = await settled(cursor.fetchone())
    cursor._close()
    if row is None:
        return ()
    # A database in SQL_ASCII returns text as bytes.
    return tuple(value.decode("ascii") if isinstance(value, bytes) else value for value in row)

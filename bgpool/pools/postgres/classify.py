"""The data that psycopg may have committed when its connection was lost.

psycopg exchanges all data with its server through generators, so the generator that failed shows what was in progress.
Each one has an entry in `JUDGED`; a test compares these with the installed psycopg. A generator without an entry counts
as one that may have committed: if a transaction were wrongly reported as not committed, it would run twice.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from enum import Enum
from types import FrameType
from typing import Any, Final, TypeAlias

from psycopg import sql
from psycopg._connection_base import BaseConnection
from psycopg.pq import TransactionStatus

from bgpool.pools.doubt import DURING_COMMIT, IN_AUTOCOMMIT, IN_PIPELINE, MAY_COMMIT, NO_DOUBT, PREPARED
from bgpool.pools.postgres.text import commits, doubt_of_text, ends_transaction, is_harmless

__all__ = [
    "JUDGED",
    "SETTLED",
    "Kind",
    "Piped",
    "begins_nothing",
    "doubt_of",
    "ends",
    "piped_by",
    "synced_by",
]

#: A generator; psycopg's type for it has no frame.
Gen: TypeAlias = Any


class Kind(Enum):
    """The commands that a generator sends."""

    NOTHING = "nothing that commits, not even in autocommit"
    BEGIN = "BEGIN or SAVEPOINT"
    ROLLBACK = "ROLLBACK"
    COMMIT = "COMMIT"
    END_OF_BLOCK = "the end of a transaction block: COMMIT, ROLLBACK or RELEASE"
    TWO_PHASE = "PREPARE TRANSACTION, COMMIT PREPARED or ROLLBACK PREPARED"
    STATEMENT = "a statement of the user's, or several; psycopg begins a transaction for it unless in autocommit"
    ONE_STATEMENT = "the same, and no COMMIT can be in it"
    PIPELINE = "the commands that a pipeline has queued"


#: Every generator that psycopg passes to Connection.wait, by its qualified name.
JUDGED: Final[Mapping[str, Kind]] = {
    "BaseConnection._commit_gen": Kind.COMMIT,
    "BaseConnection._rollback_gen": Kind.ROLLBACK,
    "BaseConnection._set_autocommit_gen": Kind.NOTHING,
    "BaseConnection._set_deferrable_gen": Kind.NOTHING,
    "BaseConnection._set_isolation_level_gen": Kind.NOTHING,
    "BaseConnection._set_read_only_gen": Kind.NOTHING,
    "BaseConnection._tpc_begin_gen": Kind.BEGIN,
    "BaseConnection._tpc_finish_gen": Kind.TWO_PHASE,
    "BaseConnection._tpc_prepare_gen": Kind.TWO_PHASE,
    "BaseCopy._end_copy_out_gen": Kind.STATEMENT,
    "BaseCopy._read_gen": Kind.STATEMENT,
    "BaseCopy._read_row_gen": Kind.STATEMENT,
    "BaseCursor._execute_gen": Kind.STATEMENT,
    "BaseCursor._executemany_gen_no_pipeline": Kind.STATEMENT,
    "BaseCursor._executemany_gen_pipeline": Kind.STATEMENT,
    "BaseCursor._start_copy_gen": Kind.STATEMENT,
    "BaseCursor._stream_fetchone_gen": Kind.STATEMENT,
    "BaseCursor._stream_send_gen": Kind.STATEMENT,
    "BasePipeline._enter_gen": Kind.PIPELINE,
    "BasePipeline._exit_gen": Kind.PIPELINE,
    "BasePipeline._fetch_gen": Kind.PIPELINE,
    "BasePipeline._sync_gen": Kind.PIPELINE,
    "BaseTransaction._enter_gen": Kind.BEGIN,
    "BaseTransaction._exit_gen": Kind.END_OF_BLOCK,
    # Outside a transaction there are only cursors WITH HOLD, whose rows the server has computed already.
    "ServerCursorMixin._close_gen": Kind.NOTHING,
    "ServerCursorMixin._fetch_gen": Kind.NOTHING,
    "ServerCursorMixin._scroll_gen": Kind.NOTHING,
    # One statement by the extended protocol, which begins with DECLARE.
    "ServerCursorMixin._declare_gen": Kind.ONE_STATEMENT,
    # The data of a COPY that is the first statement of its text; otherwise psycopg would have refused it. Statements
    # after it run after copy_end.
    "copy_to": Kind.ONE_STATEMENT,
    "copy_end": Kind.STATEMENT,
    "notifies": Kind.NOTHING,
}

_EXECUTES: Final = "BaseCursor._execute_gen"
#: The generators that bgpool itself passes to it.
_OWN: Final[Mapping[str, Kind]] = {"SwitchoverAware.bgpool_begin_gen": Kind.BEGIN}
_KINDS: Final[Mapping[str, Kind]] = {**JUDGED, **_OWN}

#: Every command was answered, and it is known whether a transaction is open.
SETTLED: Final = frozenset({TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR})


class Piped(Enum):
    """The possible commits of a pipeline's queued commands that are not all answered."""

    OPEN = "nothing: all of them run in a transaction that is open, or begun by psycopg"
    ENDED = "nothing, but no transaction is open: the next statement commits by itself"
    DOUBT = "something"


# -- one generator ---------------------------------------------------------------------------------------------------


def doubt_of(gen: Gen, error: BaseException, *, in_transaction: bool, prepared: bool, piped: Piped | None) -> str:
    """Return the reason for which a connection lost in *gen* may have committed data; NO_DOUBT if it cannot have.

    Args:
        gen: The generator that was in progress.
        error: The error that it, or an interrupt, raised.
        in_transaction: A transaction was open, or psycopg begins one before a statement.
        prepared: A two-phase transaction was prepared, or was being prepared.
        piped: In a pipeline, the possible effect of its commands; else None.
    """
    if prepared:
        return PREPARED
    if piped is not None:
        return IN_PIPELINE if piped is Piped.DOUBT else NO_DOUBT
    kind = _kind(gen)
    if kind in (Kind.NOTHING, Kind.BEGIN, Kind.ROLLBACK):
        return NO_DOUBT
    if kind is Kind.COMMIT:
        return DURING_COMMIT
    if kind is Kind.END_OF_BLOCK:
        return DURING_COMMIT if _end_of_block(_frame(gen, error)) is Kind.COMMIT else NO_DOUBT
    if kind is Kind.TWO_PHASE:
        return _doubt_of_end(error)
    if kind not in (Kind.STATEMENT, Kind.ONE_STATEMENT):
        return MAY_COMMIT
    if not in_transaction:
        text = _text(gen, error) if kind is Kind.STATEMENT else None
        return NO_DOUBT if text is not None and is_harmless(text) else IN_AUTOCOMMIT
    if kind is Kind.ONE_STATEMENT:
        return NO_DOUBT
    return doubt_of_text(_text(gen, error))


def _doubt_of_end(error: BaseException) -> str:
    """Return the doubt about tpc_commit or tpc_rollback, which act as commit and rollback if nothing was prepared."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    if "_rollback_gen" in names:
        return NO_DOUBT
    return DURING_COMMIT if "_commit_gen" in names else PREPARED


def ends(gen: Gen) -> bool:
    """Return whether *gen* may send the end of the transaction; a statement whose text cannot be found may."""
    # This runs for every statement in a unit of work, so the common case, a new generator, makes no further call.
    if gen.__qualname__ == _EXECUTES and (frame := gen.gi_frame) is not None:
        query = frame.f_locals["query"]
        if query.__class__ is str:
            return ends_transaction(query)
    kind = _kind(gen)
    if kind is Kind.STATEMENT:
        text = _text(gen, None)
        return text is None or ends_transaction(text)
    if kind is Kind.END_OF_BLOCK:
        kind = _end_of_block(gen.gi_frame)
    return kind in (Kind.COMMIT, Kind.ROLLBACK)


def clears_up(gen: Gen) -> bool:
    """Return whether *gen* only ends a transaction, a block in one, or a pipeline, and commits nothing."""
    kind = _kind(gen)
    if kind is Kind.END_OF_BLOCK:
        frame = gen.gi_frame
        return frame is not None and bool(frame.f_locals.get("exc_val"))
    return kind in (Kind.ROLLBACK, Kind.PIPELINE) or gen.__qualname__ == "ServerCursorMixin._close_gen"


def begins_nothing(gen: Gen) -> bool:
    """Return whether *gen* ends what was begun, or sends what was queued, so that it needs no new transaction."""
    return _kind(gen) in (Kind.PIPELINE, Kind.END_OF_BLOCK)


def _kind(gen: Gen) -> Kind | None:
    return _KINDS.get(getattr(gen, "__qualname__", ""))


def _end_of_block(frame: FrameType | None) -> Kind:
    """Return how a transaction block ends, by *frame* of its generator; None may be a COMMIT."""
    block = frame.f_locals.get("self") if frame is not None else None
    if frame is None or block is None:
        return Kind.COMMIT
    if not block._outer_transaction:
        return Kind.BEGIN  # a savepoint is released, or rolled back to
    return Kind.ROLLBACK if frame.f_locals.get("exc_val") or block.force_rollback else Kind.COMMIT


# -- pipelines -------------------------------------------------------------------------------------------------------


def synced_by(gen: Gen, connection: BaseConnection[Any], *, before: bool) -> bool:
    """Return whether the last command of the connection's pipeline is a sync after *gen* has queued its own.

    libpq's status of the transaction is from the last sync: later commands may have been answered, and may have ended
    or begun a transaction.
    """
    kind, name = _kind(gen), str(getattr(gen, "__name__", ""))
    if kind in (Kind.COMMIT, Kind.ROLLBACK):
        return before or connection.pgconn.transaction_status != TransactionStatus.IDLE
    if kind is Kind.PIPELINE:
        return before or name in ("_sync_gen", "_exit_gen")
    return before and kind is Kind.NOTHING


def piped_by(gen: Gen, before: Piped, connection: BaseConnection[Any], *, synced: bool) -> Piped:
    """Return the possible effect of the commands of the connection's pipeline after *gen* has queued its own.

    Args:
        gen: The generator that is about to run.
        before: The same without it.
        connection: The connection, in a pipeline.
        synced: No command was queued since the last sync.
    """
    pipeline, status = connection._pipeline, connection.pgconn.transaction_status
    if before is Piped.DOUBT and status not in SETTLED:
        return before
    answered = pipeline is not None and not pipeline.command_queue and not pipeline.result_queue
    settled = synced and status in SETTLED and answered
    if settled:
        alone = connection.autocommit and status == TransactionStatus.IDLE
        before = Piped.ENDED if alone else Piped.OPEN
    kind = _kind(gen)
    if kind is Kind.END_OF_BLOCK:
        kind = _end_of_block(gen.gi_frame)
        if kind is Kind.BEGIN:
            return before
    if kind is Kind.BEGIN:
        return Piped.OPEN if settled else before
    if kind is Kind.ROLLBACK:
        return Piped.ENDED if before is Piped.OPEN else before
    if kind in (Kind.NOTHING, Kind.PIPELINE):
        return before
    if kind is Kind.STATEMENT and before is Piped.OPEN:
        text = _text(gen, None)
        if text is not None and not commits(text):
            return Piped.ENDED if ends_transaction(text) else before
    return Piped.DOUBT


# -- the statement ---------------------------------------------------------------------------------------------------


def _frame(gen: Gen, error: BaseException | None) -> FrameType | None:
    """Return the frame of *gen*; from the traceback of *error* if *gen* ended with that."""
    frame: FrameType | None = gen.gi_frame
    if frame is not None or error is None:
        return frame
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((each for each in frames if each.f_code is gen.gi_code), None)


def _text(gen: Gen, error: BaseException | None) -> str | None:
    """Return the statement, or several, that *gen* sends or continues; None if it cannot be found."""
    frame = _frame(gen, error)
    if frame is None:
        return None
    if gen.__qualname__ == "copy_end":
        # It has no cursor. The writer that waits for it does.
        return next(filter(None, map(_text_of_cursor, _callers())), None)
    values = frame.f_locals
    names = [name for name in ("pgq", "query", "statement") if name in values]
    if names:
        return next((text for text in (_as_text(values[name]) for name in names) if text is not None), None)
    owner = values.get("self")
    return _text_of_cursor(getattr(owner, "cursor", owner))


def _text_of_cursor(cursor: object) -> str | None:
    return _as_text(getattr(cursor, "_query", None))


def _callers() -> Iterator[object]:
    """Return the cursors of the callers that wait in this thread."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield getattr(frame.f_locals.get("self"), "cursor", None)
        frame = frame.f_back


def _as_text(query: object) -> str | None:
    """Return *query* as psycopg accepts and stores it; None if it has no text yet, like a template string."""
    query = getattr(query, "query", query)
    if isinstance(query, sql.Composable):
        try:
            query = query.as_string(None)
        except Exception:  # a value whose adapter is registered only on the connection
            return None
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query if isinstance(query, str) else None

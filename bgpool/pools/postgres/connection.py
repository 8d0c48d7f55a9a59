"""A psycopg connection that knows its generation: it holds new transactions, and says what a cut has done.

Everything that a psycopg connection exchanges with its server goes through ``wait``. That one method is where a
statement is stopped before it is sent, and where the driver's error becomes one that says what to do.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Generator
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import PGconn, TransactionStatus, abc

from bgpool.pools.fork import keep_forever

if TYPE_CHECKING:
    from bgpool.pools.generation import Generation

    _Base = psycopg.Connection[Any]
else:
    _Base = object

__all__ = ["SwitchoverAware", "aware"]

RV = TypeVar("RV")

#: Generators of psycopg after whose failure nothing can have been committed. Any other one may have been a commit:
#: a name that a new psycopg brings errs on the side of "unknown", which is never run again by mistake.
_NEVER_COMMITS: Final = frozenset(
    {
        "_execute_gen", "_executemany_gen_no_pipeline", "_start_copy_gen", "_stream_send_gen",
        "_stream_fetchone_gen", "_declare_gen", "_scroll_gen", "_close_gen", "_rollback_gen", "_enter_gen",
        "copy_to", "copy_from", "copy_end",
    }
)  # fmt: skip
#: With these a connection can be used again, after a rollback.
_USABLE: Final = frozenset({TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR})
#: Generators that send nothing while no transaction is open.
_SENDS_NOTHING: Final = frozenset({"_commit_gen", "_rollback_gen", "_set_autocommit_gen", "_set_isolation_level_gen"})


#: A statement, or one of several, that commits.
_COMMITS: Final = re.compile(
    r"(?:\A|;)(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:COMMIT|END|PREPARE\s+TRANSACTION)\b", re.DOTALL | re.IGNORECASE
)


class SwitchoverAware(_Base):
    """Mixed in before a psycopg connection class.

    Attributes:
        bgpool_generation: What the connection was opened under. A returned connection goes back to it.
        bgpool_lent: From its checkout until it is returned, or closed by its user.
        bgpool_unfit: Set once the server turned out to be read-only: closed on return instead of used again.
        bgpool_in_doubt: Once it is lost, for good: whether something may have been committed meanwhile. None before.
    """

    bgpool_generation: Generation
    bgpool_lent: bool = False
    bgpool_unfit: bool = False
    bgpool_in_doubt: bool | None = None

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """Exchange with the server, unless the connection must not be used for that any more."""
        try:
            generation = self.bgpool_generation
        except AttributeError:
            # Still being set up by the connect that makes it; nobody else has it yet.
            return super().wait(gen, *args, **kwargs)
        if not generation.live[0]:
            self._before_sending(gen, generation)
        try:
            return super().wait(gen, *args, **kwargs)
        except psycopg.OperationalError as error:
            if not self.broken:
                raise
            generation.note_cut()
            in_doubt = self._judge(gen, error)
            if not generation.is_switching():
                raise
            raise generation.explain_cut(error, may_have_committed=in_doubt) from error
        except psycopg.errors.ReadOnlySqlTransaction as error:
            self.bgpool_unfit = True
            generation.note_cut()
            if not generation.is_switching():
                raise
            raise generation.explain_read_only(error) from error
        except BaseException as error:
            # An interrupt may have ended the connection, too, and a server that ends it has other errors.
            if self.broken:
                self._judge(gen, error)
            raise

    def close(self) -> None:
        """Return the connection to its pool with *close_returns*, or else close it and free its slot.

        It is closed to its user either way, and closing it again does nothing. In a fork's child the parent's
        connection is left alone.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            self.bgpool_generation.take_closed(self)
        else:
            self.bgpool_discard()

    def __del__(self, *_: Any) -> None:
        if self.bgpool_lent and not self._is_inherited() and not sys.is_finalizing():
            self.bgpool_generation.take_lost(self)
        else:
            super().__del__()

    def cancel(self) -> None:
        """As psycopg's.

        Raises:
            InheritedConnection: What would be cancelled is the parent's.
        """
        if self._is_inherited():
            self.bgpool_generation.wait_usable()
        super().cancel()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """As psycopg's.

        Raises:
            InheritedConnection: What would be cancelled is the parent's.
        """
        if self._is_inherited():
            self.bgpool_generation.wait_usable()
        super().cancel_safe(timeout=timeout)

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # What psycopg does when a result, or a COPY, is left in the middle.
        if not self._is_inherited():
            super()._try_cancel(timeout=timeout)

    def _is_inherited(self) -> bool:
        generation = getattr(self, "bgpool_generation", None)
        return generation is not None and generation.inherited

    def bgpool_discard(self) -> None:
        """As Aware says."""
        if not self.closed:
            self._closed = True
            self.pgconn.finish()

    def bgpool_pass_on(self) -> SwitchoverAware | None:
        """As Aware says; a connection with a block of psycopg's still open cannot be used again."""
        busy = self._num_transactions or self._pipeline is not None or self._tpc is not None
        if not getattr(self._pool, "close_returns", False) or busy or self.pgconn.transaction_status not in _USABLE:
            return None
        heir, closed = type(self)(self.pgconn), type(self)(_closed_pgconn())
        vars(heir).update(vars(self))
        vars(self).update(vars(closed), _closed=True, _pool=None)
        return heir

    def _before_sending(self, gen: Generator[Any, Any, Any], generation: Generation) -> None:
        if self.pgconn.transaction_status == TransactionStatus.IDLE and _name(gen) in _SENDS_NOTHING:
            return
        # What the pool itself does to a connection that nobody has (configure, check, reset) is nobody's transaction.
        begins = self.bgpool_lent and self.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            if generation.inherited or begins:
                generation.wait_usable()
        except psycopg.Error:
            # Nothing was sent, so nothing is left to wait for.
            gen.close()
            raise

    def _judge(self, gen: Generator[Any, Any, Any], error: BaseException) -> bool:
        """Whether something may have been committed when the connection was lost, in *gen* if not before.

        That is said once: what is asked of the connection afterwards is not sent, and says nothing of what was.
        """
        if self.bgpool_in_doubt is None:
            self.bgpool_in_doubt = self._may_have_committed(gen, error)
        return self.bgpool_in_doubt

    def _may_have_committed(self, gen: Generator[Any, Any, Any], error: BaseException) -> bool:
        in_transaction = not self._autocommit or self._num_transactions > 0
        if not in_transaction or self._pipeline is not None or _name(gen) not in _NEVER_COMMITS:
            return True
        return _COMMITS.search(_statement(error)) is not None


@cache
def _closed_pgconn() -> abc.PGconn:
    """A connection of libpq's that was never open: an empty name of a parameter is refused before anything is done."""
    pgconn = PGconn.connect_start(b"=")
    pgconn.finish()
    return pgconn


@cache
def aware(connection_class: type[psycopg.Connection[Any]]) -> type[SwitchoverAware]:
    """*connection_class* with SwitchoverAware mixed in."""
    bases = (SwitchoverAware, connection_class)
    return type(connection_class.__name__, bases, {"__module__": connection_class.__module__})


def _statement(error: BaseException) -> str:
    """The statement that *error* came by, from the generator of psycopg that was sending it; empty if it was in none.

    Looked up after the fact: to note every statement beforehand would cost every statement.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "_execute_gen")
    query = next((frame.f_locals.get("query") for frame in frames), None)
    if isinstance(query, sql.Composable):
        query = query.as_string(None)
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query or "")


def _name(gen: object) -> str:
    return str(getattr(gen, "__name__", ""))

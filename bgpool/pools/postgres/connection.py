"""A psycopg connection that knows its generation: it holds new transactions, and explains the effect of a cut.

A psycopg connection exchanges all data with its server through ``wait``. This one method can stop a statement before it
is sent, and turns the driver's error into one that says what to do. This module has its decisions, for psycopg's
Connection and its AsyncConnection; the method itself is in a module of each.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from psycopg._connection_base import BaseConnection
from psycopg.pq import ConnStatus, TransactionStatus

from bgpool import sockets
from bgpool.errors import SwitchoverInterrupted
from bgpool.pools.doubt import NO_DOUBT, PREPARED
from bgpool.pools.fitness import looks_closed
from bgpool.pools.postgres.classify import (
    SETTLED,
    Piped,
    begins_nothing,
    clears_up,
    doubt_of,
    ends,
    piped_by,
    synced_by,
)
from bgpool.pools.postgres.handover import hand_over
from bgpool.pools.postgres.refusal import QUESTION, is_servers, reports_read_only
from bgpool.pools.waits import settled

if TYPE_CHECKING:
    from typing_extensions import Self

    from bgpool.pools.generation import Generation

    _Base = BaseConnection[Any]
else:
    _Base = object

__all__ = ["SwitchoverAware"]

RV = TypeVar("RV")

_BAD: Final = ConnStatus.BAD
_IDLE: Final = TransactionStatus.IDLE
#: A server error of this severity ends the session.
_ENDS_SESSION: Final = frozenset({"FATAL", "PANIC"})
_ENTERS_PIPELINE: Final = "BasePipeline._enter_gen"
_EXITS_PIPELINE: Final = "BasePipeline._exit_gen"
#: Generators that send nothing while no transaction is open.
_SENDS_NOTHING: Final = frozenset(
    {
        "_commit_gen", "_rollback_gen", "_set_autocommit_gen", "_set_deferrable_gen", "_set_isolation_level_gen",
        "_set_read_only_gen",
    }
)  # fmt: skip


class SwitchoverAware(_Base):
    """The shared code of BlockingAware and AsyncAware, the mixins in front of a psycopg connection class.

    Attributes:
        bgpool_generation: The generation in which it was opened. A returned connection goes back to it.
        bgpool_lent: True from its checkout until it is returned, or closed by its user.
        bgpool_unfit: Set once the server turned out to be read-only, or may be: closed on return instead of used again.
        bgpool_modes: With *reset* "session", its modes when it was opened, by psycopg's names.
        bgpool_cut: Set once it was cut at the socket. It is closed, even if the driver has not noticed that.
        bgpool_refused: After a refused write, true if the server itself takes none: preliminary, until that is settled.
        bgpool_in_doubt: None until the connection is lost. Then the reason for which it may have committed data, empty
            if it cannot have.
        bgpool_in_unit: True while the function of a unit of work has it.
        bgpool_ended: Set once that function may have ended the unit's transaction itself.
        bgpool_began_read_only: True if the server reported itself as read-only when that function was called.
    """

    bgpool_generation: Generation
    bgpool_lent: bool = False
    bgpool_unfit: bool = False
    bgpool_cut: bool = False
    bgpool_modes: Mapping[str, Any]
    bgpool_refused: bool | None = None
    bgpool_in_doubt: str | None = None
    bgpool_in_unit: bool = False
    bgpool_ended: bool = False
    bgpool_began_read_only: bool = False
    # True while the origin of a refusal is not known; and the server's report at the time of the refusal.
    _unsettled: bool = False
    _reported_read_only: bool | None = None
    # In autocommit, the transaction status that the server reported last.
    _reported: int = TransactionStatus.IDLE
    # The possible effect of the commands of a pipeline.
    _piped: Piped = Piped.DOUBT
    # True if no command was queued after the pipeline's last sync.
    _synced: bool = True

    async def _exchange(self, gen: Generator[Any, Any, RV]) -> RV:
        """Exchange data with the server, as the connection class does."""
        raise NotImplementedError

    def bgpool_begin_gen(self) -> Generator[Any, Any, None]:
        """Begin a transaction for ``wait``; for psycopg, the statements in it are in one of its blocks."""
        yield from self._exec_command(self._get_tx_start_command())
        self._num_transactions += 1

    def _note_sending(self, gen: Generator[Any, Any, Any]) -> None:
        """Record the possible effect of *gen*, which is sent next, on the current transaction."""
        if self.bgpool_in_unit and not self.bgpool_ended:
            self.bgpool_ended = ends(gen)
        if self._pipeline is not None:
            synced = self._synced or not self._pipeline.level
            self._piped = piped_by(gen, self._piped, self, synced=synced)
            self._synced = synced_by(gen, self, before=synced)
        elif self._autocommit:
            status = self.pgconn.transaction_status
            if status in SETTLED:
                self._reported = status

    # -- its apparent state --------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True if it was closed, is broken, or must not be used for another transaction."""
        return self.pgconn.status == _BAD or looks_closed(self)

    @property
    def broken(self) -> bool:
        """True if it is closed, and was not closed by its user."""
        return not self._closed and self.closed

    @property
    def bgpool_is_open(self) -> bool:
        """See Aware."""
        return self.pgconn.status != _BAD

    @property
    def bgpool_is_idle(self) -> bool:
        """See Aware; also true if a read-only server has ended the transaction, because no work can be lost in it."""
        if self._is_in_block():
            return False
        status = self.pgconn.transaction_status
        refused = status == TransactionStatus.INERROR and self.bgpool_unfit and bool(self.bgpool_refused)
        return status == TransactionStatus.IDLE or refused

    def _is_in_block(self) -> bool:
        """Return whether a block of psycopg's is still open: a transaction, a pipeline, a two-phase transaction."""
        return bool(self._num_transactions) or self._pipeline is not None or self._tpc is not None

    # -- its end -------------------------------------------------------------------------------------------------

    def __del__(self, *_: Any) -> None:
        # The attribute exists once psycopg_pool keeps the connection; no other code closes one that psycopg_pool has
        # lost.
        is_lost = self.bgpool_lent or (hasattr(self, "_expire_at") and self.bgpool_is_open)
        if is_lost and not self._is_inherited() and not sys.is_finalizing():
            self.bgpool_generation.take_lost(self)
        else:
            super().__del__()

    def bgpool_discard(self) -> None:
        """See Aware."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Like psycopg's.

        Raises:
            InheritedConnection: The statement to cancel is the parent's.
        """
        if self._is_inherited():
            self.bgpool_generation.wait_usable()
        super().cancel()

    def _is_inherited(self) -> bool:
        generation = getattr(self, "bgpool_generation", None)
        return generation is not None and generation.inherited

    def bgpool_pass_on(self) -> Self | None:
        """See Aware; a connection with a block of psycopg's still open cannot be used again."""
        if self._is_in_block() or self.pgconn.transaction_status not in SETTLED:
            return None
        return hand_over(self)

    async def _before_sending(self, gen: Generator[Any, Any, Any], generation: Generation) -> None:
        if self.pgconn.transaction_status == TransactionStatus.IDLE and _name(gen) in _SENDS_NOTHING:
            return
        if self.bgpool_cut and self._is_between_statements():
            # No later command reaches the server, not even a COMMIT.
            self.bgpool_in_doubt = NO_DOUBT
            if not clears_up(gen):
                self.pgconn.finish()
            # If *gen* only cleans up, the connection stays open here. Otherwise psycopg would fail before it starts
            # *gen*, outside the code that ignores a failed rollback, and the block would not end with the caller's own
            # error.
        # Statements of the pool itself on an idle connection (configure, check, reset) belong to no user's transaction.
        begins = self.bgpool_lent and self.pgconn.transaction_status == TransactionStatus.IDLE
        if begins_nothing(gen) or (self._pipeline is not None and self._pipeline.level and not self._synced):
            begins = False
        try:
            if generation.inherited or begins:
                await generation.await_usable()
        except psycopg.Error as error:
            # Nothing was sent, so there is no answer to wait for.
            gen.close()
            if isinstance(error, SwitchoverInterrupted):
                # Closed for good: this is the only way in which the owner of the connection sees that it must be
                # replaced.
                self.pgconn.finish()
            if self._is_prepared() and not generation.inherited:
                raise generation.explain_cut(error, PREPARED) from error
            raise

    async def _explained(
        self, gen: Generator[Any, Any, Any], error: BaseException, generation: Generation
    ) -> BaseException:
        """Return *error*, or the error that it means in a switchover."""
        if not isinstance(error, Exception):
            self._leave_pipeline(gen)
        self._note_end(error)
        if not self.bgpool_is_open and not self._closed:
            # An interrupt may have ended the connection, too; and a server that ends it sends various errors.
            doubt = self._judge(gen, error)
            if isinstance(error, psycopg.OperationalError):
                generation.note_cut()
                if generation.is_switching():
                    return generation.explain_cut(error, doubt)
        elif isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            # If the caller has set read_only with psycopg, no query is needed. A transaction stays as it was begun, and
            # the server may take writes again by now.
            began_read_only = self.bgpool_in_unit and self.bgpool_began_read_only
            self._reported_read_only = not self.read_only and (began_read_only or reports_read_only(self))
            self.bgpool_refused = self._reported_read_only is not False
            self._unsettled = self.bgpool_unfit = not self.read_only
            await self._settle()
            if self.bgpool_refused and generation.is_switching():
                return generation.explain_read_only(error)
        return error

    def _note_end(self, error: BaseException) -> None:
        """Close the connection if *error* says that its session has ended, and psycopg has not read that yet.

        Otherwise it would wait for an answer to the last command.
        """
        if not isinstance(error, psycopg.Error) or not self.bgpool_is_open:
            return
        # A reset that arrives while psycopg looks at the socket is an error without anything to read: "connection
        # socket closed". psycopg gives up, and considers the connection open, with its statement still in progress.
        was_reset = error.sqlstate is None and isinstance(error, psycopg.OperationalError)
        if error.diag.severity_nonlocalized in _ENDS_SESSION or (was_reset and sockets.has_ended(self.pgconn.socket)):
            self.pgconn.finish()

    def _leave_pipeline(self, gen: Generator[Any, Any, Any]) -> None:
        """Clean up after *gen* was interrupted, if it is a pipeline's: psycopg does not do this."""
        name = getattr(gen, "__qualname__", "")
        if name == _ENTERS_PIPELINE and self.bgpool_is_open:
            # It may have entered the pipeline, and no code would leave it: the next user would be in the pipeline.
            self._closed = True
            self.pgconn.finish()
        elif name == _EXITS_PIPELINE:
            # Otherwise it would fail when it is collected, and Python would write that to stderr.
            with contextlib.suppress(psycopg.Error, RuntimeError):
                gen.close()

    def _judge(self, gen: Generator[Any, Any, Any], error: BaseException) -> str:
        """Return the reason for which the lost connection may have committed data, in *gen* if not before.

        This is decided once: later commands on the connection are not sent, and say nothing about the earlier ones.
        """
        if self.bgpool_in_doubt is None:
            self.bgpool_in_doubt = doubt_of(
                gen,
                error,
                in_transaction=not self._autocommit or self._reported != TransactionStatus.IDLE,
                prepared=self._is_prepared(),
                piped=self._piped if self._pipeline is not None else None,
            )
        return self.bgpool_in_doubt

    async def bgpool_asettle_refusal(self) -> None:
        """See Aware."""
        if self._unsettled and self.pgconn.transaction_status in SETTLED:
            ended = self.bgpool_ended
            with contextlib.suppress(psycopg.Error):
                await settled(cast(Any, self).rollback())
            # The function of a unit did not cause this.
            self.bgpool_ended = ended

    def _has_nothing_to_roll_back(self) -> bool:
        return self.pgconn.transaction_status == _IDLE and not (
            self._num_transactions or self._tpc or self._pipeline or self._unsettled
        )

    async def _settle(self) -> None:
        """Find the origin of a refusal, if the transaction is over. The lock must be held."""
        status = self.pgconn.transaction_status
        if not self._unsettled or status != TransactionStatus.IDLE or self._pipeline is not None:
            return
        self._unsettled = False
        generation = self.bgpool_generation
        # A drained or retired connection is not used again.
        if not generation.drained and not generation.retired:
            try:
                answer = await self._exchange(self._exec_command(QUESTION))
            except psycopg.Error as error:
                self._note_end(error)
                if not self.bgpool_is_open:
                    # It is no longer in a transaction.
                    self.bgpool_in_doubt = self.bgpool_in_doubt or NO_DOUBT
                    generation.note_cut()
                return
            self.bgpool_refused = answer is not None and is_servers(
                answer, reported=self._reported_read_only, role_is_servers=generation.role_is_servers()
            )
        self.bgpool_unfit = self.bgpool_refused is True and generation.note_refusal()

    def _is_between_statements(self) -> bool:
        """Return whether all commands in a transaction are answered, and the transaction ends with the connection."""
        is_open = self.pgconn.transaction_status == TransactionStatus.INTRANS
        return is_open and self._pipeline is None and not self._is_prepared()

    def _is_prepared(self) -> bool:
        """Return whether a two-phase transaction is prepared, or was being prepared: it outlives the connection."""
        return self._tpc is not None and self._tpc[1]


def _name(gen: object) -> str:
    return str(getattr(gen, "__name__", ""))

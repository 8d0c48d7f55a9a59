"""What a pooled PyMySQL connection exchanges with its server, byte by byte and result by result.

Everything that PyMySQL sends goes through ``_write_bytes``, and everything that it reads comes through
``_read_packet``. A loss is noticed in these two and nowhere else: the driver's error becomes one that says what to do,
and a connection whose answers can no longer be told apart is closed.
"""

from __future__ import annotations

import os
import select
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pymysql.connections import MySQLResult
from pymysql.constants import CR, ER, SERVER_STATUS
from pymysql.err import InterfaceError, MySQLError, OperationalError, ProgrammingError
from pymysql.protocol import MysqlPacket

from bgpool.mysql import BoundedConnection

if TYPE_CHECKING:
    from bgpool.pools.generation import Generation

__all__ = ["Exchange"]

#: The packet that ends columns and rows: mark, warnings, status.
_END_OF_ROWS: Final = 0xFE
_END_OF_ROWS_BYTES: Final = 5
#: What is sent without looking whether the server has ended the connection meanwhile. PyMySQL sends local files in
#: packets of this size; a socket that takes anything takes about as much.
_PIECE_BYTES: Final = 16 * 1024
_CUT_SHORT: Final = (
    "Commands out of sync: another statement on this connection dropped the rows that were not read yet; read all of "
    "an unbuffered result (SSCursor) first, or use another connection"
)
#: The server has ended the connection; macOS does not tell.
_ENDED: Final = getattr(select, "POLLRDHUP", 0)


class Exchange(BoundedConnection):
    """A connection that loses no answer and mistakes none for another."""

    bgpool_generation: Generation
    # PyMySQL sets it at the end of __init__, which may fail before.
    _result: Any = None
    # Whether the answer to what was sent last, or its next result, has not begun to come.
    _unanswered: bool = False

    def _explained(self, error: MySQLError, generation: Generation) -> Exception:
        """*error*, or what it means in a switchover."""
        raise NotImplementedError

    def _answered(self) -> None:
        """What was sent last did not fail: its answer, or its next result, begins to come."""

    @property
    def bgpool_is_open(self) -> bool:
        """As Aware says."""
        return self._sock is not None

    # -- results -------------------------------------------------------------------------------------------------

    def bgpool_is_readable(self) -> bool:
        """Whether the server has said something that nobody asked for: it ends the connection."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def bgpool_settle(self) -> None:
        """Read the results that were left unread, as PyMySQL does before it sends: no status is true before the last.

        Raises:
            InheritedConnection: The connection, and what is unread, is the parent's.
            pymysql.Error: What a result that was left unread says, or what became of the connection meanwhile.
        """
        result = self._result
        if result is None or not (result.unbuffered_active or result.has_next) or not self.bgpool_is_open:
            return
        if self._is_inherited():
            self.bgpool_generation.wait_usable()
        if result.unbuffered_active:
            warnings.warn("Previous unbuffered result was left incomplete", stacklevel=3)
            result._finish_unbuffered_query()
        while self._result is not None and self._result.has_next:
            self.next_result()

    def show_warnings(self) -> Any:
        """The rows of SHOW WARNINGS."""
        try:
            return super().show_warnings()
        except MySQLError:
            raise
        except BaseException:
            self._force_close()  # as in _read_query_result, which PyMySQL goes past here
            raise

    def _read_query_result(self, unbuffered: bool = False) -> int:
        self._unanswered = True
        try:
            count: int = super()._read_query_result(unbuffered)  # type: ignore[misc]  # not in the stubs
            if unbuffered:
                self._result.__class__ = _UnbufferedResult
        except MySQLError:
            raise
        except BaseException:
            # Interrupted, or a value cannot be decoded: the rest would be taken for the answer to the next statement.
            self._force_close()
            raise
        return count

    # -- bytes ---------------------------------------------------------------------------------------------------

    def _write_bytes(self, data: bytes | memoryview) -> None:
        try:
            if len(data) < _PIECE_BYTES:
                super()._write_bytes(data)
                return
            view = memoryview(data)
            for begin in range(0, len(data), _PIECE_BYTES):
                self._wait_writable()
                super()._write_bytes(view[begin : begin + _PIECE_BYTES])
        except BaseException as error:
            self._fail(error)

    def _wait_writable(self) -> None:
        """Wait until the socket takes more, and no longer than the server is there.

        A server that ends a connection in the middle of a large statement or file leaves a full window behind: a write
        alone would wait for the end of its time limit.
        """
        if not self.bgpool_is_open:
            raise InterfaceError(0, "")
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT | _ENDED)
        found = poll.poll(1000 * self._write_timeout if self._write_timeout is not None else None)
        if not found or found[0][1] & _ENDED:
            self._force_close()
            raise OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server while sending to it")

    def _read_packet(self, packet_type: type[Any] = MysqlPacket) -> Any:
        generation = self._generation()
        if generation is not None and not generation.live[0] and generation.inherited:
            # What is there to be read is the parent's.
            generation.wait_usable()
        try:
            packet = super()._read_packet(packet_type)
            data = packet.get_all_data()
            if len(data) == _END_OF_ROWS_BYTES and data[0] == _END_OF_ROWS:
                self._note_end_of_rows(data)
        except BaseException as error:
            self._unanswered = False
            self._fail(error)
        if self._unanswered and self._local_infile and packet.is_load_local_packet():
            return self._load_local(Path(os.fsdecode(packet.get_all_data()[1:])))
        if self._unanswered:
            self._unanswered = False
            self._answered()
        return packet

    def _note_end_of_rows(self, data: bytes) -> None:
        # PyMySQL takes the status of a SELECT for nothing, and it may have opened a transaction.
        self.server_status = int.from_bytes(data[3:5], "little")
        if self._result is not None and self._result.unbuffered_active:
            # PyMySQL does so later. An interrupt in between would have the connection wait for rows that never come.
            self._result.has_next = bool(self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS)
            self._result.unbuffered_active = False

    def _load_local(self, path: Path) -> Any:
        """Send the file that LOAD DATA LOCAL asks for, and return the server's answer.

        In PyMySQL's place, which says that the file is complete also where an error or an interrupt cut it short: the
        server would commit a part of it. A connection that is closed instead has nothing of the file committed.
        """
        failure: Exception | None = None
        begun = False
        try:
            with path.open("rb") as file:
                while chunk := file.read(min(self.max_allowed_packet, _PIECE_BYTES)):
                    self.write_packet(chunk)
                    begun = True
        except MySQLError:
            raise
        except (OSError, ValueError) as error:
            failure = OperationalError(ER.FILE_NOT_FOUND, f"cannot read the local file {str(path)!r}: {error}")
            failure.__cause__ = error
            if begun:
                self._force_close()
                raise failure from error
        # An empty packet ends the file, also one that could not be read at all: the server waits for it.
        self.write_packet(b"")
        answer = self._read_packet()
        if failure is not None:
            raise failure
        return answer

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise what *error*, met while bytes were sent or read, means."""
        if isinstance(error, (AttributeError, ValueError)) and not self.bgpool_is_open:
            # PyMySQL does not look whether it was closed before, or by another thread.
            error = InterfaceError(0, "")
        generation = self._generation()
        if isinstance(error, MySQLError):
            # While it is being set up nobody else has it; what its user has closed, nothing else has cut.
            cause, error = error, error if generation is None or self._closed else self._explained(error, generation)
            if error is not cause:
                error.__cause__ = cause
            del cause
        else:
            # Interrupted: nobody knows how much has gone, or come.
            self._force_close()
        try:
            raise error
        finally:
            # Or the error, its traceback and this frame would keep each other, and all that its callers have.
            del error

    def _generation(self) -> Generation | None:
        return getattr(self, "bgpool_generation", None)

    def _is_inherited(self) -> bool:
        generation = self._generation()
        return generation is not None and generation.inherited


class _UnbufferedResult(MySQLResult):
    """One whose rows do not seem to end where the connection was lost, or where another statement has dropped the rest.

    In a fork's child the rest is the parent's.
    """

    # Whether rows were dropped, and whether any packet was since the dropping began.
    _is_cut_short: bool = False
    _has_dropped: bool = False

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if self._is_cut_short:
            raise ProgrammingError(CR.CR_COMMANDS_OUT_OF_SYNC, _CUT_SHORT)
        connection: Any = self.connection
        if connection is not None and not connection.bgpool_is_open:
            connection._fail(InterfaceError(0, ""))
        try:
            return super()._read_rowdata_packet_unbuffered()  # type: ignore[misc]  # not in the stubs
        except MySQLError:
            raise
        except BaseException:
            if connection is not None:
                connection._force_close()  # a row that was read would be missing
            raise

    def _finish_unbuffered_query(self) -> None:
        connection: Any = self.connection
        if connection is not None and connection._is_inherited():
            self.unbuffered_active = False
            return
        if self.unbuffered_active:
            self._is_cut_short = True
        super()._finish_unbuffered_query()  # type: ignore[misc]  # not in the stubs

    def _check_packet_is_eof(self, packet: MysqlPacket) -> bool:
        is_end: bool = super()._check_packet_is_eof(packet)  # type: ignore[misc]  # not in the stubs
        if self._is_cut_short:
            # Where nothing but the end was unread, no row is missing.
            self._is_cut_short = self._has_dropped or not is_end
            self._has_dropped = True
        return is_end

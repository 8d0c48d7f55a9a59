"""The exchange of a pooled PyMySQL connection with its server, byte by byte and result by result.

PyMySQL sends all data through ``_write_bytes`` and reads all data through ``_read_packet``. A loss is noticed in these
two methods and nowhere else: the driver's error becomes one that says what to do. A connection whose answers can no
longer be assigned to statements is closed.
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

#: The packet that ends columns and rows: marker, warnings, status.
_END_OF_ROWS: Final = 0xFE
_END_OF_ROWS_BYTES: Final = 5
#: The bytes that are sent without a check whether the server has ended the connection. PyMySQL sends local files in
#: packets of this size, and a writable socket accepts about as much.
_PIECE_BYTES: Final = 16 * 1024
_CUT_SHORT: Final = (
    "Commands out of sync: another statement on this connection dropped the rows that were not read yet; read all of "
    "an unbuffered result (SSCursor) first, or use another connection"
)
#: The event that the server has ended the connection; macOS does not report it.
_ENDED: Final = getattr(select, "POLLRDHUP", 0)


class Exchange(BoundedConnection):
    """A connection that loses no answer and assigns each to the right statement."""

    bgpool_generation: Generation
    # PyMySQL sets it at the end of __init__, which may fail before.
    _result: Any = None
    # True while the answer to the last command, or its next result, has not begun to arrive.
    _unanswered: bool = False

    def _explained(self, error: MySQLError, generation: Generation) -> Exception:
        """Return *error*, or the error that it means in a switchover."""
        raise NotImplementedError

    def _answered(self) -> None:
        """Record that the last command succeeded: its answer, or its next result, begins to arrive."""

    @property
    def bgpool_is_open(self) -> bool:
        """See Aware."""
        return self._sock is not None

    # -- results -------------------------------------------------------------------------------------------------

    def bgpool_is_readable(self) -> bool:
        """Return whether the server has sent data without a request, which means that it ends the connection."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def bgpool_settle(self) -> None:
        """Read the unread results, as PyMySQL does before it sends: only the last result's status is valid.

        Raises:
            InheritedConnection: The connection and the unread data are the parent's.
            pymysql.Error: The error in an unread result, or the loss of the connection.
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
        """Return the rows of SHOW WARNINGS."""
        try:
            return super().show_warnings()
        except MySQLError:
            raise
        except BaseException:
            self._force_close()  # as in _read_query_result, which PyMySQL bypasses here
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
            # It was interrupted, or a value cannot be decoded: the rest would be taken for the answer to the next
            # statement.
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
        """Wait until the socket accepts more data, but not after the server has ended the connection.

        A server that ends a connection in the middle of a large statement or file leaves a full window behind. A plain
        write would wait until its time limit.
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
            # The data to be read is the parent's.
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
        # PyMySQL ignores the status of a SELECT, which may have opened a transaction.
        self.server_status = int.from_bytes(data[3:5], "little")
        if self._result is not None and self._result.unbuffered_active:
            # PyMySQL does this later. An interrupt in between would make the connection wait for rows that never
            # arrive.
            self._result.has_next = bool(self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS)
            self._result.unbuffered_active = False

    def _load_local(self, path: Path) -> Any:
        """Send the file that LOAD DATA LOCAL requests, and return the server's answer.

        This replaces PyMySQL's code, which reports the file as complete even after an error or an interrupt, so that
        the server would commit a part of it. If the connection is closed instead, the server commits no part of the
        file.
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
        # An empty packet ends the file. The server waits for it even if the file could not be read at all.
        self.write_packet(b"")
        answer = self._read_packet()
        if failure is not None:
            raise failure
        return answer

    def _fail(self, error: BaseException) -> NoReturn:
        """Raise the error that *error*, caught while bytes were sent or read, means."""
        if isinstance(error, (AttributeError, ValueError)) and not self.bgpool_is_open:
            # PyMySQL does not check if the connection was closed before, or by another thread.
            error = InterfaceError(0, "")
        generation = self._generation()
        if isinstance(error, MySQLError):
            # A connection that is being opened has no user yet; and a connection that its user has closed was not cut.
            cause, error = error, error if generation is None or self._closed else self._explained(error, generation)
            if error is not cause:
                error.__cause__ = cause
            del cause
        else:
            # It was interrupted, and it is unknown how much was sent or received.
            self._force_close()
        try:
            raise error
        finally:
            # Otherwise the error, its traceback and this frame would keep each other and the callers' variables alive.
            del error

    def _generation(self) -> Generation | None:
        return getattr(self, "bgpool_generation", None)

    def _is_inherited(self) -> bool:
        generation = self._generation()
        return generation is not None and generation.inherited


class _UnbufferedResult(MySQLResult):
    """A result that raises if its rows are incomplete.

    The connection was lost, or another statement has dropped the rest. In a fork's child the rest is the parent's.
    """

    # True if rows were dropped; and true if any packet arrived since the dropping began.
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
                connection._force_close()  # otherwise a row that was read would be missing
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
            # If only the end was unread, no row is missing.
            self._is_cut_short = self._has_dropped or not is_end
            self._has_dropped = True
        return is_end

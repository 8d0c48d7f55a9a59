"""The interface of a bus, independent of its implementation, and its errors."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from bgpool.base_errors import Error

__all__ = ["Bus", "BusError", "Entry", "ReadResult", "KeyMissing", "Refused", "ReportEntry"]


class BusError(Error):
    """The bus cannot be read or written. The text is one line for the operator and contains no secret.

    If the bus did not answer in time, the write may still be executed later. Applications never see this error: only
    the monitor, the doctor and the command line do.

    Attributes:
        code: The server's error code, such as ``NOPERM``; empty if it has not answered, or has answered without one.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class Refused(BusError):
    """The message is not above the newest entry: another host has published since. Nothing was written."""


class KeyMissing(BusError):
    """The stream does not exist, so the order of its ids is lost. Only a claim may create it. Nothing was written."""


class Entry(NamedTuple):
    """An entry of the leaders' stream.

    Attributes:
        term, seq: Its id, each 0 to 2**64 - 1; not authenticated yet.
        payload: The published bytes; empty for an entry without a payload, or with one that is too large.
    """

    term: int
    seq: int
    payload: bytes


class ReportEntry(NamedTuple):
    """An entry of the hosts' stream.

    Attributes:
        id: The bus's own id, for `Bus.read`; increasing.
        payload: See `Entry`.
    """

    id: str
    payload: bytes


class ReadResult(NamedTuple):
    """The result of a read, the oldest entries first."""

    entries: list[Entry]
    reports: list[ReportEntry]


class Bus(Protocol):
    """One thread's access to the two streams of a ``bg_id``. An object has one connection, opened on demand.

    Every method raises BusError if the bus cannot be used. The next call tries again immediately: the caller must pause
    between two attempts.
    """

    def publish(self, term: int, seq: int, payload: bytes) -> None:
        """Add an entry to the leaders' stream, if it is above the newest one there. There is only one attempt.

        Args:
            term: 1 to 2**64 - 1.
            seq: From 0; 0 is a claim, which may create the stream.
            payload: At most FLEET_ENTRY_BYTES, or no host reads it.

        Raises:
            Refused: It is not above the newest entry.
            KeyMissing: The stream does not exist, and *seq* is not 0.
            BusError: It is not known whether the entry was written.
        """

    def read(self, after: tuple[int, int], timeout_s: float, reports_after: str | None = None) -> ReadResult:
        """Return newer entries, at most FLEET_ENTRIES_READ of each stream, and wait if there are none.

        Args:
            after: The term and seq of the last entry that was read; (0, 0) for all that are kept.
            timeout_s: The longest wait in seconds, at most FLEET_BLOCK_S; 0 or less does not wait. The bus may return
                up to a tenth of a second later.
            reports_after: The id of the last report that was read, ``0`` for all that are kept; None reads no reports.

        Returns:
            Empty lists if there is nothing new, or if the stream does not exist: see `top`.
        """

    def top(self) -> Entry | None:
        """Return the newest entry of the leaders' stream, None if there is none. Higher ids may have been used."""

    def report(self, payload: bytes) -> None:
        """Add *payload* to the hosts' stream, which is created if it does not exist."""

    def reports(self, count: int) -> list[ReportEntry]:
        """Return the newest *count* entries of the hosts' stream, the newest first."""

    def close(self) -> None:
        """Close the connection; a later call connects again."""

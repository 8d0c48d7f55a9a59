"""What a bus does, whatever it runs on, and what can go wrong on it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from bgpool.base_errors import Error

__all__ = ["Bus", "BusError", "Entry", "ReadResult", "KeyMissing", "Refused", "ReportEntry"]


class BusError(Error):
    """The bus cannot be read or written. The text is one line for a person and holds no secret.

    What was being written may still be carried out later, where the bus did not answer in time. No application meets
    it: it stays with the monitor, the doctor and the command line.

    Attributes:
        code: The server's own word for it, such as ``NOPERM``; empty where it has not answered, or has answered with
            none.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class Refused(BusError):
    """What was to be published is not above the newest entry: somebody is ahead. Nothing was written."""


class KeyMissing(BusError):
    """The stream is gone, and the order of its ids with it; only a claim may create it. Nothing was written."""


class Entry(NamedTuple):
    """An entry of the leaders' stream.

    Attributes:
        term, seq: Its id, each 0 to 2**64 - 1; nobody has vouched for it yet.
        payload: What was published; empty for an entry that has no payload, or one that is too large to be read.
    """

    term: int
    seq: int
    payload: bytes


class ReportEntry(NamedTuple):
    """An entry of the hosts' stream.

    Attributes:
        id: The bus's own, for `Bus.read`; rises.
        payload: As for `Entry`.
    """

    id: str
    payload: bytes


class ReadResult(NamedTuple):
    """What one reading brought, the oldest first."""

    entries: list[Entry]
    reports: list[ReportEntry]


class Bus(Protocol):
    """One thread's access to the two streams of a ``bg_id``: an object has one connection, opened when it is needed.

    Every method raises BusError where the bus cannot be used. The next call tries again, by itself and at once: it is
    the caller who waits between two attempts.
    """

    def publish(self, term: int, seq: int, payload: bytes) -> None:
        """Add an entry to the leaders' stream, if it is above the newest one there. It is tried once.

        Args:
            term: 1 to 2**64 - 1.
            seq: From 0; 0 is a claim, which may create the stream.
            payload: At most FLEET_ENTRY_BYTES, or nobody reads it.

        Raises:
            Refused: It is not above the newest.
            KeyMissing: The stream is gone, and *seq* is not 0.
            BusError: It is not known whether the entry was written.
        """

    def read(self, after: tuple[int, int], timeout_s: float, reports_after: str | None = None) -> ReadResult:
        """What came after, at most FLEET_ENTRIES_READ of each stream, waiting for it if there is nothing.

        Args:
            after: The term and seq of the last entry that was read; (0, 0) for all that is kept.
            timeout_s: Longest wait, in seconds, cut to FLEET_BLOCK_S; 0 or less does not wait. The bus returns up to
                a tenth of a second later than asked.
            reports_after: The id of the last report that was read, ``0`` for all that are kept; None reads no reports.

        Returns:
            Empty lists where nothing came. Also if the stream is gone: see `top`.
        """

    def top(self) -> Entry | None:
        """The newest entry of the leaders' stream, None where none is kept. Ids above it may have been used."""

    def report(self, payload: bytes) -> None:
        """Add *payload* to the hosts' stream, which is created if it is missing."""

    def reports(self, count: int) -> list[ReportEntry]:
        """The newest *count* entries of the hosts' stream, the newest first."""

    def close(self) -> None:
        """Hang up; a later call connects again."""

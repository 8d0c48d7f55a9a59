"""Receipts: a table in which each unit of work inserts a row, so that a unique key decides the outcome of a COMMIT.

A unit has an id of its own, chosen before its first attempt. The first attempt inserts it as its last statement before
COMMIT. Every attempt after a COMMIT that was cut inserts the same id first. If the earlier attempt has committed, this
violates the unique key, and the function is not called again. If the earlier COMMIT is still in progress on the same
server, the INSERT waits for it. So bgpool does not have to trust any answer of a server about the COMMIT. The
statements are in each engine's module ``receipts``; bgpool.pools.units decides when a unit sends them.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bgpool.core.limits import (
    RECEIPT_ID_CHARS,
    RECEIPTS_BACKLOG_EVERY,
    RECEIPTS_BACKLOG_S,
    RECEIPTS_DELETED_AT_ONCE,
    RECEIPTS_DELETION_EVERY,
    RECEIPTS_DELETION_S,
    RECEIPTS_RETRY_S,
)
from bgpool.errors import ConfigurationError
from bgpool.failures import first_line
from bgpool.logs import log_fields
from bgpool.settings import ALWAYS, Settings

if TYPE_CHECKING:
    from bgpool.pools.generation import Generation

__all__ = [
    "REMEDY",
    "AlreadyApplied",
    "KeyTaken",
    "Receipts",
    "Undecided",
    "attempt_name",
    "check_receipt_id",
    "new_id",
]

_logger: Final = logging.getLogger("bgpool.pool")

REMEDY: Final = "bgpool receipts --sql prints the DDL and the grants"

#: A schema name that needs only quotes around it, and no escapes.
_SCHEMA: Final = re.compile(r"[\w$-]+")

STOPS_GREEN: Final = (
    "is on blue alone, and green is a logical replica: a receipt would stop its replication; create it on green, too"
)

#: No blanks, quotes or backslashes: the id is part of the statements' text, and all servers compare it in the same way.
_ID: Final = re.compile(rf"[A-Za-z0-9._:@/+=~#-]{{1,{RECEIPT_ID_CHARS}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AlreadyApplied:
    """The return value of a unit of work whose id was applied before.

    The function was not called. The earlier run may have been in another process, so its result is not known here.

    Attributes:
        receipt_id: The id that the caller gave.

    Source: docs/units-of-work.md.
    """

    receipt_id: str


class KeyTaken(Exception):
    """An attempt found the row of its unit's id: the unit was applied.

    Attributes:
        writer: The name of the attempt that wrote the row (see attempt_name). It is another unit's if that was a run
            with the same id, chosen by the caller.
    """

    def __init__(self, writer: str) -> None:
        super().__init__(writer)
        self.writer: Final = writer


class Undecided(Exception):
    """The receipts table on this server cannot show whether the earlier attempt was applied."""


def check_receipt_id(what: str, receipt_id: object) -> str:
    """Return *receipt_id* if it is valid as the id of a unit of work.

    Raises:
        ConfigurationError: It is no text of 1 to RECEIPT_ID_CHARS of the allowed characters.
    """
    if not isinstance(receipt_id, str) or _ID.fullmatch(receipt_id) is None:
        shown = repr(receipt_id)
        raise ConfigurationError(
            f"{what}: receipt_id={shown[:80]}{'…' if len(shown) > 80 else ''}: a string of 1 to {RECEIPT_ID_CHARS} "
            "letters, digits and . _ : @ / + = ~ # - is allowed"
        )
    return receipt_id


def new_id() -> str:
    """Return a new id of 28 characters. It begins with the time, so that rows are inserted next to each other."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def attempt_name(unit: str, attempt: int) -> str:
    """Return the name of an *attempt* of *unit*, counted from 1, in the table: 32 characters."""
    return f"{unit}{attempt & 0xFFFF:04x}"


class Receipts:
    """The receipts table, from the view of one pool or connector in this process.

    Attributes:
        table: Its name, with its schema, or without it until the table was found.
        always: True if units write a receipt at all times, false if only during a switchover.
        reach_green: True if green has shown, before the switchover, that rows of the table are replicated to it. Only a
            logical replica must show that: it gets only the rows of tables in its subscription.
        stops_green: True if a receipt would stop the replication to green: the table was created on blue alone, and
            green is a logical replica.
        retention_s: The time for which rows are kept, in seconds.
        failure: The reason for which the table could not be used at the last try; empty if it could, and before the
            first.
    """

    def __init__(self, table: str, settings: Settings, host: str) -> None:
        """Create the state for *table* behind the endpoint *host*."""
        self.table = self._given = table
        self.always: Final = settings.bg_receipts == ALWAYS
        self.reach_green = self.stops_green = False
        self.failure = ""
        self._bg_id: Final = settings.bg_id
        self._host: Final = host
        self._told: Final[set[str]] = set()
        self._retry_at = 0.0
        self.retention_s: Final = settings.bg_receipts_retention_s
        # The number of receipts inserted since old rows were last deleted, and the number at which that is due again.
        # It is due immediately, for the sake of processes that insert few.
        self._left = self._due_left = 0
        self._due_at = 0.0

    def is_usable(self, generation: Generation) -> bool | None:
        """Return whether the table can be used on the connections of *generation*; None if it must be checked first."""
        if self.stops_green:
            return False
        if generation.receipts is False and time.monotonic() >= self._retry_at:
            return None
        return generation.receipts

    def accept(self, generation: Generation) -> None:
        """Record that the table has the required form on the server of *generation*."""
        generation.receipts, self.failure = True, ""

    def found_in(self, schema: str) -> None:
        """Record that the table is in *schema*. Its full name is used from now on, whatever search path is set.

        Otherwise a unit's attempts could insert its receipt into one table and search another.
        """
        if "." not in self.table and _SCHEMA.fullmatch(schema):
            self.table = f"{schema}.{self.table}"

    def note_green(self, *, reaches: bool | None) -> None:
        """Record whether receipts reach green before a switchover; None if one would stop its replication."""
        self.reach_green, self.stops_green = reaches is True, reaches is None
        if self.stops_green:
            self._refuse(STOPS_GREEN)
        elif self.failure == STOPS_GREEN:
            self.failure = ""

    def refuse(self, generation: Generation, why: str) -> None:
        """Record that the table cannot be used by *generation*. Units run without receipts for a while."""
        generation.receipts, self._retry_at = False, time.monotonic() + RECEIPTS_RETRY_S
        self._refuse(why)

    def _refuse(self, why: str) -> None:
        self.failure = why
        if why not in self._told:
            self._told.add(why)
            self.tell(why)

    def tell(self, why: str) -> None:
        """Log that the table cannot be used, and *why*."""
        text = f"units of work on {self._host} go on without receipts: {self._parameter} {why}"
        self._warn(text, log_fields("receipts_table_unusable", bg_id=self._bg_id, host=self._host))

    @property
    def _parameter(self) -> str:
        return f"bg_receipts_table={self._given!r}"

    def _warn(self, text: str, extra: dict[str, Any]) -> None:
        _logger.warning("[bg_id: %r] %s; %s", self._bg_id, text, REMEDY, extra=extra)

    # -- old rows ------------------------------------------------------------------------------------------------

    def note_left(self) -> None:
        """Count a receipt that a unit has inserted."""
        self._left += 1

    def is_deletion_due(self) -> bool:
        """Return whether the unit that has ended must delete old rows; if so, the next units need not."""
        if self._left < self._due_left and time.monotonic() < self._due_at:
            return False
        self._schedule(RECEIPTS_DELETION_EVERY, RECEIPTS_DELETION_S)
        return True

    def note_deleted(self, rows: int) -> None:
        """Record that *rows* old rows were deleted; there may be more."""
        if rows >= RECEIPTS_DELETED_AT_ONCE:
            self._schedule(RECEIPTS_BACKLOG_EVERY, RECEIPTS_BACKLOG_S)

    def keep_old(self, why: str) -> None:
        """Record that old rows cannot be deleted in this table, and log it once."""
        if why in self._told:
            return
        self._told.add(why)
        text = f"old receipts on {self._host} are not deleted, and the table grows: {self._parameter} {why}"
        self._warn(text, log_fields("receipts_not_deleted", bg_id=self._bg_id, host=self._host))

    def note_not_deleted(self, error: Exception) -> None:
        """Record that *error* interrupted the deletion; a later unit tries again."""
        _logger.debug(
            "[bg_id: %r] old receipts on %s were not deleted: %s",
            self._bg_id,
            self._host,
            first_line(error),
            extra=log_fields("receipts_not_deleted", bg_id=self._bg_id, host=self._host),
        )

    def _schedule(self, receipts: int, seconds: float) -> None:
        self._left, self._due_left, self._due_at = 0, receipts, time.monotonic() + seconds

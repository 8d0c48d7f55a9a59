"""Receipts: a table in which each unit of work leaves a row, so that what became of a COMMIT is for a key to decide.

A unit has an id of its own, chosen before its first attempt. The first attempt inserts it as its last statement before
COMMIT. Every attempt after a COMMIT that was cut inserts the same id first: if the earlier attempt has committed, that
meets the unique key, and the function is not called again. If the earlier COMMIT is still under way on the same server,
the INSERT waits for it. So no answer of a server has to be trusted. The statements are those of each engine's module
``receipts``; when a unit sends which is decided in bgpool.pools.units.
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

#: A schema's name that needs no more than quotes around it.
_SCHEMA: Final = re.compile(r"[\w$-]+")

STOPS_GREEN: Final = (
    "is on blue alone, and green is a logical replica: a receipt would stop its replication; create it on green, too"
)

#: No blanks, quotes or backslashes: the id is part of statements' text, and all servers compare it alike.
_ID: Final = re.compile(rf"[A-Za-z0-9._:@/+=~#-]{{1,{RECEIPT_ID_CHARS}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AlreadyApplied:
    """What a unit of work returns instead of the function's result if its id was applied before.

    The function was not called. The earlier run may have been another process's, so that its result is not known here.

    Attributes:
        receipt_id: The id that the caller gave.

    Source: docs/units-of-work.md.
    """

    receipt_id: str


class KeyTaken(Exception):
    """An attempt has met the row of its unit's id: the unit was applied.

    Attributes:
        writer: The attempt that wrote the row, by its name (see attempt_name): another unit's, if that was a run with
            the same id of the caller's.
    """

    def __init__(self, writer: str) -> None:
        super().__init__(writer)
        self.writer: Final = writer


class Undecided(Exception):
    """The receipts table cannot tell on this server whether the attempt before was applied."""


def check_receipt_id(what: str, receipt_id: object) -> str:
    """*receipt_id* as a unit of work takes it.

    Raises:
        ConfigurationError: It is no text of 1 to RECEIPT_ID_CHARS of the characters that are allowed.
    """
    if not isinstance(receipt_id, str) or _ID.fullmatch(receipt_id) is None:
        shown = repr(receipt_id)
        raise ConfigurationError(
            f"{what}: receipt_id={shown[:80]}{'…' if len(shown) > 80 else ''}: a string of 1 to {RECEIPT_ID_CHARS} "
            "letters, digits and . _ : @ / + = ~ # - is allowed"
        )
    return receipt_id


def new_id() -> str:
    """An id for one unit of work, 28 characters: its time comes first, so that rows are inserted side by side."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def attempt_name(unit: str, attempt: int) -> str:
    """What an *attempt* of *unit*, counted from 1, is named in the table, 32 characters."""
    return f"{unit}{attempt & 0xFFFF:04x}"


class Receipts:
    """The receipts table, as one pool or connector knows it in this process.

    Attributes:
        table: Its name, with a schema or, until it was found in one, without.
        always: Whether units write a receipt at all times, or only during a switchover.
        reach_green: Whether green has shown, before the switchover, that rows of the table are replicated to it. Only
            a logical replica has to: it gets the rows of those tables that its subscription knows.
        stops_green: Whether a receipt would stop the replication to green: the table was made on blue alone, and green
            is a logical replica.
        retention_s: How long rows are kept, in seconds.
        failure: Why the table could not be used when it was last tried; empty if it could, and before.
    """

    def __init__(self, table: str, settings: Settings, host: str) -> None:
        """The *table* behind the endpoint *host*."""
        self.table = self._given = table
        self.always: Final = settings.bg_receipts == ALWAYS
        self.reach_green = self.stops_green = False
        self.failure = ""
        self._bg_id: Final = settings.bg_id
        self._host: Final = host
        self._told: Final[set[str]] = set()
        self._retry_at = 0.0
        self.retention_s: Final = settings.bg_receipts_retention_s
        # Receipts left since old rows were deleted last, and when that is due again. At once, for processes that leave
        # few.
        self._left = self._due_left = 0
        self._due_at = 0.0

    def is_usable(self, generation: Generation) -> bool | None:
        """Whether the table can be used on the connections of *generation*; None: it is to be looked at."""
        if self.stops_green:
            return False
        if generation.receipts is False and time.monotonic() >= self._retry_at:
            return None
        return generation.receipts

    def accept(self, generation: Generation) -> None:
        """The table is as it is to be on the server of *generation*."""
        generation.receipts, self.failure = True, ""

    def found_in(self, schema: str) -> None:
        """The table is in *schema*: that one is meant from now on, wherever a function has its session look for names.

        Or a unit's attempts would leave its receipt in one table and look for it in another.
        """
        if "." not in self.table and _SCHEMA.fullmatch(schema):
            self.table = f"{schema}.{self.table}"

    def note_green(self, *, reaches: bool | None) -> None:
        """Receipts reach green as it is before a switchover, or do not; None: one would stop its replication."""
        self.reach_green, self.stops_green = reaches is True, reaches is None
        if self.stops_green:
            self._refuse(STOPS_GREEN)
        elif self.failure == STOPS_GREEN:
            self.failure = ""

    def refuse(self, generation: Generation, why: str) -> None:
        """The table cannot be used on the server of *generation*: units go on without for a while."""
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
        """A unit has left a receipt."""
        self._left += 1

    def is_deletion_due(self) -> bool:
        """Whether the unit that has ended is to delete old rows; if so, the next ones are not."""
        if self._left < self._due_left and time.monotonic() < self._due_at:
            return False
        self._schedule(RECEIPTS_DELETION_EVERY, RECEIPTS_DELETION_S)
        return True

    def note_deleted(self, rows: int) -> None:
        """So many *rows* were deleted; there may be more."""
        if rows >= RECEIPTS_DELETED_AT_ONCE:
            self._schedule(RECEIPTS_BACKLOG_EVERY, RECEIPTS_BACKLOG_S)

    def keep_old(self, why: str) -> None:
        """Old rows cannot be deleted, as the table is: said once."""
        if why in self._told:
            return
        self._told.add(why)
        text = f"old receipts on {self._host} are not deleted, and the table grows: {self._parameter} {why}"
        self._warn(text, log_fields("receipts_not_deleted", bg_id=self._bg_id, host=self._host))

    def note_not_deleted(self, error: Exception) -> None:
        """*error* came in between: the next one tries again."""
        _logger.debug(
            "[bg_id: %r] old receipts on %s were not deleted: %s",
            self._bg_id,
            self._host,
            first_line(error),
            extra=log_fields("receipts_not_deleted", bg_id=self._bg_id, host=self._host),
        )

    def _schedule(self, receipts: int, seconds: float) -> None:
        self._left, self._due_left, self._due_at = 0, receipts, time.monotonic() + seconds

"""The possible commits of a statement, judged by its text, for every PostgreSQL driver."""

from __future__ import annotations

import re
from typing import Final

from bgpool.pools.doubt import DURING_COMMIT, MAY_COMMIT, NO_DOUBT

__all__ = ["commits", "doubt_of_text", "ends_transaction", "is_harmless"]

#: The places where a statement may begin: at the start, after another one, or after a comment; then blanks and comments
#: of one line.
_BEGINS: Final = r"(?:\A|;|\*/)(?:\s|--[^\n\r]*[\n\r])*"
#: A statement, or one of several, that commits; or one that rolls back and is followed by more, which then commits by
#: itself. Text that only looks like one, in a string or after a comment, counts as one.
_COMMITS: Final = re.compile(
    rf"{_BEGINS}(?:(?:COMMIT|END)\b|PREPARE(?:\s+TRANSACTION\b|\s*(?:--|/\*))|(?:ROLLBACK|ABORT)\b[^;]*;\s*\S)",
    re.IGNORECASE,
)
#: The same in a unit of work, where a transaction after a rollback is no longer the unit's either.
_ENDS: Final = re.compile(
    rf"{_BEGINS}(?:(?:COMMIT|END)\b|PREPARE(?:\s+TRANSACTION\b|\s*(?:--|/\*))"
    r"|(?:ROLLBACK|ABORT)\b(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b))",
    re.IGNORECASE,
)
#: A statement that commits nothing, even in autocommit: it runs neither a user's SQL nor a function of a user.
_HARMLESS: Final = re.compile(
    r"\s*(?:(?:SET|RESET|SHOW|LISTEN|UNLISTEN|BEGIN|START|FETCH|MOVE|CLOSE|DEALLOCATE|DISCARD)\b[^;]*"
    r"|(?:ROLLBACK|ABORT)(?:\s+(?:WORK|TRANSACTION))?)\s*;?\s*",
    re.IGNORECASE,
)


def commits(text: str) -> bool:
    """Return whether *text*, sent in a transaction, may commit: that transaction, or the statements after its end."""
    return _COMMITS.search(text) is not None


def doubt_of_text(text: str | None) -> str:
    """Return the doubt about a statement in a transaction; None is one that cannot be found."""
    if text is not None and not commits(text):
        return NO_DOUBT
    return DURING_COMMIT if text is not None and re.match(r"\s*(?:COMMIT|END)\b", text, re.IGNORECASE) else MAY_COMMIT


def ends_transaction(text: str) -> bool:
    """Return whether *text* may end the transaction in which it is sent."""
    # The search takes 0.1 µs for each character, and inserts of many rows are long. It is written out because it runs
    # for every statement in a unit of work.
    small = text.lower()
    may = "commit" in small or "end" in small or "prepare" in small or "rollback" in small or "abort" in small
    return may and _ENDS.search(text) is not None


def is_harmless(text: str) -> bool:
    """Return whether *text* commits nothing, even in autocommit."""
    return _HARMLESS.fullmatch(text) is not None

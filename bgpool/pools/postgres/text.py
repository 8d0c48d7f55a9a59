"""What a statement's text says of what it may commit, for every PostgreSQL driver."""

from __future__ import annotations

import re
from typing import Final

from bgpool.pools.doubt import DURING_COMMIT, MAY_COMMIT, NO_DOUBT

__all__ = ["commits", "doubt_of_text", "ends_transaction", "is_harmless"]

#: Where a statement may begin: first of all, behind another one, or behind a comment; blanks and comments of one line.
_BEGINS: Final = r"(?:\A|;|\*/)(?:\s|--[^\n\r]*[\n\r])*"
#: A statement, or one of several, that commits; or that rolls back, with more behind it, which then commits by itself.
#: What only looks like one, in a string or behind a comment, counts as one.
_COMMITS: Final = re.compile(
    rf"{_BEGINS}(?:(?:COMMIT|END)\b|PREPARE(?:\s+TRANSACTION\b|\s*(?:--|/\*))|(?:ROLLBACK|ABORT)\b[^;]*;\s*\S)",
    re.IGNORECASE,
)
#: The same in a unit of work, where also the transaction that was rolled back is not the unit's any more.
_ENDS: Final = re.compile(
    rf"{_BEGINS}(?:(?:COMMIT|END)\b|PREPARE(?:\s+TRANSACTION\b|\s*(?:--|/\*))"
    r"|(?:ROLLBACK|ABORT)\b(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b))",
    re.IGNORECASE,
)
#: A statement that commits nothing, also in autocommit: it runs neither a user's SQL nor a function of a user's.
_HARMLESS: Final = re.compile(
    r"\s*(?:(?:SET|RESET|SHOW|LISTEN|UNLISTEN|BEGIN|START|FETCH|MOVE|CLOSE|DEALLOCATE|DISCARD)\b[^;]*"
    r"|(?:ROLLBACK|ABORT)(?:\s+(?:WORK|TRANSACTION))?)\s*;?\s*",
    re.IGNORECASE,
)


def commits(text: str) -> bool:
    """Whether *text*, sent in a transaction, may commit: that transaction, or what comes behind its end."""
    return _COMMITS.search(text) is not None


def doubt_of_text(text: str | None) -> str:
    """The doubt about a statement in a transaction; None is one that cannot be found."""
    if text is not None and not commits(text):
        return NO_DOUBT
    return DURING_COMMIT if text is not None and re.match(r"\s*(?:COMMIT|END)\b", text, re.IGNORECASE) else MAY_COMMIT


def ends_transaction(text: str) -> bool:
    """Whether *text* may end the transaction that it is sent in."""
    # The search takes 0.1 µs for each character, and inserts of many rows are long. Written out: asked of every
    # statement in a unit of work.
    small = text.lower()
    may = "commit" in small or "end" in small or "prepare" in small or "rollback" in small or "abort" in small
    return may and _ENDS.search(text) is not None


def is_harmless(text: str) -> bool:
    """Whether *text* commits nothing, also in autocommit."""
    return _HARMLESS.fullmatch(text) is not None

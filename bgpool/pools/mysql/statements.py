"""What a MySQL statement may do to a transaction, judged by its text.

Nothing here knows a connection: callers say what the server has said of it, and in which mode it is.
"""

from __future__ import annotations

import re
from typing import Final

from bgpool.pools.doubt import DURING_COMMIT, IN_AUTOCOMMIT, MAY_COMMIT, NO_DOUBT

__all__ = ["beginning", "doubt_of", "ends_nothing_else", "ends_transaction", "first_words", "is_plain", "may_end"]

#: Statements that commit nothing, neither themselves nor what was open before. Any other one may have: DDL commits
#: what is open, procedures do what they like, and what is not known errs on the side of "unknown", which is never run
#: again by mistake.
_NEVER_COMMITS: Final = frozenset(
    {b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"REPLACE", b"WITH", b"SHOW", b"EXPLAIN", b"SAVEPOINT", b"RELEASE",
     b"ROLLBACK"}
)  # fmt: skip
#: What ends a transaction, or begins one, which ends the one before.
_ENDS_TRANSACTION: Final = frozenset({b"COMMIT", b"ROLLBACK", b"BEGIN", b"START"})
#: Of these, what is nothing new on a connection that may only end what it has begun.
_ENDS: Final = frozenset({b"COMMIT", b"ROLLBACK"})
#: After blanks, parentheses and comments; those that servers execute (/*! */) are none.
_FIRST_WORDS: Final = re.compile(
    rb"(?:\s|\(|#[^\n]*\n|--\s[^\n]*\n|/\*(?![!M]).*?\*/)*([A-Za-z]+)(?:\s+WORK)?(?:\s+(TO)\b)?",
    re.DOTALL | re.IGNORECASE,
)
#: What commits nothing either if it is one statement, beside those: temporary tables, and settings but these.
_KEEPS_TRANSACTION: Final = re.compile(
    rb"\s*(?:(?:CREATE|DROP)\s+TEMPORARY\s|(?:USE|DO|DESC|DESCRIBE|TABLE|VALUES)\b"
    rb"|SET\s(?!.*(?:AUTOCOMMIT|PASSWORD|STATEMENT|ROLE)))",
    re.DOTALL | re.IGNORECASE,
)
#: As much of a statement as is looked at.
_BEGINNING: Final = 256


def beginning(sql: str | bytes, encoding: str) -> bytes:
    """As much of the text *sql* as the functions below look at."""
    return sql[:_BEGINNING].encode(encoding, "replace") if isinstance(sql, str) else sql[:_BEGINNING]


def first_words(statement: bytes) -> tuple[bytes, bool]:
    """The first word of a statement, in capitals, and whether it goes TO a savepoint."""
    found = _FIRST_WORDS.match(statement)
    return (found[1].upper(), found[2] is not None) if found is not None else (b"", False)


def ends_transaction(word: bytes) -> bool:
    """Whether a statement with the first word *word* ends a transaction, or begins one, which ends the one before."""
    return word in _ENDS_TRANSACTION


def ends_nothing_else(word: bytes) -> bool:
    """Whether a statement with the first word *word* may only end what was begun, and begins nothing."""
    return word in _ENDS


def may_end(statement: bytes, sql: str | bytes, *, multi: bool) -> bool:
    """Whether *sql* may commit the transaction that is open, be it in the middle of a procedure.

    Args:
        statement: The beginning of *sql*.
        sql: The whole text.
        multi: The connection takes several statements in one text.
    """
    if multi and (";" in sql if isinstance(sql, str) else b";" in sql):
        return True
    is_whole = len(statement) < _BEGINNING
    return first_words(statement)[0] not in _NEVER_COMMITS and not (is_whole and _KEEPS_TRANSACTION.match(statement))


def is_plain(statement: bytes, *, multi: bool) -> bool:
    """Whether *statement* neither commits anything nor begins what outlasts it, if it is in autocommit."""
    # One of many may do anything; which of them was the last to be done nobody knows.
    return not multi and first_words(statement)[0] in _NEVER_COMMITS


def doubt_of(statement: bytes, *, in_transaction: bool, autocommit: bool, multi: bool) -> str:
    """Why *statement*, cut, may have taken effect for good; NO_DOUBT if it cannot have.

    Args:
        statement: The beginning of what was sent.
        in_transaction: A transaction was surely open.
        autocommit: Without one, each statement commits by itself.
        multi: The connection takes several statements in one text.
    """
    if first_words(statement)[0] == b"COMMIT":
        return DURING_COMMIT
    if not in_transaction and autocommit:
        return IN_AUTOCOMMIT
    return NO_DOUBT if is_plain(statement, multi=multi) else MAY_COMMIT

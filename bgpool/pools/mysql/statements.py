"""The possible effect of a MySQL statement on a transaction, judged by its text.

This module knows no connection: the caller provides the rules for reading the text, and the status that the server has
reported. A statement that is not recognized may do anything: if a statement were wrongly reported as not committed, it
would run twice.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from bgpool.pools.doubt import DURING_COMMIT, IN_AUTOCOMMIT, MAY_COMMIT, NO_DOUBT, XA_PREPARED
from bgpool.pools.mysql.expressions import Text, clean, only_reads

__all__ = [
    "Effect",
    "beginning",
    "commits_first",
    "doubt_of",
    "ends_nothing_else",
    "ends_transaction",
    "first_words",
    "is_ordinary",
    "judge",
    "may_end",
    "may_write",
    "starts_over",
]


class Effect(IntEnum):
    """The possible effect of a statement, from the smallest to the largest."""

    NOTHING = 0
    """It commits nothing, and writes nothing that outlives the session."""
    WRITES = 1
    """It writes, in the open transaction; without one, in autocommit, it commits its writes."""
    ENDS = 2
    """It commits the open transaction, or begins one; if none is open, it commits nothing."""
    COMMIT = 3
    """COMMIT, or XA COMMIT in one phase."""
    TWO_PHASE = 4
    """It prepares an XA transaction, or ends a prepared one, which outlives the connection."""
    ANYTHING = 5
    """Anything: DDL, a procedure, several statements, or a statement that is not recognized."""


#: Statements with these first words never commit, if they are one statement.
_NEVER_COMMITS: Final = frozenset(
    {b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"REPLACE", b"WITH", b"SHOW", b"EXPLAIN", b"SAVEPOINT", b"ROLLBACK"}
)
_WRITES: Final = frozenset({b"INSERT", b"UPDATE", b"DELETE", b"REPLACE"})
#: The beginnings of most statements that never commit.
_ORDINARY: Final = (b"INSERT ", b"SELECT ", b"UPDATE ", b"DELETE ")
_ORDINARY_BYTES: Final = 7
#: The first words of statements that end a transaction, or begin one, which ends the one before.
_ENDS_TRANSACTION: Final = frozenset({b"COMMIT", b"ROLLBACK", b"BEGIN", b"START"})
#: The subset of these that may be sent on a connection that may only end what it has begun.
_ENDS: Final = frozenset({b"COMMIT", b"ROLLBACK"})
#: The first words of statements that commit the open transaction before anything else, even if they fail then. Source:
#: "Statements That Cause an Implicit Commit" of MySQL's manual, and MariaDB's page on them.
_COMMITS_FIRST: Final = frozenset(
    {b"ALTER", b"ANALYZE", b"CACHE", b"CHANGE", b"CHECK", b"CREATE", b"DROP", b"FLUSH", b"GRANT", b"INSTALL", b"LOCK",
     b"OPTIMIZE", b"RENAME", b"REPAIR", b"RESET", b"REVOKE", b"TRUNCATE", b"UNINSTALL"}
)  # fmt: skip
#: Statements that begin a transaction, or end an XA transaction. Other XA statements, such as XA RECOVER, may concern
#: other transactions. MariaDB's BEGIN NOT ATOMIC is a block of statements.
_STARTS_OVER: Final = re.compile(
    rb"BEGIN\b(?!\s+NOT\b)|START\s+TRANSACTION\b|XA\s+(?:START|BEGIN|END|ROLLBACK)\b", re.IGNORECASE
)
#: The first words after blanks, parentheses and comments; comments that servers execute (/*! */) do not count as
#: comments.
_FIRST_WORDS: Final = re.compile(
    rb"(?:\s|\(|#[^\n]*\n|--(?=\s)[^\n]*\n|/\*(?![!M])(?:[^*]|\*(?!/))*\*/)*([A-Za-z]+)(?:\s+WORK)?(?:\s+(TO)\b)?",
    re.DOTALL | re.IGNORECASE,
)
#: The part of a statement that is examined, in bytes: enough for a long list of keys. The connection stores this much
#: of the last statement. A longer SELECT counts as one that writes; a longer text of several statements may do
#: anything.
_BEGINNING: Final = 64 * 1024


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII | re.IGNORECASE | re.DOTALL)


_SCOPE: Final = r"(?:(?:SESSION|LOCAL)\s+|@@(?:(?:SESSION|LOCAL)\s*\.\s*)?)?"
_AUTOCOMMIT: Final = rf"SET\s+{_SCOPE}AUTOCOMMIT\s*:?=\s*"
#: The effect of one statement by the form of its cleaned text; the first match counts. Each commits, or does not, as
#: found on MySQL 9.7, MariaDB 10.11 and 11.8: a test runs them there.
_FORMS: Final = tuple(
    (_form(pattern), effect)
    for pattern, effect in (
        (r"(?:INSERT|UPDATE|DELETE|REPLACE)\b", Effect.WRITES),
        # It would commit for a table of the engine NDB, which neither RDS nor Aurora has.
        (r"LOAD\s+(?:DATA|XML)\b", Effect.WRITES),
        # A temporary sequence is different: it commits.
        (r"CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY\s+TABLE\b", Effect.WRITES),
        (r"DROP\s+TEMPORARY\s+TABLE\b", Effect.NOTHING),
        (r"(?:SAVEPOINT|RELEASE\s+SAVEPOINT|ROLLBACK)\b", Effect.NOTHING),
        (r"(?:DEALLOCATE|DROP)\s+PREPARE\b", Effect.NOTHING),
        (rf"{_AUTOCOMMIT}(?:0|OFF|FALSE)\s*\Z", Effect.NOTHING),
        (rf"{_AUTOCOMMIT}(?:1|ON|TRUE|DEFAULT)\s*\Z", Effect.ENDS),
        (r"(?:BEGIN(?:\s+WORK)?|UNLOCK\s+TABLES?)\s*\Z", Effect.ENDS),
        (r"(?:START\s+TRANSACTION|LOCK\s+TABLES?)\b", Effect.ENDS),
        (r"XA\s+(?:START|BEGIN)\b", Effect.ENDS),
        (r"XA\s+(?:END|RECOVER)\b", Effect.NOTHING),
        (r"XA\s+COMMIT\b.*\bONE\s+PHASE\s*\Z", Effect.COMMIT),
        (r"XA\s+(?:PREPARE|COMMIT|ROLLBACK)\b", Effect.TWO_PHASE),
        (r"COMMIT\b", Effect.COMMIT),
    )
)
#: Statements that evaluate expressions and do nothing else.
_READS: Final = _form(
    r"(?:SELECT|WITH|TABLE|VALUES|SHOW|EXPLAIN|DESC|DESCRIBE|DO|USE|PREPARE|HANDLER|HELP|SIGNAL)\b"
    r"|CHECKSUM\s+TABLE\b|GET\s+(?:CURRENT\s+|STACKED\s+)?DIAGNOSTICS\b"
    r"|SET\s+(?:NAMES\b|CHARACTER\s+SET\b|CHARSET\b|ROLE\b|(?:(?:SESSION|LOCAL)\s+)?TRANSACTION\b"
    rf"|(?:{_SCOPE}|@)[\w$.?]+\s*:?=)"
)
#: A SET with one of these is different: other sessions see it, or it commits. Reading a global value is harmless.
_NOT_SESSIONS: Final = _form(r".*?(?:\bPASSWORD|(?<!=@@)(?<!= @@)\b(?:GLOBAL|PERSIST(?:_ONLY)?))\b")
#: Among several statements these determine the effect of those after them.
_DECIDES: Final = _form(r"ROLLBACK\b(?!\s+(?:WORK\s+)?TO\b)|SET\b.*AUTOCOMMIT")


def beginning(sql: str | bytes, encoding: str) -> bytes:
    """Return the part of the text *sql* that the functions below examine."""
    return sql[:_BEGINNING].encode(encoding, "replace") if isinstance(sql, str) else sql[:_BEGINNING]


def is_ordinary(statement: bytes | bytearray) -> bool:
    """Return whether the first bytes show that *statement* (if it is one) ends no transaction; many others do not."""
    # PyMySQL's executemany() sends a bytearray, which cannot be looked up in a set.
    return statement[:_ORDINARY_BYTES].upper().startswith(_ORDINARY)


def first_words(statement: bytes) -> tuple[bytes, bool]:
    """Return the first word of a statement, in capitals, and whether it goes TO a savepoint."""
    found = _FIRST_WORDS.match(statement)
    return (found[1].upper(), found[2] is not None) if found is not None else (b"", False)


def starts_over(statement: bytes) -> bool:
    """Return whether *statement* begins a transaction, or ends an XA transaction."""
    found = _FIRST_WORDS.match(statement)
    return found is not None and _STARTS_OVER.match(statement, found.start(1)) is not None


def commits_first(statement: bytes, text: Text) -> bool:
    """Return whether *statement* commits the open transaction before anything else, as DDL does.

    Args:
        statement: The result of `beginning`.
        text: The rules for reading it.
    """
    is_ddl = not text.many and first_words(statement)[0] in _COMMITS_FIRST
    return is_ddl and judge(statement, text) > Effect.WRITES


def ends_transaction(word: bytes) -> bool:
    """Return whether a statement with the first word *word* ends a transaction, or begins one, which ends the last."""
    return word in _ENDS_TRANSACTION


def ends_nothing_else(word: bytes) -> bool:
    """Return whether a statement with the first word *word* may only end what was begun, and begins nothing."""
    return word in _ENDS


def may_end(statement: bytes, text: Text, word: bytes | None = None) -> bool:
    """Return whether *statement* may commit the open transaction, even from within a procedure.

    Args:
        statement: The result of `beginning`.
        text: The rules for reading it.
        word: Its first word, if the caller knows it.
    """
    is_one = not text.many or (b";" not in statement and len(statement) < _BEGINNING)
    if is_one and (first_words(statement)[0] if word is None else word) in _NEVER_COMMITS:
        return False
    return judge(statement, text) > Effect.WRITES


def may_write(statement: bytes, text: Text) -> bool:
    """Return whether *statement* may write data that outlives the session; for most, the first word shows it."""
    return first_words(statement)[0] in _WRITES or judge(statement, text) is not Effect.NOTHING


def judge(statement: bytes, text: Text) -> Effect:
    """Return the possible effect of *statement*, or of all of several.

    Args:
        statement: The result of `beginning`.
        text: The rules for reading it.
    """
    is_whole = len(statement) < _BEGINNING
    cleaned = clean(statement, text)
    if not (is_whole and cleaned.is_clear):
        alone = not text.many and first_words(statement)[0] in _NEVER_COMMITS
        return Effect.WRITES if alone else Effect.ANYTHING
    parts = [part for part in (part.strip().lstrip("( \t\n\r\f\v") for part in cleaned.sql.split(";")) if part]
    effects = [_judge_one(part, cleaned.raw) for part in parts]
    if len(parts) > 1 and (max(effects) > Effect.WRITES or any(map(_DECIDES.match, parts))):
        return Effect.ANYTHING
    return max(effects, default=Effect.NOTHING)


def _judge_one(statement: str, raw: str) -> Effect:
    """Return the possible effect of the one cleaned *statement*; *raw* is the text before cleaning."""
    for form, effect in _FORMS:
        if form.match(statement):
            return effect
    if not _READS.match(statement):
        return Effect.ANYTHING
    # The name of a variable may be quoted, a keyword may not.
    if statement[:3].upper() == "SET" and (_NOT_SESSIONS.match(statement) or "autocommit" in raw.lower()):
        return Effect.ANYTHING
    return Effect.NOTHING if only_reads(statement) else Effect.WRITES


def doubt_of(effect: Effect, *, surely_open: bool, may_be_open: bool, autocommit: bool) -> str:
    """Return the reason for which a statement that was sent and cut may have taken effect; NO_DOUBT if it cannot have.

    Args:
        effect: Its possible effect.
        surely_open: The server has reported that a transaction is open.
        may_be_open: It has, or one may have been begun since it reported that none is.
        autocommit: Without a transaction, each statement commits by itself.
    """
    if effect is Effect.NOTHING:
        return NO_DOUBT
    if effect is Effect.TWO_PHASE:
        return XA_PREPARED
    if effect is Effect.COMMIT:
        return DURING_COMMIT if may_be_open else NO_DOUBT
    if effect is Effect.ENDS:
        return MAY_COMMIT if may_be_open else NO_DOUBT
    if autocommit and not surely_open:
        return IN_AUTOCOMMIT
    return NO_DOUBT if effect is Effect.WRITES else MAY_COMMIT

"""Check if the text of a MySQL statement can call a function that writes: a stored or loaded one."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["FUNCTIONS", "RESERVED", "Cleaned", "Text", "clean", "only_reads"]


class Text(NamedTuple):
    """The rules by which a connection's statements must be read."""

    encoding: str
    """Python's name for the character set."""
    many: bool
    """Several statements may be in one text (``CLIENT.MULTI_STATEMENTS``)."""
    backslash: bool
    """A backslash escapes the next character of a string: the SQL mode has no NO_BACKSLASH_ESCAPES."""


class Cleaned(NamedTuple):
    """A text with each quoted part replaced by ``?``, and each comment by a blank."""

    sql: str
    raw: str
    is_clear: bool
    """True if no part could be read in two ways, and servers execute no part of a comment (``/*! */``)."""


# The meaning of a backslash in double quotes depends on ANSI_QUOTES, too. Such a string is left as it is, so the text
# counts as unclear.
_REST: Final = r"""|"[^"\\]*"|`[^`]*`|(\#[^\n]*|--(?=\s|\Z)[^\n]*|/\*(?!!|M!).*?(?:\*/|\Z))"""
_QUOTED: Final = {
    True: re.compile(r"'(?:[^'\\]|\\.)*'" + _REST, re.DOTALL | re.ASCII),
    False: re.compile(r"'[^']*'" + _REST, re.DOTALL | re.ASCII),
}
# After --, a server also accepts control characters, and blanks of its character set beyond ASCII, as a blank.
_UNCLEAR: Final = re.compile(r"""['"`\\]|/\*|--[^ -~]""")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words before a parenthesis that are no call, with or without a blank between.
RESERVED: Final = _words("""
    ALL AND AS BETWEEN BINARY BY CASE CHAR CROSS DECIMAL DISTINCT DIV ELSE EXCEPT EXISTS FROM HAVING IN INDEX INTERSECT
    INTERVAL JOIN KEY LIKE NOT NUMERIC ON OR OVER PARTITION REGEXP RLIKE SELECT THEN UNION USING VALUES VARCHAR WHEN
    WHERE XOR
""")
#: The servers' own functions; a stored function of the same name needs its schema, or a blank, before the parenthesis.
#: A test checks each against a server. None of them writes; locks end with the session.
FUNCTIONS: Final = _words("""
    ABS ACOS ADDDATE ADDTIME ASCII ASIN ATAN AVG BIN BIT_AND BIT_COUNT BIT_LENGTH BIT_OR BIT_XOR CAST CEIL CEILING
    CHARACTER_LENGTH CHAR_LENGTH COALESCE CONCAT CONCAT_WS CONNECTION_ID CONV CONVERT CONVERT_TZ COS COUNT CRC32
    CURDATE CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER CURTIME DATABASE DATE DATEDIFF DATE_ADD
    DATE_FORMAT DATE_SUB DAY DAYNAME DAYOFMONTH DAYOFWEEK DAYOFYEAR DEGREES DENSE_RANK ELT EXP EXPORT_SET EXTRACT FIELD
    FIND_IN_SET FIRST_VALUE FLOOR FORMAT FOUND_ROWS FROM_BASE64 FROM_DAYS FROM_UNIXTIME GET_LOCK GREATEST GROUP_CONCAT
    HEX HOUR IF IFNULL INET6_ATON INET6_NTOA INET_ATON INET_NTOA INSTR ISNULL IS_FREE_LOCK IS_USED_LOCK JSON_ARRAY
    JSON_ARRAYAGG JSON_ARRAY_APPEND JSON_CONTAINS JSON_CONTAINS_PATH JSON_DEPTH JSON_EXTRACT JSON_INSERT JSON_KEYS
    JSON_LENGTH JSON_MERGE_PATCH JSON_MERGE_PRESERVE JSON_OBJECT JSON_OBJECTAGG JSON_QUOTE JSON_REMOVE JSON_REPLACE
    JSON_SEARCH JSON_SET JSON_TYPE JSON_UNQUOTE JSON_VALID JSON_VALUE LAG LAST_DAY LAST_INSERT_ID LAST_VALUE LCASE LEAD
    LEAST LEFT LENGTH LN LOCALTIME LOCALTIMESTAMP LOCATE LOG LOG10 LOG2 LOWER LPAD LTRIM MAKEDATE MAKETIME MAX
    MICROSECOND MID MIN MINUTE MOD MONTH MONTHNAME NOW NTH_VALUE NTILE NULLIF OCT OCTET_LENGTH ORD PERIOD_ADD
    PERIOD_DIFF PI POSITION POW POWER QUARTER QUOTE RADIANS RAND RANK REGEXP_INSTR REGEXP_REPLACE REGEXP_SUBSTR
    RELEASE_LOCK REPEAT REPLACE REVERSE RIGHT ROUND ROW ROW_COUNT ROW_NUMBER RPAD RTRIM SCHEMA SECOND SEC_TO_TIME
    SESSION_USER SHA2 SIGN SIN SLEEP SOUNDEX SPACE SQRT STD STDDEV STDDEV_POP STDDEV_SAMP STRCMP STR_TO_DATE
    SUBDATE SUBSTR SUBSTRING SUBSTRING_INDEX SUBTIME SUM SYSDATE SYSTEM_USER TAN TIME TIMEDIFF TIMESTAMP TIMESTAMPADD
    TIMESTAMPDIFF TIME_FORMAT TIME_TO_SEC TO_BASE64 TO_DAYS TRIM TRUNCATE UCASE UNHEX UNIX_TIMESTAMP UPPER USER
    UTC_DATE UTC_TIME UTC_TIMESTAMP UUID UUID_SHORT VARIANCE VAR_POP VAR_SAMP VERSION WEEK WEEKDAY WEEKOFYEAR YEAR
    YEARWEEK
""")
#: Blanks, a word, or another character.
_TOKENS: Final = re.compile(r"\s+|[\w$]+|[^\s\w$]", re.ASCII)
#: Characters before a parenthesis that is no call's. A quoted name, a dot or a letter beyond ASCII may be a call's.
_SIGNS: Final = frozenset("(),=<>!+-*/%|&^~:")
#: With one of these a statement that reads may write: a file, a sequence, the statement that it explains, or the one
#: after WITH.
_WRITES: Final = re.compile(
    r"\b(?:OUTFILE|DUMPFILE|NEXT\s+VALUE|NEXTVAL|ANALYZE|INSERT|DELETE|(?<!FOR )UPDATE)\b", re.ASCII | re.IGNORECASE
)


def clean(statement: bytes, text: Text) -> Cleaned:
    """Return *statement* without its quoted parts and comments."""
    raw = statement.decode(text.encoding, "replace")
    sql = _QUOTED[text.backslash].sub(lambda found: " " if found[1] else "?", raw)
    return Cleaned(sql, raw, _UNCLEAR.search(sql) is None)


def only_reads(sql: str) -> bool:
    """Return whether *sql*, a cleaned statement that reads, calls only the server's own functions.

    A view may call a function that writes, but it looks like a table and counts as one.
    """
    return _WRITES.search(sql) is None and not _calls(sql)


def _calls(sql: str) -> bool:
    """Return whether a parenthesis in *sql* may call another function. The time is linear in the length."""
    before, last, blank = "", "(", False
    for token in _TOKENS.findall(sql):
        if token == "(" and last not in _SIGNS:
            word = last.upper()
            own = word in RESERVED or (word in FUNCTIONS and not blank)
            if before == "." or not own:
                return True
        blank = token.isspace()
        if not blank:
            before, last = last, token
    return False

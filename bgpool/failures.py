"""Evaluation of errors of both drivers: their text in one line, and whether the server refused the login."""

from __future__ import annotations

import re
import ssl
from typing import Final

import psycopg
import pymysql
from psycopg.pq import ConnStatus
from pymysql.constants import CR

from bgpool.mysql import CUT_CODES, code_of

__all__ = ["first_line", "login_was_refused", "server_refused", "sqlstate_of", "tls_was_refused"]

#: Errors whose text is about the server. PyMySQL raises RuntimeError if it needs the package cryptography, and Python
#: raises it if it cannot start a thread.
_SPEAKING: Final = (psycopg.Error, pymysql.Error, OSError, RuntimeError)

#: MySQL's ER_ACCESS_DENIED_ERROR, and ER_ACCESS_DENIED_NO_PASSWORD_ERROR of both servers.
_REFUSED_CODES: Final = frozenset({1045, 1698})
#: The class of SQLSTATEs of a refused login. asyncpg reports them; libpq does not.
_REFUSED_CLASS: Final = "28"
#: PyMySQL's codes for a server that was not reached, and 0 for an error that is not its own.
_UNREACHED_CODES: Final = CUT_CODES | {0, 2002, 2003, 2005}
#: The server lacks a connection, memory or a thread for this login: too many connections (1040, per user 1203 and
#: 1226), out of memory (1037, 1041), no thread (1135). Source: mysqld_error.h of both servers.
_FULL_CODES: Final = frozenset({1037, 1040, 1041, 1135, 1203, 1226})
#: The same in libpq's texts, and a server that starts or stops; libpq reports no SQLSTATE of a login. In other
#: languages these errors count as a refusal. Source: PostgreSQL's postmaster.c, proc.c and postinit.c.
_FULL_TEXTS: Final = re.compile("too many clients|connection slots|too many connections for|the database system is")


def first_line(error: BaseException) -> str:
    """Return *error* in one line; only its class if its text might quote a secret."""
    kind = type(error).__name__
    if not isinstance(error, _SPEAKING) and not sqlstate_of(error):
        return kind
    text = str(error)
    if isinstance(error, pymysql.Error) and len(error.args) == 2:
        kind, text = f"{kind} {error.args[0]}", str(error.args[1])
    return f"{kind}: {text.strip().partition(chr(10))[0]}"


def sqlstate_of(error: BaseException) -> str:
    """Return the SQLSTATE of *error* of any PostgreSQL driver; empty if it has none."""
    found = getattr(error, "sqlstate", None)
    return found if isinstance(found, str) else ""


def login_was_refused(error: BaseException) -> bool:
    """Return whether *error* ended a login after the password was sent, or because there was no password to send.

    libpq reports no SQLSTATE of a failed connection, and the server's text may be in any language. So on PostgreSQL
    other failures after the password was sent (no such database, no connection left) count as well.
    """
    if code_of(error) in _REFUSED_CODES or sqlstate_of(error).startswith(_REFUSED_CLASS):
        return True
    failed = error.pgconn if isinstance(error, psycopg.Error) else None
    return failed is not None and failed.status == ConnStatus.BAD and (failed.used_password or failed.needs_password)


def server_refused(error: BaseException) -> bool:
    """Return whether *error* ended a login at a server that was reached, for a reason that is not temporary.

    A server without a free connection, or one that is starting, has not refused the login. If a server asks for no
    password, libpq reports only a text, which may be in another language than English.
    """
    if tls_was_refused(error):
        return True
    if isinstance(error, pymysql.Error) and code_of(error):
        return code_of(error) not in _UNREACHED_CODES | _FULL_CODES
    if isinstance(error, psycopg.OperationalError) and _FULL_TEXTS.search(str(error)):
        return False
    return login_was_refused(error) or (isinstance(error, psycopg.OperationalError) and "FATAL:" in str(error))


def tls_was_refused(error: BaseException) -> bool:
    """Return whether a login failed because of TLS, most often because of a refused certificate."""
    if isinstance(error, pymysql.Error) and code_of(error):
        # PyMySQL has a code only for a server without TLS. An unexpected end of the stream is no evidence about TLS.
        cause = error.__context__
        disagreed = isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)
        return disagreed or code_of(error) == CR.CR_SSL_CONNECTION_ERROR
    return isinstance(error, psycopg.OperationalError) and "certificate" in str(error)

"""What a driver's error says, of either driver: in one line, and whether the server refused the login."""

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

#: Errors whose text is about the server. RuntimeError is how PyMySQL says that it needs the package cryptography, and
#: how Python says that it cannot start a thread.
_SPEAKING: Final = (psycopg.Error, pymysql.Error, OSError, RuntimeError)

#: MySQL's ER_ACCESS_DENIED_ERROR, and ER_ACCESS_DENIED_NO_PASSWORD_ERROR of both servers.
_REFUSED_CODES: Final = frozenset({1045, 1698})
#: The class of SQLSTATEs for a login that is refused. asyncpg tells them; libpq does not.
_REFUSED_CLASS: Final = "28"
#: PyMySQL's for a server that was not reached, and of an error that is none of its own.
_UNREACHED_CODES: Final = CUT_CODES | {0, 2002, 2003, 2005}
#: No connection, memory or thread is left for this login: too many connections (1040, of one user 1203 and 1226), out
#: of memory (1037, 1041), no thread (1135). Source: mysqld_error.h of both.
_FULL_CODES: Final = frozenset({1037, 1040, 1041, 1135, 1203, 1226})
#: The same in libpq's texts, and a server that starts or stops; it tells no SQLSTATE of a login. In another language
#: they count as a refusal. Source: PostgreSQL's postmaster.c, proc.c and postinit.c.
_FULL_TEXTS: Final = re.compile("too many clients|connection slots|too many connections for|the database system is")


def first_line(error: BaseException) -> str:
    """*error* in one line; of one that might quote anything, a secret included, the kind alone."""
    kind = type(error).__name__
    if not isinstance(error, _SPEAKING) and not sqlstate_of(error):
        return kind
    text = str(error)
    if isinstance(error, pymysql.Error) and len(error.args) == 2:
        kind, text = f"{kind} {error.args[0]}", str(error.args[1])
    return f"{kind}: {text.strip().partition(chr(10))[0]}"


def sqlstate_of(error: BaseException) -> str:
    """The SQLSTATE that *error* of any PostgreSQL driver tells; empty where it tells none."""
    found = getattr(error, "sqlstate", None)
    return found if isinstance(found, str) else ""


def login_was_refused(error: BaseException) -> bool:
    """Whether *error* ended a login after the server was given a password, or because there was none to give.

    libpq tells no SQLSTATE of a connection that failed, and the server's text is in its own language. So on PostgreSQL
    what else fails after the password was sent (no such database, no connection left) counts, too.
    """
    if code_of(error) in _REFUSED_CODES or sqlstate_of(error).startswith(_REFUSED_CLASS):
        return True
    failed = error.pgconn if isinstance(error, psycopg.Error) else None
    return failed is not None and failed.status == ConnStatus.BAD and (failed.used_password or failed.needs_password)


def server_refused(error: BaseException) -> bool:
    """Whether *error* ended a login at a server that was reached, for a reason that does not pass by itself.

    A server that has no connection left, or that is starting, has refused nobody. What libpq tells of a server that
    asks for no password is text alone, which may be in another language than English.
    """
    if tls_was_refused(error):
        return True
    if isinstance(error, pymysql.Error) and code_of(error):
        return code_of(error) not in _UNREACHED_CODES | _FULL_CODES
    if isinstance(error, psycopg.OperationalError) and _FULL_TEXTS.search(str(error)):
        return False
    return login_was_refused(error) or (isinstance(error, psycopg.OperationalError) and "FATAL:" in str(error))


def tls_was_refused(error: BaseException) -> bool:
    """Whether a login ended with *error* because the two could not agree on TLS; a refused certificate most often."""
    if isinstance(error, pymysql.Error) and code_of(error):
        # PyMySQL has a number for a server without TLS only. The end of the stream says nothing of TLS.
        cause = error.__context__
        disagreed = isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)
        return disagreed or code_of(error) == CR.CR_SSL_CONNECTION_ERROR
    return isinstance(error, psycopg.OperationalError) and "certificate" in str(error)

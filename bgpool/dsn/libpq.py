"""Checks that libpq and psycopg would make at the first checkout, made when the pool is created."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import psycopg
from psycopg import conninfo, pq

from bgpool.dsn.dsn import shown
from bgpool.errors import ConfigurationError

__all__ = ["check_keywords", "check_values", "unknown_in_query"]

#: The path of a socket that never exists: libpq validates every value before it tries to connect.
_NOWHERE: Final = "/dev/null/bgpool"
#: libpq reads these only when it connects over TCP.
_NUMBERS: Final = ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
_SSLMODES: Final = "disable, allow, prefer, require, verify-ca or verify-full is allowed"


def _is_threshold(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


#: psycopg's own keywords of connect(): the allowed values, as a text and as a test.
_PSYCOPG: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "autocommit": ("True or False", lambda value: isinstance(value, bool)),
    "prepare_threshold": ("a whole number from 0, or None,", _is_threshold),
    "row_factory": ("a function, or None,", lambda value: value is None or callable(value)),
    "cursor_factory": ("a class of cursors, or None,", lambda value: value is None or callable(value)),
    "context": ("an object with adapters, or None,", lambda value: value is None or hasattr(value, "adapters")),
}


def check_keywords(static: Mapping[str, Any], known: Collection[str], connection_class: object) -> None:
    """Check the names in kwargs, and the values of psycopg's own keywords; *known* are libpq's names.

    A connection class with its own ``connect`` may accept other names.

    Raises:
        ConfigurationError: A name is unknown, or a value is out of range.
    """
    connect = getattr(connection_class, "connect", psycopg.Connection.connect)
    is_psycopgs = getattr(connect, "__func__", None) is psycopg.Connection.connect.__func__  # type: ignore[attr-defined]  # of a class method
    for name, value in static.items():
        if name in _PSYCOPG and is_psycopgs:
            allowed, fits = _PSYCOPG[name]
            if not fits(value):
                raise ConfigurationError(f"kwargs: {name}={value!r}: {allowed} is allowed")
        elif name not in known and is_psycopgs:
            allowed = f"libpq's connection parameters and {', '.join(_PSYCOPG)}"
            raise ConfigurationError(f"kwargs: unknown parameter {name!r}: allowed are {allowed}")


def check_values(params: Mapping[str, Any], secrets: Collection[str], prefix: str = "") -> None:
    """Let libpq validate the values of *params*, except *secrets*, without connecting.

    Raises:
        ConfigurationError: libpq refuses a value.
    """
    for name, value in params.items():
        if "\0" in (text := str(value)) or text != text.encode(errors="replace").decode():
            raise ConfigurationError(f"{prefix}{name}: text in UTF-8 without NUL is allowed")
        if name in _NUMBERS and not text.isdecimal():
            raise ConfigurationError(f"{prefix}{name}={shown(value)}: a whole number from 0 is allowed")
    public = {name: str(value) for name, value in params.items() if name not in secrets}
    # With a password, libpq does not read a password file.
    where = {"host": _NOWHERE, "hostaddr": "", "port": "5432", "password": "-"}
    pgconn = pq.PGconn.connect_start(conninfo.make_conninfo("", **{**public, **where}).encode())
    refusal = pgconn.error_message.decode(errors="replace").strip()
    pgconn.finish()
    if _NOWHERE not in refusal:
        allowed = f"; {_SSLMODES}" if "sslmode" in refusal else ""
        raise ConfigurationError(f"{prefix}dsn: libpq refuses it: {refusal}{allowed}")


def unknown_in_query(url: str, known: Collection[str]) -> str | None:
    """Return a name in the query of *url* that libpq does not know; None if it may be part of a password."""
    base, _, query = url.partition("?")
    if "@" in query:
        return None
    try:
        port = conninfo.conninfo_to_dict(base).get("port")
    except (psycopg.Error, UnicodeError):
        return None
    names = [name for name, equals, _ in (item.partition("=") for item in query.split("&")) if equals]
    readable = port is None or str(port).isdecimal()
    return next((name for name in names if readable and name.isidentifier() and name not in known), None)

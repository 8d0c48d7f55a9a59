"""Readers of the MySQL connection parameters that can be written as text: PyMySQL's, and tcp_user_timeout."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from pymysql.charset import charset_by_name

from bgpool.dsn.dsn import shown
from bgpool.errors import ConfigurationError
from bgpool.settings import read_flag

__all__ = ["READERS", "read_text"]

#: PyMySQL's maximum of a timeout, in seconds: a year.
_YEAR_S: Final = 31_536_000


def read_text(name: str, value: object) -> str:
    """Return *value* as text.

    Raises:
        ConfigurationError: It is not text, or is empty. The text never quotes it: statements and keys may hold secrets.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        what = "an empty one" if text == "" else type(value).__name__
        raise ConfigurationError(f"{name}: a string is allowed, not {what}")
    return text


def _whole(value: object) -> int:
    """Return *value* as a whole number; -1 if it is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _seconds(name: str, value: object) -> int:
    seconds = _whole(value)
    if not 0 < seconds <= _YEAR_S:
        raise ConfigurationError(
            f"{name}={shown(value)}: a whole number of seconds above 0 and up to {_YEAR_S} is allowed; "
            "0 would wait forever"
        )
    return seconds


def _timeout_ms(name: str, value: object) -> int:
    number = _whole(value)
    if not 0 <= number <= 1000 * _YEAR_S:
        raise ConfigurationError(
            f"{name}={shown(value)}: a whole number of ms up to {1000 * _YEAR_S} is allowed; 0 leaves it to the system"
        )
    return number


def _flag(name: str, value: object) -> bool:
    # PyMySQL also accepts 1 and 0.
    return bool(value) if value in (0, 1) else read_flag(name, value)


def _flags(name: str, value: object) -> int:
    number = _whole(value)
    if number < 0:
        raise ConfigurationError(f"{name}={shown(value)}: a sum of pymysql.constants.CLIENT's numbers is allowed")
    return number


def _bytes(name: str, value: object) -> int:
    number = _whole(value)
    if number <= 0:
        raise ConfigurationError(f"{name}={shown(value)}: a whole number of bytes above 0 is allowed")
    return number


def _charset(name: str, value: object) -> str:
    text = read_text(name, value)
    found: object = charset_by_name(text)
    if found is None:
        raise ConfigurationError(f"{name}={value!r}: a character set that PyMySQL knows is allowed, such as utf8mb4")
    return text


def _public_key(name: str, value: object) -> bytes:
    key = value.encode() if isinstance(value, str) else value
    if not isinstance(key, bytes) or not key.lstrip().startswith(b"-----BEGIN "):
        raise ConfigurationError(f"{name}: a public key in the form of PEM is allowed")
    return key


#: By PyMySQL's names; tcp_user_timeout, which PyMySQL lacks, by libpq's name.
READERS: Final[Mapping[str, Callable[[str, object], object]]] = {
    "connect_timeout": _seconds,
    "read_timeout": _seconds,
    "write_timeout": _seconds,
    "tcp_user_timeout": _timeout_ms,
    "charset": _charset,
    "collation": read_text,
    "init_command": read_text,
    "sql_mode": read_text,
    "unix_socket": read_text,
    "bind_address": read_text,
    "autocommit": _flag,
    "local_infile": _flag,
    "use_unicode": _flag,
    "binary_prefix": _flag,
    "client_flag": _flags,
    "max_allowed_packet": _bytes,
    "program_name": read_text,
    "ssl_ca": read_text,
    "ssl_cert": read_text,
    "ssl_key": read_text,
    "ssl_key_password": read_text,
    "ssl_verify_cert": _flag,
    "ssl_verify_identity": _flag,
    "ssl_disabled": _flag,
    "server_public_key": _public_key,
}

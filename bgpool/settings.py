"""The ``bg_`` parameters: parsing, bounds and documentation.

Names, units and defaults are those of the AWS wrapper. They are keywords of get_pool or part of the DSN's query string;
a keyword takes precedence.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import SplitResult, parse_qsl, urlsplit

from bgpool.base_errors import ConfigurationError
from bgpool.core.endpoints import normalise_host, parse_endpoint
from bgpool.core.functions import is_coroutine_function
from bgpool.core.limits import FLEET_KEY_BYTES, FLEET_KEYS
from bgpool.logs import log_fields

__all__ = ["ALWAYS", "DISABLE", "REHEARSAL", "Settings", "is_disabled", "read_flag", "read_keys"]

_logger: Final = logging.getLogger("bgpool.settings")

_DAY_MS: Final = 24 * 60 * 60 * 1000
_YEAR_S: Final = 365 * 24 * 60 * 60

#: Values of bg_receipts.
_SWITCHOVER: Final = "switchover"
ALWAYS: Final = "always"

#: A table's name, optionally with a schema. Only characters that need no quoting, because it is part of statements.
_TABLE: Final = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

#: The environment variable that makes every pool of a process a plain pool.
DISABLE: Final = "BGPOOL_DISABLE"

#: The environment variable that is set in all processes of a rehearsed application: they do not use the fleet's bus.
REHEARSAL: Final = "BGPOOL_REHEARSAL"

#: The environment variables that supply parameters which are not given. An empty one counts as not set.
_VARIABLES: Final[Mapping[str, str]] = {
    "bg_resolver": "BGPOOL_RESOLVER",
    "bg_fleet": "BGPOOL_FLEET",
    "bg_fleet_key": "BGPOOL_FLEET_KEY",
    "bg_fleet_trust": "BGPOOL_FLEET_TRUST",
}

#: The schemes of a bus's URL, and redis-py's scheme for each. A Valkey server has the same protocol.
_BUS_SCHEMES: Final[Mapping[str, str]] = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
}
#: The options in the query of a bus's URL, all of them about TLS, and their values. bgpool sets all other options.
_BUS_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "ssl_ca_certs": (),
    "ssl_ca_path": (),
    "ssl_certfile": (),
    "ssl_keyfile": (),
    "ssl_password": (),
    "ssl_cert_reqs": ("none", "optional", "required"),
    "ssl_check_hostname": ("true", "false"),
}


def _milliseconds(least: int, most: int) -> Callable[[str, object], int]:
    def parse_ms(name: str, value: object) -> int:
        number = value
        if isinstance(value, str) and value.strip().isdecimal():
            number = int(value)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ConfigurationError(f"{name}={value!r}: a whole number of ms from {least} to {most} is allowed")
        return number

    return parse_ms


def read_flag(name: str, value: object) -> bool:
    """Return *value* as a flag: a bool, or one of the words for yes and no.

    Raises:
        ConfigurationError: It is neither. The text has *name*.
    """
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in words:
        raise ConfigurationError(f"{name}={value!r}: true or false is allowed")
    return words[word]


def is_disabled() -> bool:
    """Return whether ``$BGPOOL_DISABLE`` switches bgpool off in this process. Empty counts as not set.

    Raises:
        ConfigurationError: The value is neither a word for yes nor one for no.
    """
    value = os.environ.get(DISABLE, "")
    return bool(value.strip()) and read_flag(f"${DISABLE}", value)


def _bg_id(name: str, value: object) -> str:
    number = value
    if isinstance(number, float) and math.isfinite(number):
        # 1.0 is the same number as 1.
        number = int(number) if number.is_integer() else str(number)
    if isinstance(number, bool) or not isinstance(number, (str, int)) or not str(number).strip():
        raise ConfigurationError(f"{name}={value!r}: a number or a string that is not blank is allowed")
    text = str(number).strip().lower()
    if text != text.encode(errors="replace").decode():
        raise ConfigurationError(f"{name}={value!r}: text that can be written as UTF-8 is allowed")
    if "://" in text and "@" in text:
        # The DSN would appear in logs and file names.
        raise ConfigurationError(f"{name}: the name of a deployment is allowed, not a DSN (it is not repeated here)")
    if len(text) > 200:
        raise ConfigurationError(f"{name}={value!r}: at most 200 characters are allowed")
    return text


def _table(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or _TABLE.fullmatch(value) is None:
        raise ConfigurationError(
            f"{name}={value!r}: the name of a table, or schema.table, of letters, digits and _ is allowed, such as "
            "bgpool_receipts"
        )
    return value


def _receipts(name: str, value: object) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in (_SWITCHOVER, ALWAYS):
        raise ConfigurationError(f"{name}={value!r}: {_SWITCHOVER} or {ALWAYS} is allowed")
    return word


def _retention(name: str, value: object) -> int:
    number = value
    if isinstance(value, str) and value.strip().isdecimal():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not 600 <= number <= _YEAR_S:
        raise ConfigurationError(f"{name}={value!r}: a whole number of seconds from 600 to {_YEAR_S} is allowed")
    return number


def _resolver(name: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if "\0" in text or (text != "system" and not text.startswith(("hosts:", "dns://"))):
        raise ConfigurationError(f"{name}={value!r}: system, hosts:FILE or dns://HOST:PORT is allowed")
    return text


def _endpoint(name: str, value: object) -> str | None:
    if value is None:
        return None
    host = normalise_host(value) if isinstance(value, str) else ""
    if parse_endpoint(host) is None:
        # Show only names: a whole DSN has a password.
        is_safe = not isinstance(value, (str, bytes)) or re.fullmatch(r"[\w.-]+", host, re.ASCII)
        shown = repr(value) if is_safe else f"<{type(value).__name__}>"
        raise ConfigurationError(
            f"{name}={shown}: the name of an RDS or Aurora endpoint is allowed, "
            "such as ledger.c0abc.eu-west-1.rds.amazonaws.com"
        )
    return host


def _directory(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
        raise ConfigurationError(f"{name}={value!r}: the path of a directory is allowed")
    return Path(value).absolute()


def _bus(name: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    wrong = _wrong_with_bus(value)
    if wrong:
        # Show no part of it: in a mistyped URL any part may be the password.
        raise ConfigurationError(
            f"{name}: {wrong}; redis://[USER:PASSWORD@]HOST[:PORT][/DB] is allowed, rediss:// for TLS, valkey:// and "
            f"valkeys:// for the same, and after a ? for TLS: {', '.join(_BUS_OPTIONS)}"
        )
    url = urlsplit(str(value).strip())
    return url._replace(scheme=_BUS_SCHEMES[url.scheme]).geturl()


def _wrong_with_bus(value: object) -> str:
    """Return the reason for which *value* is no valid URL of a bus; empty if it is valid."""
    if not isinstance(value, str):
        return f"a URL is allowed, not {type(value).__name__}"
    text = value.strip()
    if re.search(r"[\x00-\x20\x7f]", text):
        return "blanks and control characters must be percent-encoded, such as %20"
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        return "host or port is invalid; / ? # @ : % in a password must be percent-encoded, such as %2F"
    if url.scheme not in _BUS_SCHEMES:
        return "its scheme is not one of redis, rediss, valkey and valkeys"
    if not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+(?:%\w+)?", host, re.ASCII) or port == 0:
        return "host or port is invalid"
    if url.fragment or "#" in text or not re.fullmatch(r"(?:/\d{0,5})?", url.path, re.ASCII):
        return "the path is not the number of a database; / ? # in a password must be written as %2F %3F %23"
    return _wrong_with_bus_options(url)


def _wrong_with_bus_options(url: SplitResult) -> str:
    options = parse_qsl(url.query, keep_blank_values=True)
    for name, text in options:
        if name not in _BUS_OPTIONS:
            return "its query has an option that is not allowed"
        if text not in (_BUS_OPTIONS[name] or (text,)) or not text:
            words = " or ".join(_BUS_OPTIONS[name]) or "a text that is not empty"
            return f"{name}: {words} is allowed"
    if len({name for name, _ in options}) < len(options):
        return "an option is given twice"
    if options and _BUS_SCHEMES[url.scheme] != "rediss":
        return "options for TLS need rediss:// or valkeys://"
    return ""


def read_keys(name: str, value: object) -> tuple[bytes, ...]:
    """Return *value* as a tuple of keys. The first one signs.

    Args:
        name: The name of the parameter, for error texts.
        value: Text with one key or several separated by commas, where surrounding blanks are ignored; bytes, which are
            a single key; or a sequence of these.

    Raises:
        ConfigurationError: It is none of these, or a key has fewer than FLEET_KEY_BYTES bytes, or there are more than
            FLEET_KEYS. The text never contains a key.
    """
    keys = _keys_in(name, value)
    if not 0 < len(keys) <= FLEET_KEYS:
        raise ConfigurationError(f"{name}: {len(keys)} keys are given; 1 to {FLEET_KEYS} are allowed")
    for number, key in enumerate(keys, 1):
        if len(key) < FLEET_KEY_BYTES:
            which = f"key {number} of {len(keys)}" if len(keys) > 1 else "the key"
            raise ConfigurationError(
                f"{name}: {which} has {len(key)} bytes; at least {FLEET_KEY_BYTES} are allowed, such as the output of "
                "`openssl rand -hex 32`"
            )
    return keys


def _keys_in(name: str, value: object) -> tuple[bytes, ...]:
    if isinstance(value, str):
        try:
            return tuple(key.strip().encode() for key in value.split(",") if key.strip())
        except UnicodeEncodeError:
            # Without the error as the cause, because it contains the text.
            raise ConfigurationError(f"{name}: text that can be written as UTF-8 is allowed") from None
    if isinstance(value, (bytes, bytearray)):
        return (bytes(value),)
    if isinstance(value, Sequence) and not isinstance(value, memoryview):
        return tuple(key for item in value for key in _keys_in(name, item))
    raise ConfigurationError(
        f"{name}: a string, bytes, a sequence of these or a callable () that returns one is allowed, not "
        f"{type(value).__name__}"
    )


def _fleet_key(name: str, value: object) -> tuple[bytes, ...] | Callable[[], object] | None:
    if value is None or value == "":
        return None
    if is_coroutine_function(value):
        raise ConfigurationError(
            f"{name}: a callable () that returns the key is allowed, not a coroutine function: it is called in a "
            "thread, and may block there"
        )
    return value if callable(value) else read_keys(name, value)


def _fleet_password(name: str, value: object) -> Callable[[str, int, str], str] | None:
    if value is None:
        return None
    if not callable(value) or is_coroutine_function(value):
        # Without repr(value), because the value is meant to be a secret.
        kind = "a coroutine function" if callable(value) else type(value).__name__
        raise ConfigurationError(
            f"{name}: a callable (host, port, user) -> str is allowed, not {kind}; put a fixed password into "
            "the URL of bg_fleet"
        )
    return cast(Callable[[str, int, str], str], value)


def _parameter(
    default: Any, parse: Callable[[str, object], Any], usual: tuple[int, int] | None = None, *, secret: bool = False
) -> Any:
    return field(default=default, repr=not secret, metadata={"parse": parse, "usual": usual})


@dataclass(frozen=True, slots=True)
class Settings:
    """All ``bg_`` parameters. docs/parameters.md explains each.

    Attributes:
        bg_id: The id of the Blue/Green Deployment; the same for every connection to it, stripped and lower-cased.
        bg_connect_timeout_ms: The longest hold of a checkout, in ms.
        bg_interval_baseline_ms: The interval of status reads without a deployment, in ms.
        bg_interval_increased_ms: The same with a deployment.
        bg_interval_high_ms: The same during a switchover.
        bg_switchover_timeout_ms: The time after which a switchover counts as completed, in ms.
        bg_suspend_new_blue_connections: True to hold new blue connections in IN_PROGRESS, too.
        bg_drop_blue_connections: True to cut blue connections in use after the drain timeout.
        bg_drain_timeout_ms: The drain timeout: the time for blue connections in use to finish, in ms.
        bg_release_on_blue_dns_update: True if moved DNS alone may end the hold.
        bg_receipts_table: The table for the receipts of units of work; None for no receipts.
        bg_receipts: ``switchover``, to write receipts only during a switchover, or ``always``.
        bg_receipts_retention_s: The time for which receipts are kept, in seconds.
        bg_resolver: ``system``, ``hosts:FILE`` or ``dns://HOST:PORT``; default ``$BGPOOL_RESOLVER``, else system.
        bg_run_dir: The run directory; None for the default of segment/paths.py.
        bg_fleet: The bus over which the monitors of a fleet exchange their readings, as a URL of redis-py; default
            ``$BGPOOL_FLEET``, None for no fleet. Never shown, because it may contain a password.
        bg_fleet_key: The keys that sign messages on the bus, the signing one first, or a callable that returns a value
            for read_keys; default ``$BGPOOL_FLEET_KEY``. Never shown.
        bg_fleet_trust: True to accept unsigned messages on the bus, without a key; default ``$BGPOOL_FLEET_TRUST``.
        bg_fleet_password: A callable that makes the password of each connection to the bus.
        endpoint: The RDS or Aurora endpoint that the DSN's host is an alias of.
    """

    bg_id: str = _parameter("1", _bg_id)
    bg_connect_timeout_ms: int = _parameter(30_000, _milliseconds(0, _DAY_MS))
    bg_interval_baseline_ms: int = _parameter(60_000, _milliseconds(1, _DAY_MS), (1, 900_000))
    bg_interval_increased_ms: int = _parameter(1_000, _milliseconds(1, _DAY_MS), (500, 2_000))
    bg_interval_high_ms: int = _parameter(100, _milliseconds(1, _DAY_MS), (50, 500))
    bg_switchover_timeout_ms: int = _parameter(180_000, _milliseconds(1, _DAY_MS))
    bg_suspend_new_blue_connections: bool = _parameter(False, read_flag)
    bg_drop_blue_connections: bool = _parameter(True, read_flag)
    bg_drain_timeout_ms: int = _parameter(1_000, _milliseconds(0, _DAY_MS))
    bg_release_on_blue_dns_update: bool = _parameter(True, read_flag)
    bg_receipts_table: str | None = _parameter(None, _table)
    bg_receipts: str = _parameter(_SWITCHOVER, _receipts)
    bg_receipts_retention_s: int = _parameter(86_400, _retention)
    bg_resolver: str = _parameter("system", _resolver)
    bg_run_dir: Path | None = _parameter(None, _directory)
    bg_fleet: str | None = _parameter(None, _bus, secret=True)
    bg_fleet_key: tuple[bytes, ...] | Callable[[], object] | None = _parameter(None, _fleet_key, secret=True)
    bg_fleet_trust: bool = _parameter(False, read_flag)
    bg_fleet_password: Callable[[str, int, str], str] | None = _parameter(None, _fleet_password, secret=True)
    endpoint: str | None = _parameter(None, _endpoint)

    @classmethod
    def from_mapping(cls, given: Mapping[str, object]) -> Settings:
        """Return settings from parameters by name.

        Raises:
            ConfigurationError: A name is unknown, or a value is out of range.
        """
        known = {f.name: f for f in fields(cls)}
        for name in given:
            if name not in known:
                raise ConfigurationError(f"unknown parameter {name!r}: allowed are {', '.join(known)}")
        values = {name: known[name].metadata["parse"](name, value) for name, value in given.items()}
        for name, variable in _VARIABLES.items():
            if name not in given and (text := os.environ.get(variable)):
                values[name] = known[name].metadata["parse"](f"${variable}", text)
        for name, value in values.items():
            usual = known[name].metadata["usual"]
            if usual is not None and not usual[0] <= value <= usual[1]:
                text = "%s=%d is outside the usual range of %d to %d ms"
                _logger.warning(text, name, value, *usual, extra=log_fields("unusual_parameter"))
        return cls(**values)

"""PostgreSQL: URLs and connection strings in libpq's format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn

import psycopg
from psycopg import conninfo, pq

from bgpool.core.engine import Engine
from bgpool.core.limits import (
    KEEPALIVE_COUNT,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    MONITOR_CONNECT_TIMEOUT_S,
    MONITOR_STATEMENT_TIMEOUT_S,
)
from bgpool.dsn.dsn import MONITORING_PREFIX, Dsn, RawDsn, check_host, read_port, shown, take_password
from bgpool.dsn.libpq import check_keywords, check_values, unknown_in_query
from bgpool.errors import ConfigurationError

__all__ = ["read"]

#: Parameters that select a node: they could lead a monitoring connection away from the node that it must watch.
_NODE_SELECTION: Final = frozenset({"target_session_attrs", "load_balance_hosts", "hostaddr", "options"})
_DEFAULT_PORT: Final = 5432
_KEEPALIVE: Final = {
    "keepalives_idle": KEEPALIVE_IDLE_S,
    "keepalives_interval": KEEPALIVE_INTERVAL_S,
    "keepalives_count": KEEPALIVE_COUNT,
}


def read(given: RawDsn) -> Dsn:
    """Return the parsed DSN, with parameters by libpq's names.

    Raises:
        ConfigurationError: A part is invalid. The text never contains the password.
    """
    defaults = _defaults()
    overrides = _checked(given.overrides, defaults)
    params = _libpq_params(given.url, defaults)
    options = given.options
    static = options.get("kwargs")
    given_password = options.pop("password", None)
    if isinstance(static, Mapping):
        # None counts as not given, like in psycopg.
        static = {name: value for name, value in static.items() if value is not None or name not in defaults}
        params |= {name: value for name, value in static.items() if name in defaults}
        # In psycopg_pool this password would take precedence over the callable's, and the monitor would use its repr.
        options["kwargs"] = {name: value for name, value in static.items() if name != "password"}
        given_password = static.get("password") if given_password is None else given_password
        check_keywords(static, defaults, options.get("connection_class", psycopg.Connection))
    elif static is not None and not callable(static):
        raise ConfigurationError(
            f"kwargs: a mapping of connection parameters, or a function that returns one, is allowed, "
            f"not {type(static).__name__}"
        )
    password = take_password("password", given_password, params)
    if "service" in params:
        raise ConfigurationError(
            "dsn: service is not read; a host and a port are allowed, or the service in $PGSERVICE"
        )
    _check_place(params)
    _check_connect_timeout(params, "connect_timeout")
    if "connect_timeout" not in params:
        params["connect_timeout"] = defaults["connect_timeout"] or MONITOR_CONNECT_TIMEOUT_S
        _check_connect_timeout(params, "PGCONNECT_TIMEOUT")
    params |= _liveness({**defaults, **params})
    if "user" not in params and defaults["user"]:
        params["user"] = defaults["user"]
    if "sslmode" not in params and "verify-full" in (defaults["sslmode"], _mode_of_root(params)):
        # Set explicitly: if names are verified, bgpool tries a green host under several names.
        params["sslmode"] = "verify-full"
    place = {name: params.get(name) or defaults[name] for name in ("host", "hostaddr", "port")}
    _check_place(place)
    # An address without a name is also where the metadata are read.
    host = str(place["host"] or place["hostaddr"] or "")
    port = read_port(place["port"] or _DEFAULT_PORT)
    monitoring = _monitoring_params(params, overrides)
    check_values(params, _secrets())
    check_values(monitoring, _secrets(), MONITORING_PREFIX)
    own = overrides.get("password")
    monitoring_password = password if own is None else take_password("monitoring password", own, monitoring)
    return Dsn(Engine.POSTGRESQL, host, port, params, monitoring, password, monitoring_password)


def _defaults() -> dict[str, str | None]:
    """Return all parameters that libpq knows, with their defaults: from $PG..., a service, or built in.

    Secrets are omitted; libpq finds them itself.
    """
    return {
        option.keyword.decode(): option.val.decode() if option.val is not None and option.dispchar != b"*" else None
        for option in pq.Conninfo.get_defaults()
    }


def _secrets() -> frozenset[str]:
    """Return the parameters that libpq itself does not show."""
    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.dispchar == b"*")


def _liveness(given: Mapping[str, Any]) -> dict[str, int]:
    """Return the TCP parameters that detect a dead network, unless *given* sets them; Unix sockets ignore them.

    Linux closes a silent connection after tcp_user_timeout, independent of the keepalive count. So it is set to the
    time that the three keepalive parameters amount to.
    """
    keepalive = {name: _whole(given.get(name)) or default for name, default in _KEEPALIVE.items()}
    idle, interval, count = keepalive.values()
    own = {**keepalive, "tcp_user_timeout": 1000 * (idle + interval * count)}
    # libpq before 12 has no tcp_user_timeout.
    return {name: value for name, value in own.items() if name in given and given[name] is None}


def _whole(value: object) -> int:
    """Return *value* as a whole number; 0 if it is none, which libpq will report."""
    text = str(value)
    return int(text) if text.isdecimal() else 0


def _mode_of_root(params: Mapping[str, Any]) -> str | None:
    """Return the sslmode that the root certificates imply: the system's certificates are valid for any server."""
    return "verify-full" if params.get("sslrootcert") == "system" else None


def _libpq_params(url: str, known: Collection[str]) -> dict[str, Any]:
    is_url = "://" in url.partition("=")[0]
    if is_url and "@" in url.partition("://")[2].partition("?")[0].partition("/")[2]:
        # Check this before anything is quoted: what libpq takes for host and port may be the beginning of a password.
        _refuse()
    try:
        params = dict(conninfo.conninfo_to_dict(url))
    except (psycopg.Error, UnicodeError):
        # libpq's own message quotes the string, including the password.
        unknown = unknown_in_query(url, known) if is_url else None
        if unknown is None:
            _refuse()
        raise ConfigurationError(
            f"dsn: unknown parameter {unknown!r}: allowed are libpq's connection parameters and the bg_ parameters; "
            "the pool's options are keywords of get_pool and get_async_pool"
        ) from None
    return params


def _refuse() -> NoReturn:
    raise ConfigurationError(
        "dsn: it cannot be read; postgresql://USER:PASSWORD@HOST:PORT/DBNAME?NAME=VALUE, with / ? @ and % in a part "
        "of it written as %2F %3F %40 and %25, or 'host=HOST port=PORT dbname=DBNAME' is allowed (the text is not "
        "repeated here, it may hold a password)"
    ) from None


def _check_place(params: Mapping[str, Any]) -> None:
    for name in ("host", "hostaddr", "port"):
        check_host(f"dsn: {name}", params.get(name))


def _check_connect_timeout(params: Mapping[str, Any], name: str) -> None:
    if "connect_timeout" not in params:
        return
    value = params["connect_timeout"]
    try:
        seconds = int(str(value))
    except ValueError:
        seconds = 0
    if seconds <= 0:
        raise ConfigurationError(
            f"{name}={shown(value)}: a whole number of seconds above 0 is allowed; 0 would wait forever"
        )


def _checked(overrides: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return *overrides* if libpq knows them and a monitor may have them."""
    for name in overrides:
        if name not in known:
            raise ConfigurationError(f"{MONITORING_PREFIX}{name}: no connection parameter of libpq has that name")
    if "service" in overrides:
        raise ConfigurationError(f"{MONITORING_PREFIX}service: it is not read; the parameters themselves are allowed")
    if "hostaddr" in overrides:
        raise ConfigurationError(f"{MONITORING_PREFIX}hostaddr: the monitor goes to several hosts; host is allowed")
    _check_place(overrides)
    if "port" in overrides:
        overrides["port"] = read_port(overrides["port"])
    _check_connect_timeout(overrides, f"{MONITORING_PREFIX}connect_timeout")
    return overrides


def _monitoring_params(params: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in params.items() if name not in _NODE_SELECTION}
    return {
        **own,
        "connect_timeout": MONITOR_CONNECT_TIMEOUT_S,
        "application_name": "bgpool-monitor",
        # Independent of the database and $PGCLIENTENCODING: from SQL_ASCII a driver would return bytes instead of text.
        "client_encoding": "utf8",
        "options": f"-c statement_timeout={MONITOR_STATEMENT_TIMEOUT_S}s",
        **overrides,
    }

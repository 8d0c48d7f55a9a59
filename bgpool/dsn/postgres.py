"""PostgreSQL: URLs and connection strings as libpq reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg import conninfo, pq

from bgpool.core.engine import Engine
from bgpool.core.limits import MONITOR_CONNECT_TIMEOUT_S, MONITOR_STATEMENT_TIMEOUT_S
from bgpool.dsn.place import MONITORING_PREFIX, Dsn, Given, read_port, take_password
from bgpool.errors import ConfigurationError

__all__ = ["read"]

#: What selects a node would lead a monitoring connection away from the node that it is to watch.
_NODE_SELECTION: Final = frozenset({"target_session_attrs", "load_balance_hosts", "hostaddr", "options"})
_DEFAULT_PORT: Final = 5432


def read(given: Given) -> Dsn:
    """Where and how to connect, by libpq's names.

    Raises:
        ConfigurationError: Anything that cannot be used; the text never holds the password.
    """
    overrides = _checked(given.overrides)
    params = _libpq_params(given.url)
    options = given.options
    static = options.get("kwargs")
    given_password = options.pop("password", None)
    if isinstance(static, Mapping):
        known = _known()
        # None is not given, as psycopg has it.
        static = {name: value for name, value in static.items() if value is not None or name not in known}
        params |= {name: value for name, value in static.items() if name in known}
        # psycopg_pool would have it win over the one that is made, and the monitor take its repr for it.
        options["kwargs"] = {name: value for name, value in static.items() if name != "password"}
        given_password = static.get("password") if given_password is None else given_password
    password = take_password("password", given_password, params)
    _check_host(params)
    _check_connect_timeout(params, "connect_timeout")
    if "connect_timeout" not in params:
        params["connect_timeout"] = os.environ.get("PGCONNECT_TIMEOUT") or MONITOR_CONNECT_TIMEOUT_S
        _check_connect_timeout(params, "PGCONNECT_TIMEOUT")
    host = str(params.get("host") or os.environ.get("PGHOST") or "")
    port = read_port(params.get("port") or os.environ.get("PGPORT") or _DEFAULT_PORT)
    monitoring = _monitoring_params(params, overrides)
    own = overrides.get("password")
    monitoring_password = password if own is None else take_password("monitoring password", own, monitoring)
    return Dsn(Engine.POSTGRESQL, host, port, params, monitoring, password, monitoring_password)


def _known() -> set[str]:
    return {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


def _libpq_params(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo.conninfo_to_dict(url))
    except psycopg.Error:
        # libpq's own message quotes the string, password and all.
        raise ConfigurationError(
            "dsn: libpq cannot read it; postgresql://USER@HOST:PORT/DBNAME?NAME=VALUE or "
            "'host=HOST port=PORT dbname=DBNAME' is allowed (the text is not repeated here, it may hold a password)"
        ) from None


def _check_host(params: Mapping[str, Any]) -> None:
    for name in ("host", "hostaddr", "port"):
        if "," in str(params.get(name, "")):
            raise ConfigurationError(f"dsn: {name}={params[name]!r}: one endpoint is allowed, not a list")


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
            f"{name}={value!r}: a whole number of seconds above 0 is allowed; 0 would wait forever"
        )


def _checked(overrides: dict[str, Any]) -> dict[str, Any]:
    """*overrides*, if libpq knows them and a monitor may have them."""
    known = _known()
    for name in overrides:
        if name not in known:
            raise ConfigurationError(f"{MONITORING_PREFIX}{name}: no connection parameter of libpq has that name")
    if "hostaddr" in overrides:
        raise ConfigurationError(f"{MONITORING_PREFIX}hostaddr: the monitor goes to several hosts; host is allowed")
    _check_host(overrides)
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
        "options": f"-c statement_timeout={MONITOR_STATEMENT_TIMEOUT_S}s",
        **overrides,
    }

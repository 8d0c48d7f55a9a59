"""The parameters: parsing, bounds and explanation of every ``bg_`` name, and the DSN they come with.

Names, units and defaults are those that users of the AWS wrapper know. They are keywords of get_pool or part of the
DSN's query string; a keyword wins.
"""

from __future__ import annotations

import getpass
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote

import psycopg
from psycopg import conninfo, pq

from bgpool.core.endpoints import normalise_host, parse_endpoint
from bgpool.core.limits import MONITOR_CONNECT_TIMEOUT_S, MONITOR_STATEMENT_TIMEOUT_S
from bgpool.errors import ConfigurationError

__all__ = ["MONITORING_PREFIX", "Dsn", "Password", "Settings", "parse", "user_of"]

_logger: Final = logging.getLogger("bgpool.settings")

MONITORING_PREFIX: Final = "blue-green-monitoring-"
_ENDPOINT: Final = "endpoint"

#: Makes a password from a host name, a port and a user.
Password = Callable[[str, int, str], str]
#: What selects a node would lead a monitoring connection away from the node that it is to watch.
_NODE_SELECTION: Final = frozenset({"target_session_attrs", "load_balance_hosts", "hostaddr", "options"})
_DAY_MS: Final = 24 * 60 * 60 * 1000
_DEFAULT_PORT: Final = 5432


def _milliseconds(least: int, most: int) -> Callable[[str, object], int]:
    def parse_ms(name: str, value: object) -> int:
        number = value
        if isinstance(value, str) and value.strip().isdecimal():
            number = int(value)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ConfigurationError(f"{name}={value!r}: a whole number of ms from {least} to {most} is allowed")
        return number

    return parse_ms


def _flag(name: str, value: object) -> bool:
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


def _bg_id(name: str, value: object) -> str:
    number = value
    if isinstance(number, float) and math.isfinite(number):
        # 1.0 is the same number as 1.
        number = int(number) if number.is_integer() else str(number)
    if isinstance(number, bool) or not isinstance(number, (str, int)) or not str(number).strip():
        raise ConfigurationError(f"{name}={value!r}: a number or a string that is not blank is allowed")
    text = str(number).strip().lower()
    if len(text) > 200:
        raise ConfigurationError(f"{name}={value!r}: at most 200 characters are allowed")
    return text


def _resolver(name: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if text != "system" and not text.startswith(("hosts:", "dns://")):
        raise ConfigurationError(f"{name}={value!r}: system, hosts:FILE or dns://HOST:PORT is allowed")
    return text


def _endpoint(name: str, value: object) -> str | None:
    if value is None:
        return None
    host = normalise_host(value) if isinstance(value, str) else ""
    if parse_endpoint(host) is None:
        raise ConfigurationError(
            f"{name}={value!r}: the name of an RDS or Aurora endpoint is allowed, "
            "such as ledger.c0abc.eu-west-1.rds.amazonaws.com"
        )
    return host


def _directory(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ConfigurationError(f"{name}={value!r}: the path of a directory is allowed")
    return Path(value).absolute()


def _parameter(default: Any, parse: Callable[[str, object], Any], usual: tuple[int, int] | None = None) -> Any:
    return field(default=default, metadata={"parse": parse, "usual": usual})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every ``bg_`` parameter. docs/parameters.md explains each.

    Attributes:
        bg_id: Which Blue/Green Deployment; the same for every connection to it, stripped and lower-cased.
        bg_connect_timeout_ms: Longest hold of a checkout, in ms.
        bg_interval_baseline_ms: Between readings of the status while no deployment is seen, in ms.
        bg_interval_increased_ms: The same while there is one.
        bg_interval_high_ms: The same during a switchover.
        bg_switchover_timeout_ms: Longest switchover before it counts as done, in ms.
        bg_suspend_new_blue_connections: Hold new blue connections in IN_PROGRESS too.
        bg_drop_blue_connections: Cut blue connections in use when the grace is over.
        bg_drain_timeout_ms: That grace, in ms.
        bg_release_on_blue_dns_update: Let moved DNS alone end the hold.
        bg_resolver: ``system``, ``hosts:FILE`` or ``dns://HOST:PORT``; default ``$BGPOOL_RESOLVER``, else system.
        bg_run_dir: Where the segment lives; None for the default of segment/paths.py.
        endpoint: The RDS or Aurora endpoint that the DSN's host stands for, where that is an alias.
    """

    bg_id: str = _parameter("1", _bg_id)
    bg_connect_timeout_ms: int = _parameter(30_000, _milliseconds(0, _DAY_MS))
    bg_interval_baseline_ms: int = _parameter(60_000, _milliseconds(1, _DAY_MS), (1, 900_000))
    bg_interval_increased_ms: int = _parameter(1_000, _milliseconds(1, _DAY_MS), (500, 2_000))
    bg_interval_high_ms: int = _parameter(100, _milliseconds(1, _DAY_MS), (50, 500))
    bg_switchover_timeout_ms: int = _parameter(180_000, _milliseconds(1, _DAY_MS))
    bg_suspend_new_blue_connections: bool = _parameter(False, _flag)
    bg_drop_blue_connections: bool = _parameter(True, _flag)
    bg_drain_timeout_ms: int = _parameter(1_000, _milliseconds(0, _DAY_MS))
    bg_release_on_blue_dns_update: bool = _parameter(True, _flag)
    bg_resolver: str = _parameter("system", _resolver)
    bg_run_dir: Path | None = _parameter(None, _directory)
    endpoint: str | None = _parameter(None, _endpoint)

    @classmethod
    def from_mapping(cls, given: Mapping[str, object]) -> Settings:
        """Settings from parameters by name.

        Raises:
            ConfigurationError: A name that is not known, or a value out of its domain.
        """
        known = {f.name: f for f in fields(cls)}
        for name in given:
            if name not in known:
                raise ConfigurationError(f"unknown parameter {name!r}: allowed are {', '.join(known)}")
        values = {name: known[name].metadata["parse"](name, value) for name, value in given.items()}
        if "bg_resolver" not in given and (resolver := os.environ.get("BGPOOL_RESOLVER")):
            values["bg_resolver"] = _resolver("BGPOOL_RESOLVER", resolver)
        for name, value in values.items():
            usual = known[name].metadata["usual"]
            if usual is not None and not usual[0] <= value <= usual[1]:
                _logger.warning("%s=%d is outside the usual %d to %d ms", name, value, *usual)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Dsn:
    """Where and how to connect.

    Attributes:
        host: The endpoint's name as given, or a socket directory; empty for the driver's default.
        port: Its port.
        params: Every connection parameter by libpq's name, password included; never shown.
        monitoring: Those of the monitoring connections, complete.
        password: Makes the password of each connection; None where *params* have it, or none is needed.
        monitoring_password: The same for the monitoring connections.
    """

    host: str
    port: int
    params: Mapping[str, Any] = field(repr=False)
    monitoring: Mapping[str, Any] = field(repr=False)
    password: Password | None = field(default=None, repr=False)
    monitoring_password: Password | None = field(default=None, repr=False)

    @property
    def user(self) -> str:
        """Whom connections log in as."""
        return user_of(self.params)

    @property
    def names_matter(self) -> bool:
        """Whether a host has to prove its name, or gets a password that is for one name."""
        return self.password is not None or self.params.get("sslmode") == "verify-full"

    @property
    def endpoint(self) -> str:
        """The host as the metadata spells names."""
        return normalise_host(self.host)


def user_of(params: Mapping[str, Any]) -> str:
    """Whom connections with *params* log in as, as libpq finds it out."""
    return str(params.get("user") or os.environ.get("PGUSER") or getpass.getuser())


def parse(dsn: str, options: Mapping[str, Any]) -> tuple[Dsn, Settings, dict[str, Any]]:
    """Take a DSN and get_pool's keywords apart.

    Args:
        dsn: A ``postgresql://`` URL or a libpq connection string.
        options: ``bg_`` parameters, ``endpoint``, ``password``, ``monitoring``, ``kwargs`` (connection parameters),
            and what is the pool's.

    Returns:
        Where to connect, the settings, and the options that are left for the pool underneath.

    Raises:
        ConfigurationError: Anything that cannot be used; the text never holds the password.
    """
    if not dsn or not dsn.strip():
        raise ConfigurationError("dsn: a postgresql:// URL or a libpq connection string is allowed, not an empty one")
    url, given = _split_url(dsn.strip())
    left = dict(options)
    for name in [name for name in left if _is_own(name)]:
        given[name] = left.pop(name)
    overrides = _monitoring_overrides(given, left.pop("monitoring", None))
    settings = Settings.from_mapping(given)
    params = _libpq_params(url)
    static = left.get("kwargs")
    given_password = left.pop("password", None)
    if isinstance(static, Mapping):
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        # None is not given, as psycopg has it.
        static = {name: value for name, value in static.items() if value is not None or name not in known}
        params |= {name: value for name, value in static.items() if name in known}
        # psycopg_pool would have it win over the one that is made, and the monitor take its repr for it.
        left["kwargs"] = {name: value for name, value in static.items() if name != "password"}
        given_password = static.get("password") if given_password is None else given_password
    password = _password("password", given_password, params)
    _check_host(params)
    _check_connect_timeout(params, "connect_timeout")
    params.setdefault("connect_timeout", os.environ.get("PGCONNECT_TIMEOUT") or MONITOR_CONNECT_TIMEOUT_S)
    host = str(params.get("host") or os.environ.get("PGHOST") or "")
    port = _port(params.get("port") or os.environ.get("PGPORT") or _DEFAULT_PORT)
    monitoring = _monitoring_params(params, overrides)
    own = overrides.get("password")
    monitoring_password = password if own is None else _password("monitoring password", own, monitoring)
    return Dsn(host, port, params, monitoring, password, monitoring_password), settings, left


def _is_own(name: str) -> bool:
    return name == _ENDPOINT or name.startswith(("bg_", MONITORING_PREFIX))


def _password(name: str, value: object, params: dict[str, Any]) -> Password | None:
    """The callable that *value* is, if it is one; a string goes into *params*."""
    if value is None:
        return None
    params.pop("password", None)
    if callable(value):
        return cast(Password, value)
    if not isinstance(value, str):
        # Not repr(value): whatever it is, it was meant to be a secret.
        raise ConfigurationError(
            f"{name}: a string or a callable (host, port, user) -> str is allowed, not {type(value).__name__}"
        )
    params["password"] = value
    return None


def _split_url(dsn: str) -> tuple[str, dict[str, object]]:
    """*dsn* without bgpool's own parameters, and those parameters. What is libpq's stays as it was written."""
    scheme = dsn.partition("://")[0].lower() if "://" in dsn.partition("=")[0] else ""
    if scheme not in ("", "postgresql", "postgres"):
        raise ConfigurationError(f"dsn: scheme {scheme!r} is not supported; postgresql is allowed")
    if not scheme:
        return dsn, {}
    base, _, query = dsn.partition("?")
    own: dict[str, object] = {}
    rest: list[str] = []
    for item in query.split("&"):
        name, _, value = item.partition("=")
        if _is_own(unquote(name)):
            own[unquote(name)] = unquote(value)
        elif item:
            rest.append(item)
    return f"{base}?{'&'.join(rest)}" if rest else base, own


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


def _port(value: object) -> int:
    text = str(value)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigurationError(f"dsn: port={text!r}: a number from 1 to 65535 is allowed")
    return int(text)


def _monitoring_overrides(given: dict[str, object], mapping: object) -> dict[str, Any]:
    """The parameters of the monitoring connections alone; taken out of *given*."""
    overrides: dict[str, Any] = {
        name[len(MONITORING_PREFIX) :]: given.pop(name) for name in list(given) if name.startswith(MONITORING_PREFIX)
    }
    if mapping is not None:
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(f"monitoring={mapping!r}: a mapping of connection parameters is allowed")
        overrides |= mapping
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    for name in overrides:
        if name not in known:
            raise ConfigurationError(f"{MONITORING_PREFIX}{name}: no connection parameter of libpq has that name")
    if "hostaddr" in overrides:
        raise ConfigurationError(f"{MONITORING_PREFIX}hostaddr: the monitor goes to several hosts; host is allowed")
    _check_host(overrides)
    if "port" in overrides:
        overrides["port"] = _port(overrides["port"])
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

"""The recipe of asyncpg connections: to an address, with libpq's parameters, and with a host name to verify."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

import asyncpg
import psycopg
from asyncpg import connect_utils

from bgpool.core.limits import ENDPOINTS
from bgpool.errors import ConfigurationError
from bgpool.integrations.asyncpg.connection import AsyncpgAware, aware
from bgpool.integrations.asyncpg.errors import like, note_connecting
from bgpool.integrations.asyncpg.tls import NamedContext, verifying
from bgpool.pools.postgres.recipe import PostgresRecipe
from bgpool.pools.recipe import Destination, DriversPool, Recipe
from bgpool.pools.waits import BLOCKING

__all__ = ["LIBPQ", "AsyncpgRecipe"]

#: libpq's parameters that asyncpg only reads in a DSN.
_OF_TLS: Final = (
    "sslmode", "sslrootcert", "sslcrl", "sslcert", "sslkey", "sslpassword", "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)  # fmt: skip
#: libpq's parameters under asyncpg's names.
_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "user": "user",
        "password": "password",
        "dbname": "database",
        "passfile": "passfile",
        "target_session_attrs": "target_session_attrs",
        "krbsrvname": "krbsrvname",
    }
)
#: Parameters that are sent to the server unchanged.
_SETTINGS: Final = ("application_name", "options", "replication")
#: Parameters that this module handles.
_DONE: Final = ("host", "hostaddr", "port", "connect_timeout", "fallback_application_name")
#: Parameters of the socket: the TCP option, and the divisor of libpq's number.
_TCP: Final[Mapping[str, str]] = MappingProxyType(
    {
        "keepalives_idle": "TCP_KEEPIDLE",
        "keepalives_interval": "TCP_KEEPINTVL",
        "keepalives_count": "TCP_KEEPCNT",
        "tcp_user_timeout": "TCP_USER_TIMEOUT",
    }
)
#: Parameters that asyncpg always or never follows, and the values that agree with that.
_MOOT: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "client_encoding": ("utf8", "utf-8", "auto"),
        "channel_binding": ("prefer", "disable"),
        "gssencmode": ("prefer", "disable"),
        "gssdelegation": ("0",),
        "load_balance_hosts": ("disable",),
        "sslcompression": ("0",),
        "sslnegotiation": ("postgres",),
        "sslsni": ("1",),
        "sslcertmode": ("allow",),
        "keepalives": ("0", "1"),
    }
)

#: libpq's parameters that are accepted in addition to asyncpg's.
LIBPQ: Final = frozenset({*_OF_TLS, *_SETTINGS, *_TCP, *_MOOT, "connect_timeout", "fallback_application_name"})

Context = ssl.SSLContext


class AsyncpgRecipe(PostgresRecipe):
    """The recipe of an asyncpg connector. Its parameters are libpq's, because the monitor has the same."""

    failures: ClassVar[tuple[type[Exception], ...]] = (
        asyncpg.PostgresError,
        asyncpg.TargetServerAttributeNotMatched,
        OSError,
        asyncio.TimeoutError,
        # bgpool's own errors are of this class.
        psycopg.OperationalError,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        params = self.dsn.params
        self._static: Final = _static(params)
        self._tls: Final = _tls(params, self.options.get("ssl"))
        self._named: Final[dict[str, NamedContext]] = {}

    def make_inner(self, connector: object) -> DriversPool:
        """Raise: there is no inner pool, because the callers of a connector keep the connections."""
        raise NotImplementedError

    @property
    def names_matter(self) -> bool:
        """See Recipe; an SSL context of the application may also require a verified name."""
        return super().names_matter or (isinstance(self._tls, Context) and self._tls.check_hostname)

    def for_trials(self) -> Recipe:
        """See Recipe: the result is psycopg's."""
        trials = PostgresRecipe(self.dsn, self.settings, self.gate, self.endpoint, self.resolver, {})
        trials.waits = BLOCKING
        return trials

    async def aopen(self, place: Destination, kwargs: Mapping[str, Any]) -> Any:
        """See Recipe; *kwargs* are asyncpg's and override the parameters of the DSN."""
        params = self.dsn.params
        name = self.dsn.host
        own = {**self._static, **kwargs}
        settings = {**self._static["server_settings"], **(kwargs.get("server_settings") or {})}
        own |= self._tls_for(place.host or name)
        own["server_settings"] = settings
        own["connection_class"] = aware(kwargs.get("connection_class") or asyncpg.Connection)
        if place.password is not None:
            own["password"] = place.password
        elif own.get("password") is None and not name.startswith("/"):
            # asyncpg would search the password file for the address.
            own["password"] = self._filed_password(own)
        address = place.address or params.get("hostaddr") or name
        try:
            connection: AsyncpgAware = await asyncpg.connect(host=address or None, port=self.dsn.port, **own)
        except self.failures as error:
            note_connecting(error)
            raise
        if not str(address).startswith("/"):
            _watch(connection.fileno(), params)
        return connection

    def _tls_for(self, name: str) -> dict[str, Any]:
        """Return the TLS context that verifies *name*, if a name must be verified."""
        if not isinstance(self._tls, Context):
            return self._tls
        if name not in self._named:
            if len(self._named) >= ENDPOINTS:
                self._named.clear()
            self._named[name] = NamedContext(self._tls, name)
        return {"ssl": self._named[name]}

    def _filed_password(self, own: Mapping[str, Any]) -> str | None:
        given = os.environ.get("PGPASSWORD")
        if given:
            return given
        file = own.get("passfile") or os.environ.get("PGPASSFILE") or Path("~/.pgpass").expanduser()
        found: str | None = connect_utils._read_password_from_pgpass(
            passfile=Path(file),
            hosts=[self.dsn.host],
            ports=[self.dsn.port],
            database=own.get("database") or self.dsn.user,
            user=own.get("user") or self.dsn.user,
        )
        return found

    def is_silence(self, error: Exception) -> bool:
        """See Recipe."""
        return isinstance(error, (OSError, asyncio.TimeoutError)) and not isinstance(error, ssl.SSLError)

    def failure(self, text: str) -> Exception:
        """See Recipe."""
        failure: Exception = asyncpg.ConnectionFailureError(text)
        return failure

    @staticmethod
    def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
        """See Recipe."""
        return like(error, kind, text)


def _static(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of every connection.

    Raises:
        ConfigurationError: asyncpg has no equivalent of a parameter.
    """
    known = {*_OF_TLS, *_NAMES, *_SETTINGS, *_DONE, *_TCP}
    for name, value in params.items():
        if name in _MOOT:
            if str(value).lower() not in _MOOT[name]:
                allowed = " or ".join(_MOOT[name])
                raise ConfigurationError(f"{name}={value!r}: with asyncpg {allowed} is allowed")
        elif name not in known:
            raise ConfigurationError(
                f"{name} is a libpq parameter without an equivalent in asyncpg: leave it out, or set it for the "
                f"monitoring connections alone with blue-green-monitoring-{name}"
            )
    settings = {name: str(params[name]) for name in _SETTINGS if params.get(name)}
    if "application_name" not in settings and params.get("fallback_application_name"):
        settings["application_name"] = str(params["fallback_application_name"])
    own = {ours: str(params[name]) for name, ours in _NAMES.items() if params.get(name)}
    return {**own, "timeout": float(params["connect_timeout"]), "server_settings": settings}


def _tls(params: Mapping[str, Any], given: Any) -> Context | dict[str, Any]:
    """Return the context of TLS connections; if no name must be verified, the value that leaves TLS to asyncpg."""
    if given is None or isinstance(given, str):
        mode = given or params.get("sslmode")
        if mode == "verify-full":
            return verifying(params)
        query = {name: str(params[name]) for name in _OF_TLS if params.get(name)}
        if mode:
            query["sslmode"] = mode
        return {"dsn": f"postgresql://?{urlencode(query)}"} if query else {}
    if given is True:
        return ssl.create_default_context()
    return given if isinstance(given, Context) else {"ssl": False}


def _watch(number: int, params: Mapping[str, Any]) -> None:
    """Have TCP detect a dead network, like libpq."""
    # For uvloop's sockets, Python has no object that takes options.
    with socket.socket(fileno=os.dup(number)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(str(params.get("keepalives", "1")) != "0"))
        for name, option in _TCP.items():
            if params.get(name) is not None and hasattr(socket, option) and int(params[name]):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), int(params[name]))

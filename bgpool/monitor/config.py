"""The monitor's configuration. It is passed through a pipe, because it contains a password."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import msgpack

from bgpool.callables import hand_over, take_over
from bgpool.core.endpoints import name_after
from bgpool.core.engine import Engine
from bgpool.core.limits import HOST_MONITORS, NAME_CHARS
from bgpool.core.machine import Rules
from bgpool.core.observations import Parameters
from bgpool.core.plan import Intervals, Target
from bgpool.dsn import Dsn, Password, names_are_proved, user_of
from bgpool.fleet.config import FleetConfig
from bgpool.monitor.session import Application
from bgpool.settings import Settings

__all__ = ["MonitorConfig"]

_REMEDY: Final = (
    "define it at the top level of a module that can be imported, use bgpool.auth.RdsIam, or give the monitor a "
    "password of its own with monitoring={'password': ...}"
)


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """The configuration of one monitor.

    Attributes:
        engine: The database engine.
        run_dir: The run directory.
        host, port: The first server to query for metadata: the application's endpoint, or that of monitoring=.
        params: The parameters of the monitoring connections, including the password; never shown.
        password_callable: The callable that makes the password instead, pickled; None if *params* have the credentials.
        resolver: The parameter bg_resolver.
        names_matter: True if the application's connections depend on a host's name.
        app_user, app_database: The user and database of the application's connections.
        fleet: The bus of the fleet; None if this host queries for itself.
    """

    engine: Engine
    bg_id: str
    run_dir: str
    host: str
    port: int
    resolver: str
    interval_baseline_ms: int
    interval_increased_ms: int
    interval_high_ms: int
    switchover_timeout_ms: int
    release_on_blue_dns_update: bool
    names_matter: bool
    app_user: str
    app_database: str
    params: Mapping[str, Any] = field(repr=False)
    password_callable: bytes | None = field(default=None, repr=False)
    fleet: FleetConfig | None = None

    @classmethod
    def of(cls, dsn: Dsn, settings: Settings, run_dir: Path) -> MonitorConfig:
        """Return the configuration from a pool's parameters.

        Raises:
            ConfigurationError: A callable cannot be passed to another process, or the fleet's parameters are
                inconsistent.
        """
        password = dsn.monitoring_password
        return cls(
            engine=dsn.engine,
            bg_id=settings.bg_id,
            run_dir=str(run_dir),
            # Do not use green's name, which disappears in the switchover: blue's is valid before and after it.
            host=_own(dsn, "host") or name_after(settings.endpoint or dsn.host),
            port=int(_own(dsn, "port") or dsn.port),
            resolver=settings.bg_resolver,
            interval_baseline_ms=settings.bg_interval_baseline_ms,
            interval_increased_ms=settings.bg_interval_increased_ms,
            interval_high_ms=settings.bg_interval_high_ms,
            switchover_timeout_ms=settings.bg_switchover_timeout_ms,
            release_on_blue_dns_update=settings.bg_release_on_blue_dns_update,
            names_matter=dsn.names_matter,
            app_user=dsn.user,
            app_database=_database_of(dsn.params) or os.environ.get("PGDATABASE") or dsn.user,
            params=_portable(dsn),
            password_callable=(None if password is None else hand_over("password", password, _REMEDY)),
            fleet=FleetConfig.of(settings),
        )

    def dump(self) -> bytes:
        """Return the configuration for the pipe."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        fleet = self.fleet.as_map() if self.fleet is not None else None
        packed: bytes = msgpack.packb({**given, "engine": self.engine.value, "fleet": fleet})
        return packed

    @classmethod
    def load(cls, data: bytes) -> MonitorConfig:
        """Return the configuration from the pipe, whose other end is a process of the same user and version."""
        given = msgpack.unpackb(data)
        fleet = FleetConfig.from_map(given["fleet"]) if given["fleet"] is not None else None
        return cls(**{**given, "engine": Engine(given["engine"]), "fleet": fleet})

    @property
    def parameters(self) -> Parameters:
        """The public part of the monitoring connections' parameters; it contains no secret."""
        database = _database_of(self.params)
        # If an @ was not escaped, the text before it belongs to a password.
        host = self.host.rpartition("@")[2]
        user, host, database = (str(part)[:NAME_CHARS] for part in (user_of(self.params), host, database))
        return Parameters(user, host, self.port, database)

    @property
    def application(self) -> Application:
        """The application's user and database, whose settings affect whether the server accepts writes."""
        return Application(self.app_user, self.app_database)

    @property
    def mark(self) -> str:
        """Four hex digits that are equal for equal parameters: too few to verify guesses of a password."""
        return hashlib.sha256(repr((self.parameters, self.password_callable)).encode()).hexdigest()[:4]

    @property
    def application_mark(self) -> str:
        """Eight hex digits that are equal on hosts whose applications use the same engine, user and database."""
        whose = repr((self.engine.value, self.app_user, self.app_database))
        return hashlib.sha256(whose.encode(errors="surrogatepass")).hexdigest()[:8]

    @property
    def rules(self) -> Rules:
        """The rules of the state machine."""
        awaited = self.names_matter or self.proves_names
        return Rules(self.switchover_timeout_ms, self.release_on_blue_dns_update, await_certificates=awaited)

    @property
    def proves_names(self) -> bool:
        """True if a monitoring connection can detect whether a host has a name.

        If only the application's connections verify names, the monitor cannot detect when green can prove them. Then
        pools use green's address until the timer runs out.
        """
        return self.password_callable is not None or names_are_proved(self.params)

    @property
    def password(self) -> Password | None:
        """The callable that makes the password of a monitoring connection.

        Raises:
            ConfigurationError: It cannot be imported here, or its module patches threads.
        """
        if self.password_callable is None:
            return None
        return _taken_over(self.password_callable)

    @property
    def intervals(self) -> Intervals:
        """The intervals of status reads."""
        return Intervals(self.interval_baseline_ms, self.interval_increased_ms, self.interval_high_ms)

    @property
    def first_target(self) -> Target:
        """The first server to query for metadata, before anything is known."""
        return Target(self.host, self.port, anew=True)


@functools.lru_cache(HOST_MONITORS)
def _taken_over(pickled: bytes) -> Password:
    """Return one callable for all monitors of a process with equal ones: a boto3 client takes 12 MB."""
    found: Password = take_over("the password callable", pickled, _REMEDY)
    return found


def _portable(dsn: Dsn) -> dict[str, Any]:
    """Return the monitoring connections' parameters for the pipe: libpq's are texts, PyMySQL's have types."""
    given = {name: value for name, value in dsn.monitoring.items() if value is not None}
    return given if dsn.engine is Engine.MYSQL else {name: str(value) for name, value in given.items()}


def _database_of(params: Mapping[str, Any]) -> str:
    return str(params.get("dbname") or params.get("database") or "")


def _own(dsn: Dsn, name: str) -> str | None:
    """Return the monitoring connections' value of *name* if it differs from the application's."""
    value = dsn.monitoring.get(name)
    return str(value) if value is not None and value != dsn.params.get(name) else None

"""Translation of a framework's connection parameters into those of get_pool and get_connector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import psycopg
from pymysql.cursors import Cursor as MysqlCursor

from bgpool.dsn import Engine, is_own, mysql
from bgpool.errors import ConfigurationError
from bgpool.pools.connector import PLACE

__all__ = ["MONITORING", "PER_CONNECTION", "Origin", "is_bgpools", "split"]

#: get_connector's keyword that is not a connection parameter.
MONITORING: Final = "monitoring"
#: Belongs to one owner of connections, and is passed to each of them: owners with the same parameters share a
#: connector.
PER_CONNECTION: Final = frozenset({"context"})
#: Parameters that may have several values: during a change of key there are the new one and the old one.
_LISTS: Final = frozenset({"bg_fleet_key"})

_NO_FILE: Final = (
    "write user, password, host and port into {place}; the monitor and every worker must go to the same place"
)
_OF_PSYCOPG2: Final = "it is psycopg2's, and this is psycopg 3: leave it out"
_OF_ASYNCPG: Final = "it is asyncpg's, and this is psycopg 3"
_OF_AWS: Final = "it is the AWS wrapper's: leave it out"

#: Names that other drivers use, or that belong elsewhere, and the replacement.
_FOREIGN: Final[Mapping[Engine, Mapping[str, str]]] = {
    Engine.POSTGRESQL: {
        "service": "write host, port and database into {place}, or name the service in $PGSERVICE",
        "conninfo": "write its parts into {place}",
        "dsn": "write its parts into {place}",
        "ssl": f"{_OF_ASYNCPG}; write sslmode=verify-full and sslrootcert=FILE",
        "server_settings": f"{_OF_ASYNCPG}; write options='-c NAME=VALUE'",
        "connection_factory": _OF_PSYCOPG2,
        "async": _OF_PSYCOPG2,
        "async_": _OF_PSYCOPG2,
    },
    Engine.MYSQL: {
        "read_default_file": _NO_FILE,
        "read_default_group": _NO_FILE,
        "multi_statements": "write client_flag=65536 (pymysql.constants.CLIENT.MULTI_STATEMENTS)",
        "auth_plugin": "PyMySQL chooses the plugin as the server asks; leave it out",
        "use_pure": "it is MySQL Connector/Python's: leave it out",
        "ssl_verify_server_cert": "write ssl_ca=FILE: certificate and name are verified then",
    },
}  # fmt: skip
_FOREIGN_TO_BOTH: Final[Mapping[str, str]] = dict.fromkeys(
    ("plugins", "wrapper_dialect", "wrapper_driver_dialect", "wrapper_plugins", "bgd_id"), _OF_AWS
)
#: The values of mysqlclient's ssl_mode, in parameters that PyMySQL has.
_SSL_MODES: Final[Mapping[str, str]] = {
    "DISABLED": "write ssl_disabled=true",
    "PREFERRED": "leave it out",
    "REQUIRED": "write {nested}={{'ssl': {{'verify_mode': 'none'}}}}",
    "VERIFY_CA": "write ssl_ca=FILE&ssl_check_hostname=false",
    "VERIFY_IDENTITY": "write ssl_ca=FILE, which has the name verified as well",
}
#: PyMySQL does not support them, and raises if they are true.
_UNSUPPORTED: Final = ("compress", "named_pipe")


@lru_cache
def is_bgpools(name: str) -> bool:
    """Return whether a parameter is get_connector's own. Cached: a framework may call it at each request."""
    return is_own(name) or name == MONITORING


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split *params* into the driver's parameters and get_connector's own.

    Args:
        params: The parameters by name.
    """
    own = {name: value for name, value in params.items() if is_bgpools(name)}
    return {name: value for name, value in params.items() if name not in own}, own


@dataclass(frozen=True)
class Origin:
    """The source of connection parameters, for error texts.

    Attributes:
        name: The beginning of error texts.
        place: The setting that contains host and database.
        nested: The setting for parameters that are not text.
        elsewhere: Names that belong to the framework itself, and what to do with them.
    """

    name: str
    place: str
    nested: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def translate(
        self, engine: Engine, params: Mapping[str, Any], own: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """Return the DSN and ``kwargs`` with which get_pool and get_connector connect like the driver with *params*.

        Args:
            engine: The engine whose driver *params* are for.
            params: The driver's parameters, by its names.
            own: get_connector's parameters, as returned by split().

        Raises:
            ConfigurationError: A parameter cannot be used. The text names the replacement and contains no secret.
        """
        self._refuse_lists({**params, **own})
        self._refuse_foreign(engine, params)
        if engine is Engine.POSTGRESQL:
            return "postgresql://", dict(params)
        kwargs = _of_pymysql(params)
        return mysql.url_of(kwargs), kwargs

    def refusal(self, error: ConfigurationError) -> ConfigurationError:
        """Translate *error* of get_pool or get_connector into the user's terms.

        The text of *error* refers to kwargs, or a part of the DSN. Here these are parameters.
        """
        return self._refuse(str(error).removeprefix("kwargs: ").removeprefix("dsn: "))

    def _refuse(self, text: str) -> ConfigurationError:
        return ConfigurationError(f"{self.name}: {text}")

    def _refuse_lists(self, params: Mapping[str, Any]) -> None:
        """Refuse several values for one name: several hosts, or a name that is given twice."""
        for name, value in params.items():
            is_list = isinstance(value, (list, tuple))
            if name in PLACE and (is_list or "," in str(value or "")):
                raise self._refuse(
                    f"{name}: {self.place} names several, and one endpoint is allowed; bgpool follows it through "
                    "the switchover, and the cluster's endpoint leads to the writer after a failover"
                )
            if is_list and name not in _LISTS:
                raise self._refuse(f"{name}: it is given {len(value)} times; once is allowed")

    def _refuse_foreign(self, engine: Engine, params: Mapping[str, Any]) -> None:
        """Refuse parameters that only another driver or the framework understands, and name the replacement."""
        for name, value in params.items():
            if name == "ssl_mode" and engine is Engine.MYSQL:
                known = str(value).upper() if str(value).upper() in _SSL_MODES else None
                what = _SSL_MODES[known].format(nested=self.nested) if known else "write ssl_ca=FILE"
                shown = f"={known}" if known else ""
                raise self._refuse(f"ssl_mode{shown} is mysqlclient's, and this is PyMySQL: {what}")
            instead = _FOREIGN[engine].get(name) or _FOREIGN_TO_BOTH.get(name)
            instead = instead.format(place=self.place) if instead is not None else self.elsewhere.get(name)
            if instead is not None and value is not None:
                raise self._refuse(f"{name} is not a parameter here: {instead}")
        base = psycopg.Cursor if engine is Engine.POSTGRESQL else MysqlCursor
        name = "cursor_factory" if engine is Engine.POSTGRESQL else "cursorclass"
        cursors = params.get(name)
        if isinstance(cursors, type) and not issubclass(cursors, base):
            of = f"{cursors.__module__}.{cursors.__qualname__}"
            raise self._refuse(f"{name}={of}: a subclass of {base.__module__}.{base.__qualname__} is allowed")


def _of_pymysql(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return PyMySQL's *params* without deprecated names, and without false values of unsupported parameters."""
    return {
        name: value
        for name, value in mysql.renamed(params).items()
        if name not in _UNSUPPORTED or (value and value not in ("0", "false"))
    }

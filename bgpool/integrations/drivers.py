"""Connection parameters, as a framework's settings have them, in the terms of get_pool and get_connector."""

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

#: get_connector's keyword that is no connection parameter.
MONITORING: Final = "monitoring"
#: Belongs to one owner of connections, and is given to each of them: owners with the same parameters share a connector.
PER_CONNECTION: Final = frozenset({"context"})
#: May be several: a change of key has the new one and the old one.
_LISTS: Final = frozenset({"bg_fleet_key"})

_NO_FILE: Final = (
    "write user, password, host and port into {place}; the monitor and every worker must go to the same place"
)
_OF_PSYCOPG2: Final = "it is psycopg2's, and this is psycopg 3: leave it out"
_OF_ASYNCPG: Final = "it is asyncpg's, and this is psycopg 3"
_OF_AWS: Final = "it is the AWS wrapper's: leave it out"

#: Names that other drivers have, or that belong elsewhere, and what to write instead.
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
#: What mysqlclient's ssl_mode says, in parameters that PyMySQL has.
_SSL_MODES: Final[Mapping[str, str]] = {
    "DISABLED": "write ssl_disabled=true",
    "PREFERRED": "leave it out",
    "REQUIRED": "write {nested}={{'ssl': {{'verify_mode': 'none'}}}}",
    "VERIFY_CA": "write ssl_ca=FILE&ssl_check_hostname=false",
    "VERIFY_IDENTITY": "write ssl_ca=FILE, which has the name verified as well",
}
#: PyMySQL does not support them, and says so where they are true.
_UNSUPPORTED: Final = ("compress", "named_pipe")


@lru_cache
def is_bgpools(name: str) -> bool:
    """Whether a parameter is get_connector's own. Remembered: a framework may ask at each request."""
    return is_own(name) or name == MONITORING


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of *params* that are the driver's, and those that are get_connector's own.

    Args:
        params: By name.
    """
    own = {name: value for name, value in params.items() if is_bgpools(name)}
    return {name: value for name, value in params.items() if name not in own}, own


@dataclass(frozen=True)
class Origin:
    """Where a user has written connection parameters; errors speak of it.

    Attributes:
        name: What errors begin with.
        place: Where host and database are written.
        nested: What holds parameters that are no text.
        elsewhere: Names that belong to the framework itself, and what to do with them.
    """

    name: str
    place: str
    nested: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def translate(
        self, engine: Engine, params: Mapping[str, Any], own: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """The DSN and the ``kwargs`` with which get_pool and get_connector connect as the driver does with *params*.

        Args:
            engine: Which driver's parameters *params* are.
            params: The driver's parameters, by its names.
            own: get_connector's, as split() has them.

        Raises:
            ConfigurationError: Anything that cannot be used; the text says what to write instead, and holds no secret.
        """
        self._refuse_lists({**params, **own})
        self._refuse_foreign(engine, params)
        if engine is Engine.POSTGRESQL:
            return "postgresql://", dict(params)
        kwargs = _of_pymysql(params)
        return mysql.url_of(kwargs), kwargs

    def refusal(self, error: ConfigurationError) -> ConfigurationError:
        """*error* of get_pool or get_connector in the user's terms: what they call kwargs, or a part of the DSN, is
        among the parameters here."""
        return self._refuse(str(error).removeprefix("kwargs: ").removeprefix("dsn: "))

    def _refuse(self, text: str) -> ConfigurationError:
        return ConfigurationError(f"{self.name}: {text}")

    def _refuse_lists(self, params: Mapping[str, Any]) -> None:
        """Refuse several values for one name: hosts, or a name that is given twice."""
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
        """Refuse what another driver would understand, or the framework, and say what to write instead."""
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
    """PyMySQL's *params* without old names, and without what says no to something that it does not support."""
    return {
        name: value
        for name, value in mysql.renamed(params).items()
        if name not in _UNSUPPORTED or (value and value not in ("0", "false"))
    }

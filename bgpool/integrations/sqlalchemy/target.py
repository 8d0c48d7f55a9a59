"""What SQLAlchemy has made of a URL and connect_args, in get_connector's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import psycopg
import pymysql

from bgpool.dsn import Engine, is_own, mysql, names_are_proved
from bgpool.errors import ConfigurationError
from bgpool.pools.connector import PLACE, Connector
from bgpool.registry import get_connector

__all__ = ["changes", "make_connector", "split"]

#: get_connector's keyword that is no connection parameter.
_MONITORING: Final = "monitoring"
#: Belongs to one engine, and is given to each of its connections: engines with the same URL share a connector.
_PER_CONNECTION: Final = frozenset({"context"})

_NO_FILE: Final = (
    "write user, password, host and port into the URL; the monitor and every worker must go to the same place"
)
_OF_CREATE_ENGINE: Final = "it is an argument of create_engine, and none of the connection's"
_OF_PSYCOPG2: Final = "it is psycopg2's, and this is psycopg 3: leave it out"
_OF_ASYNCPG: Final = "it is asyncpg's, and this is psycopg 3"
_OF_AWS: Final = "it is the AWS wrapper's: leave it out"

#: Names that other drivers have, or that belong elsewhere, and what to write instead.
_FOREIGN: Final[Mapping[Engine, Mapping[str, str]]] = {
    Engine.POSTGRESQL: {
        "service": "write host, port and database into the URL, or name the service in $PGSERVICE",
        "conninfo": "write its parts into the URL",
        "dsn": "write its parts into the URL",
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
_FOREIGN_TO_BOTH: Final[Mapping[str, str]] = {
    **dict.fromkeys(("plugins", "wrapper_dialect", "wrapper_driver_dialect", "wrapper_plugins", "bgd_id"), _OF_AWS),
    **dict.fromkeys(
        ("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping", "echo", "isolation_level",
         "server_side_cursors", "executemany_mode", "executemany_batch_page_size", "executemany_values_page_size",
         "use_batch_mode", "use_insertmanyvalues", "insertmanyvalues_page_size"),
        _OF_CREATE_ENGINE,
    ),
}  # fmt: skip
#: What mysqlclient's ssl_mode says, in parameters that PyMySQL has.
_SSL_MODES: Final[Mapping[str, str]] = {
    "DISABLED": "write ssl_disabled=true",
    "PREFERRED": "leave it out",
    "REQUIRED": "write connect_args={'ssl': {'verify_mode': 'none'}}",
    "VERIFY_CA": "write ssl_ca=FILE&ssl_check_hostname=false",
    "VERIFY_IDENTITY": "write ssl_ca=FILE, which has the name verified as well",
}
#: PyMySQL does not support them, and says so where they are true.
_UNSUPPORTED: Final = ("compress", "named_pipe")


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of *params* that are the driver's, and those that are get_connector's own.

    Args:
        params: By name, of the URL's query, of connect_args, or of both.
    """
    own = {name: value for name, value in params.items() if is_own(name) or name == _MONITORING}
    return {name: value for name, value in params.items() if name not in own}, own


def make_connector(engine: Engine, cparams: Mapping[str, Any], own: Mapping[str, Any]) -> Connector[Any]:
    """The connector for what create_engine was given. Nothing is opened.

    Args:
        engine: Which driver's parameters *cparams* are.
        cparams: The driver's parameters, as SQLAlchemy's own dialect makes them of URL and connect_args.
        own: get_connector's, as split() has them.

    Raises:
        ConfigurationError: Anything that cannot be used; the text says what to write instead, and holds no secret.
    """
    _refuse_lists({**cparams, **own})
    _refuse_foreign(engine, cparams)
    dsn, kwargs = "postgresql://", dict(cparams)
    if engine is Engine.MYSQL:
        kwargs = _of_pymysql(kwargs)
        dsn = mysql.url_of(kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name not in _PER_CONNECTION}
    try:
        return get_connector(dsn, **own, kwargs=kwargs)
    except ConfigurationError as error:
        # What get_connector calls kwargs, and a part of the DSN, is in the URL or in connect_args here.
        text = str(error).removeprefix("kwargs: ").removeprefix("dsn: ")
        raise ConfigurationError(f"create_engine: {text}") from None


def changes(static: Mapping[str, Any], args: Iterable[object], now: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Connector.connect`` is to be given: what do_connect listeners have changed, added or taken away.

    Args:
        static: The driver's parameters that make_connector was given.
        args, now: What the dialect's ``connect`` is given.

    Raises:
        ConfigurationError: A change that would lead elsewhere, or that the monitor has to know of.
    """
    if any(args):
        # Of a URL without any parameter SQLAlchemy makes one empty connection string.
        raise ConfigurationError(
            "a do_connect listener cannot add positional arguments; change what it is given by name"
        )
    before, after = mysql.renamed(static), mysql.renamed(now)
    changed: dict[str, Any] = {}
    for name in {**before, **after}:
        value = after.get(name)
        if name in _PER_CONNECTION or name not in before or name not in after or value != before[name]:
            _refuse_change(name)
            changed[name] = value
    if names_are_proved(after) != names_are_proved(before):
        raise _too_late("sslmode")
    return changed


# -- what cannot be used -----------------------------------------------------------------------------------------


def _refuse_change(name: str) -> None:
    if name in PLACE:
        raise ConfigurationError(
            f"{name}: a do_connect listener cannot change where the engine goes; make another engine for another server"
        )
    # MySQL's. Whether names are proved decides under which of them a green host is tried.
    if is_own(name) or name == _MONITORING or name == "ssl" or name.startswith("ssl_"):
        raise _too_late(name)


def _too_late(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name}: a do_connect listener cannot change it; write it into the URL or connect_args, where the monitor "
        "gets it as well"
    )


def _refuse_lists(params: Mapping[str, Any]) -> None:
    """Refuse several values for one name: hosts, or a name that is in the query twice."""
    for name, value in params.items():
        is_list = isinstance(value, (list, tuple))
        if name in PLACE and (is_list or "," in str(value or "")):
            raise ConfigurationError(
                f"create_engine: {name}: the URL names several, and one endpoint is allowed; bgpool follows it through "
                "the switchover, and the cluster's endpoint leads to the writer after a failover"
            )
        if is_list:
            raise ConfigurationError(f"create_engine: {name}: it is given {len(value)} times; once is allowed")


def _refuse_foreign(engine: Engine, params: Mapping[str, Any]) -> None:
    """Refuse what another driver would understand, or create_engine itself, and say what to write instead."""
    for name, value in params.items():
        if name == "ssl_mode" and engine is Engine.MYSQL:
            known = str(value).upper() if str(value).upper() in _SSL_MODES else None
            what = _SSL_MODES[known] if known else "write ssl_ca=FILE"
            shown = f"={known}" if known else ""
            raise ConfigurationError(f"create_engine: ssl_mode{shown} is mysqlclient's, and this is PyMySQL: {what}")
        instead = _FOREIGN[engine].get(name) or _FOREIGN_TO_BOTH.get(name)
        if instead is not None and value is not None:
            raise ConfigurationError(f"create_engine: {name} is not a parameter here: {instead}")
    base = psycopg.Cursor if engine is Engine.POSTGRESQL else pymysql.cursors.Cursor
    name = "cursor_factory" if engine is Engine.POSTGRESQL else "cursorclass"
    cursors = params.get(name)
    if isinstance(cursors, type) and not issubclass(cursors, base):
        of = f"{cursors.__module__}.{cursors.__qualname__}"
        raise ConfigurationError(
            f"create_engine: {name}={of}: a subclass of {base.__module__}.{base.__qualname__} is allowed"
        )


def _of_pymysql(params: Mapping[str, Any]) -> dict[str, Any]:
    """PyMySQL's *params* without old names, and without what says no to something that it does not support."""
    return {
        name: value
        for name, value in mysql.renamed(params).items()
        if name not in _UNSUPPORTED or (value and value not in ("0", "false"))
    }

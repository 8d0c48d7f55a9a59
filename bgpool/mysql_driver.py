"""Check that the installed PyMySQL has the internals that bgpool depends on.

Holding, draining and judging the effect of a cut require hooks below PyMySQL's documented interface. A version without
one of them must not be used: its statements would bypass the gate.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

import pymysql
from pymysql import VERSION, VERSION_STRING
from pymysql.connections import Connection, MySQLResult

from bgpool.errors import ConfigurationError

__all__ = ["check_driver", "keep_modules_single", "wants_tls"]

_PREFIX: Final = "pymysql."
#: The name of mysqlclient's module.
_LENT: Final = "MySQLdb"
#: The attributes that bgpool uses or replaces. Source: PyMySQL 1.1.1 to 1.2.4; pyproject.toml has the bounds.
_PARTS: Final[dict[type[Any], tuple[str, ...]]] = {
    Connection: (
        "_sock", "_result", "_closed", "_secure", "_read_timeout", "_write_timeout", "_auth_plugin_name",
        "_local_infile", "_execute_command", "_read_packet", "_read_ok_packet", "_read_query_result", "_write_bytes",
        "_force_close", "_process_auth", "_create_ssl_ctx",
    ),
    MySQLResult: (
        "_finish_unbuffered_query", "_read_rowdata_packet_unbuffered", "_check_packet_is_eof", "unbuffered_active",
        "has_next",
    ),
}  # fmt: skip
#: The functions of PyMySQL that must call the functions that bgpool replaces.
_CALLS: Final[dict[str, tuple[str, ...]]] = {
    "_execute_command": ("_write_bytes",),
    "write_packet": ("_write_bytes",),
    "query": ("_execute_command", "_read_query_result"),
    "next_result": ("_read_query_result",),
    "begin": ("_execute_command", "_read_ok_packet"),
    "commit": ("_execute_command", "_read_ok_packet"),
    "rollback": ("_execute_command", "_read_ok_packet"),
    "select_db": ("_execute_command", "_read_ok_packet"),
    "set_character_set": ("_execute_command", "_read_packet"),
    "_read_ok_packet": ("_read_packet",),
}
#: The parameters with which every version requires TLS.
_ASKING: Final = ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert", "ssl_verify_identity")


def keep_modules_single() -> None:
    """Keep a single copy of each of PyMySQL's modules if PyMySQL replaces mysqlclient.

    ``install_as_MySQLdb()`` registers the package under the name ``MySQLdb``, but not its modules. An import of
    ``MySQLdb.converters``, as in Django, loads that module and ``MySQLdb.err`` a second time. The second ``err`` then
    replaces ``pymysql.err``, and its errors are other classes than those that PyMySQL raises.
    """
    own = {name: module for name, module in sys.modules.copy().items() if name.startswith(_PREFIX)}
    if sys.modules.get(_LENT) is not pymysql or all(_lent(name) is module for name, module in own.items()):
        return
    for name, module in own.items():
        sys.modules[f"{_LENT}.{name.removeprefix(_PREFIX)}"] = module
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)


def _lent(name: str) -> object:
    return sys.modules.get(f"{_LENT}.{name.removeprefix(_PREFIX)}")


def check_driver() -> None:
    """Refuse a PyMySQL that lacks one of the attributes or calls.

    Raises:
        ConfigurationError: Something is missing. The text names it, and the versions that have it.
    """
    keep_modules_single()
    missing = [*_missing_parts(), *_missing_calls()]
    if missing:
        raise ConfigurationError(
            f"PyMySQL {VERSION_STRING} lacks what bgpool needs of it ({', '.join(missing)}): "
            "pip install 'PyMySQL>=1.1.1,<1.3'"
        )


def wants_tls(params: Mapping[str, Any]) -> bool:
    """Return whether the installed PyMySQL requests TLS with the connection parameters *params*.

    From 1.2 on it does so if the server offers it; below, only with a parameter that requires it.
    """
    if params.get("ssl_disabled"):
        return False
    return VERSION >= (1, 2) or any(params.get(name) for name in _ASKING)


def _missing_parts() -> list[str]:
    connection: Connection[Any] = Connection(user="nobody", defer_connect=True, ssl_disabled=True)
    return [
        f"{type(example).__name__}.{name}"
        for example in (connection, MySQLResult(connection))
        for name in _PARTS[type(example)]
        if not hasattr(example, name)
    ]


def _missing_calls() -> list[str]:
    missing = []
    for name, calls in _CALLS.items():
        code = getattr(getattr(Connection, name, None), "__code__", None)
        missing += [f"{call} in {name}()" for call in calls if code is None or call not in code.co_names]
    return missing

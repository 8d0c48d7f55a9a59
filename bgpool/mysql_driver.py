"""Whether the installed PyMySQL has the parts that bgpool rests on.

Holding, draining and telling what a cut has done take hooks below PyMySQL's documented interface. A version without
one of them must not be used: its statements would pass the gate unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymysql import VERSION, VERSION_STRING
from pymysql.connections import Connection, MySQLResult

from bgpool.errors import ConfigurationError

__all__ = ["check_driver", "wants_tls"]

#: What bgpool uses or replaces. Source: PyMySQL 1.1.1 to 1.2.4; pyproject.toml has the bounds.
_PARTS: Final[dict[type[Any], tuple[str, ...]]] = {
    Connection: (
        "_sock", "_result", "_closed", "_secure", "_read_timeout", "_write_timeout", "_auth_plugin_name",
        "_local_infile", "_execute_command", "_read_packet", "_read_ok_packet", "_read_query_result", "_write_bytes",
        "_force_close", "_process_auth", "_create_ssl_ctx",
    ),
    MySQLResult: ("_finish_unbuffered_query", "_read_rowdata_packet_unbuffered", "unbuffered_active", "has_next"),
}  # fmt: skip
#: Which of PyMySQL's functions must still go through what bgpool replaces.
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
#: Parameters with which every version insists on TLS.
_ASKING: Final = ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert", "ssl_verify_identity")


def check_driver() -> None:
    """Refuse a PyMySQL that lacks a part.

    Raises:
        ConfigurationError: What is missing, and the versions that have it.
    """
    missing = [*_missing_parts(), *_missing_calls()]
    if missing:
        raise ConfigurationError(
            f"PyMySQL {VERSION_STRING} lacks what bgpool needs of it ({', '.join(missing)}): "
            "pip install 'PyMySQL>=1.1.1,<1.3'"
        )


def wants_tls(params: Mapping[str, Any]) -> bool:
    """Whether the installed PyMySQL asks a server for TLS with connection parameters *params*.

    From 1.2 on it does wherever the server offers it, and below only with a parameter that says so.
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

"""Translation of a URL and connect_args, as parsed by SQLAlchemy, into get_connector's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from bgpool.dsn import Engine, is_own, mysql, names_are_proved
from bgpool.errors import ConfigurationError
from bgpool.integrations.drivers import MONITORING, PER_CONNECTION, Origin, split
from bgpool.pools.connector import PLACE, AnyConnector
from bgpool.registry import get_source

__all__ = ["changes", "make_connector", "split"]

_ORIGIN: Final = Origin(
    "create_engine",
    "the URL",
    "connect_args",
    dict.fromkeys(
        ("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping", "echo", "isolation_level",
         "server_side_cursors", "executemany_mode", "executemany_batch_page_size", "executemany_values_page_size",
         "use_batch_mode", "use_insertmanyvalues", "insertmanyvalues_page_size"),
        "it is an argument of create_engine, and none of the connection's",
    ),
)  # fmt: skip


def make_connector(
    kinds: Mapping[Engine, type[AnyConnector[Any]]], engine: Engine, cparams: Mapping[str, Any], own: Mapping[str, Any]
) -> AnyConnector[Any]:
    """Return the connector for the arguments of create_engine. No connection is opened.

    Args:
        kinds: Classes as in CONNECTORS.
        engine: The engine whose driver *cparams* are for.
        cparams: The driver's parameters, as SQLAlchemy's own dialect derives them from URL and connect_args.
        own: get_connector's parameters, as returned by split().

    Raises:
        ConfigurationError: A parameter cannot be used. The text names the replacement and contains no secret.
    """
    dsn, kwargs = _ORIGIN.translate(engine, cparams, own)
    kwargs = {name: value for name, value in kwargs.items() if name not in PER_CONNECTION}
    try:
        return get_source(kinds, dsn, None, {**own, "kwargs": kwargs})
    except ConfigurationError as error:
        raise _ORIGIN.refusal(error) from None


def changes(static: Mapping[str, Any], args: Iterable[object], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for ``Connector.connect``: those that do_connect listeners have changed, added or removed.

    Args:
        static: The driver's parameters that make_connector was given.
        args, now: The arguments of the dialect's ``connect``.

    Raises:
        ConfigurationError: A change would lead to another server, or the monitor would need it.
    """
    if any(args):
        # For a URL without parameters, SQLAlchemy passes one empty connection string.
        raise ConfigurationError(
            "a do_connect listener cannot add positional arguments; change what it is given by name"
        )
    before, after = mysql.renamed(static), mysql.renamed(now)
    changed: dict[str, Any] = {}
    for name in {**before, **after}:
        value = after.get(name)
        if name in PER_CONNECTION or name not in before or name not in after or value != before[name]:
            _refuse_change(name)
            changed[name] = value
    if names_are_proved(after) != names_are_proved(before):
        raise _too_late("sslmode")
    return changed


# -- parameters that cannot be used ------------------------------------------------------------------------------


def _refuse_change(name: str) -> None:
    if name in PLACE:
        raise ConfigurationError(
            f"{name}: a do_connect listener cannot change where the engine goes; make another engine for another server"
        )
    # MySQL's. Name verification decides the name under which a green host is tried.
    if is_own(name) or name == MONITORING or name == "ssl" or name.startswith("ssl_"):
        raise _too_late(name)


def _too_late(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name}: a do_connect listener cannot change it; write it into the URL or connect_args, where the monitor "
        "gets it as well"
    )

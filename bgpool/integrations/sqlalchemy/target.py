"""What connection parameters of SQLAlchemy's mean to bgpool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bgpool.core.engine import Engine
from bgpool.pools.connector import Connector
from bgpool.registry import get_connector

__all__ = ["changes", "make_connector"]

_MISSING: Final = object()


def make_connector(engine: Engine, params: Mapping[str, Any], bg: Mapping[str, Any]) -> Connector[Any]:
    """The connector for the parameters of a URL and connect_args.

    Args:
        engine: Of which engine the servers are.
        params: As SQLAlchemy's dialect would give them to the driver.
        bg: The ``bg_`` parameters among them.

    Raises:
        ConfigurationError: As get_connector.
    """
    left = {name: value for name, value in params.items() if name != "context"}
    if engine is Engine.POSTGRESQL:
        return get_connector("postgresql://", kwargs=left, **bg)
    host, port = left.pop("host", ""), left.pop("port", 3306)
    return get_connector(f"mysql://{host}:{port}/", kwargs=left, **bg)


def changes(static: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What of *now* a do_connect listener has changed, or only the driver has a use for, such as its adapters."""
    return {name: value for name, value in now.items() if name == "context" or static.get(name, _MISSING) is not value}

"""The AWS Advanced Python Wrapper with its plugin for Blue/Green Deployments, as shipped and mended."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import psycopg
from aws_advanced_python_wrapper import AwsWrapperConnection, release_resources
from aws_advanced_python_wrapper.blue_green_plugin import BaseRouting, BlueGreenPlugin, BlueGreenStatus
from psycopg.conninfo import conninfo_to_dict

from benchmarks.clients import Config
from bgpool.lab.ledger import INSERT_SQL, Key

__all__ = ["Mended", "Wrapper"]


class Wrapper:
    """A wrapped connection for each thread, kept until an error."""

    def __init__(self, config: Config) -> None:
        """Store the parameters. Each thread connects at its first write."""
        self._parameters: dict[str, Any] = {
            **conninfo_to_dict(config.dsn),
            "plugins": "bg",
            "bg_id": config.bg_id,
            "bg_interval_baseline_ms": config.baseline_ms,
            "bg_interval_increased_ms": config.increased_ms,
            "bg_interval_high_ms": config.high_ms,
            "autocommit": True,
        }
        self._mine = threading.local()

    def write(self, key: Key) -> None:
        """See Client."""
        connection = getattr(self._mine, "connection", None)
        if connection is None:
            connection = self._mine.connection = AwsWrapperConnection.connect(
                psycopg.Connection.connect, **self._parameters
            )
        try:
            with connection.cursor() as cursor:
                cursor.execute(INSERT_SQL, key)
        except BaseException:
            self._mine.connection = None
            with contextlib.suppress(Exception):
                connection.close()
            raise

    def close(self) -> None:
        """See Client. This also closes the monitors' connections. Other threads' connections end with the process."""
        release_resources()


class Mended(Wrapper):
    """The same wrapper with two of the plugin's defects fixed."""

    def __init__(self, config: Config) -> None:
        """Fix the plugin, then initialize like Wrapper."""
        mend()
        super().__init__(config)


def mend() -> None:
    """Fix two defects of the plugin in memory.

    After a suspension, execute() and connect() select the next route from the status that they read before it, which
    suspends them again, without end. Here they select from the latest status. In addition routes with a port are
    compared with a URL that ends in a slash. Here the URL has no slash.
    """
    BlueGreenPlugin._bg_status = property(_latest_status, _keep_status)
    BaseRouting.is_match = _is_match


def _latest_status(plugin: Any) -> Any:
    latest = plugin._plugin_service.get_status(BlueGreenStatus, plugin._bg_id)
    return latest if latest is not None else plugin.__dict__.get("_kept_status")


def _keep_status(plugin: Any, status: Any) -> None:
    plugin.__dict__["_kept_status"] = status


def _is_match(routing: Any, host_info: Any, bg_role: Any) -> bool:
    if routing._bg_role is not None and routing._bg_role != bg_role:
        return False
    if routing._endpoint is None:
        return True
    return host_info is not None and routing._endpoint == host_info.url.lower().rstrip("/")

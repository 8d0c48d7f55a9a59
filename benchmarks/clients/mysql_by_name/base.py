"""``"ENGINE": "benchmarks.clients.mysql_by_name"``; the option *resolver* is bgpool's bg_resolver."""

from __future__ import annotations

from typing import Any

from django.db.backends.mysql import base

from bgpool.resolver import make_resolver

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's, but the host's name is looked up anew at each connect, as by the system's without a cache."""

    def get_connection_params(self) -> dict[str, Any]:
        """As Django's, with an address."""
        params: dict[str, Any] = super().get_connection_params()
        resolver = params.pop("resolver", None)
        if resolver is not None:
            params["host"] = make_resolver(resolver).resolve(params["host"])[0]
        return params

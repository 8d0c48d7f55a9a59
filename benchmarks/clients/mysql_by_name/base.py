"""``"ENGINE": "benchmarks.clients.mysql_by_name"``; the option *resolver* is bgpool's bg_resolver."""

from __future__ import annotations

from typing import Any

from django.db.backends.mysql import base

from bgpool.resolver import make_resolver

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's wrapper, which resolves the host's name again at each connect, like a resolver without a cache."""

    def get_connection_params(self) -> dict[str, Any]:
        """Return the parameters of Django's wrapper, with an address in place of the name."""
        params: dict[str, Any] = super().get_connection_params()
        resolver = params.pop("resolver", None)
        if resolver is not None:
            params["host"] = make_resolver(resolver).resolve(params["host"])[0]
        return params

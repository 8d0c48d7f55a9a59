"""The names that the examples of docs/django.md use: a project with a model, and a database in the lab."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import django
from django.conf import settings
from django.db import connections
from django.http import HttpResponse
from sqlalchemy.engine import make_url

from bgpool.lab import Pair

__all__ = ["forget", "prepare"]

ALIAS = "default"


def prepare(pair: Pair) -> dict[str, Any]:
    """Return the names that the page uses, with the database ``default`` on *pair*."""
    if not settings.configured:
        settings.configure(USE_TZ=True, SECRET_KEY="of the tests", INSTALLED_APPS=["bgpool.integrations.django"])
        django.setup()
    url = make_url(pair.dsn)
    database: dict[str, Any] = {
        "ENGINE": "bgpool.integrations.django.postgresql",
        "HOST": url.host,
        "PORT": url.port,
        "USER": url.username,
        "PASSWORD": url.password,
        "NAME": url.database,
        "OPTIONS": {"bg_id": "ledger", "bg_resolver": pair.resolver, "bg_receipts_table": "bgpool_receipts"},
    }
    # Django keeps one connection per thread, and an earlier test may have opened it.
    with contextlib.suppress(AttributeError):
        del connections[ALIAS]
    connections.settings[ALIAS] = connections.configure_settings({ALIAS: database})[ALIAS]
    sent: list[int] = []
    return {
        "Order": SimpleNamespace(objects=_Orders()),
        "send_receipt": SimpleNamespace(delay=sent.append),
        "sent": sent,
        "HttpResponse": HttpResponse,
    }


def forget() -> None:
    """Close the connection and remove the database from the settings."""
    connections[ALIAS].close()
    del connections[ALIAS]
    del connections.settings[ALIAS]


class _Orders:
    """Like the manager of a model. The examples' table has no primary key, so that a model cannot be used."""

    def create(self, *, item: str) -> Any:
        """Insert a row."""
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("INSERT INTO orders (item) VALUES (%s)", [item])
        return SimpleNamespace(pk=1)

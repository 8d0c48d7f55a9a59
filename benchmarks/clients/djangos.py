"""Django's ORM on Django's own engines: a pool, and kept connections with health checks.

The module also has the parts that the clients on bgpool's engines share: the model, a database's settings, a request.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import django
from django.conf import settings
from django.db import close_old_connections, connections, models, transaction
from sqlalchemy import make_url
from sqlalchemy.engine import URL

from benchmarks.clients import POOL_TIMEOUT_S, Config
from bgpool.lab.ledger import Key

__all__ = ["ENGINES", "Checked", "Orm", "Pooled", "Row", "add_database", "add_row", "database_of", "remove_database"]

#: Django's own engines. The MySQL engine uses PyMySQL.
ENGINES: Final = {"postgresql": "django.db.backends.postgresql", "mysql": "benchmarks.clients.mysql_by_name"}
_numbers: Final = itertools.count(1)

if not settings.configured:
    # Settings can be configured once per process. bgpool's tests configure the same ones.
    settings.configure(USE_TZ=True, SECRET_KEY="of no use", INSTALLED_APPS=["bgpool.integrations.django"])
    django.setup()


class Row(models.Model):
    """A row of the lab's ledger."""

    seq: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    worker: models.IntegerField[int, int] = models.IntegerField()
    thread: models.IntegerField[int, int] = models.IntegerField()
    n: models.IntegerField[int, int] = models.IntegerField()

    class Meta:
        """The options of the model: no installed app, and an existing table."""

        app_label = "benchmarks"
        db_table = "ledger"
        managed = False


def add_row(alias: str, key: Key) -> None:
    """Add the row of *key* in the database *alias*."""
    worker, thread, n = key
    Row.objects.using(alias).create(worker=worker, thread=thread, n=n)


def database_of(url: URL, engine: str, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of a database at *url*, with *options* in addition to the URL's, and *more* settings."""
    of_url = {name: int(str(text)) if str(text).isdigit() else text for name, text in url.query.items()}
    return {
        "ENGINE": engine,
        "HOST": url.host,
        "PORT": str(url.port),
        "USER": url.username,
        "PASSWORD": str(url.password),
        "NAME": url.database,
        "OPTIONS": {**of_url, **options},
        **more,
    }


def add_database(database: Mapping[str, Any]) -> str:
    """Add *database* to the settings of this process, and return its alias."""
    alias = f"benchmark{next(_numbers)}"
    connections.settings[alias] = connections.configure_settings({"default": dict(database)})["default"]
    return alias


def remove_database(alias: str) -> None:
    """Close this thread's connection and the pool of *alias*, and remove the settings."""
    wrapper: Any = connections[alias]
    wrapper.close()
    if hasattr(wrapper, "close_pool"):
        wrapper.close_pool()
    del connections[alias]
    del connections.settings[alias]


class Orm:
    """A request that saves one object in ``atomic``.

    Attributes:
        alias: The alias of the database.
    """

    engines: ClassVar[Mapping[str, str]] = ENGINES

    def __init__(self, config: Config, options: Mapping[str, Any], **more: Any) -> None:
        """Add the database with *options* of the engine and *more* settings. Threads connect at their first request."""
        url = make_url(config.dsn)
        self.alias: Final = add_database(database_of(url, self.engines[url.drivername], options, **more))

    def write(self, key: Key) -> None:
        """See Client."""
        # The calls of Django when a request begins and when it is finished.
        close_old_connections()
        try:
            self._request(key)
        finally:
            close_old_connections()

    def _request(self, key: Key) -> None:
        with transaction.atomic(using=self.alias):
            add_row(self.alias, key)

    def close(self) -> None:
        """See Client."""
        remove_database(self.alias)


class Pooled(Orm):
    """Django's own engine with ``OPTIONS["pool"]``."""

    def __init__(self, config: Config) -> None:
        """Add the database."""
        pool = {"min_size": config.size, "max_size": config.size, "timeout": POOL_TIMEOUT_S}
        super().__init__(config, {"pool": pool}, CONN_MAX_AGE=0)


class Checked(Orm):
    """Django's own engine with ``CONN_MAX_AGE=None`` and ``CONN_HEALTH_CHECKS``."""

    def __init__(self, config: Config) -> None:
        """Add the database."""
        resolver = {} if config.resolver == "system" else {"resolver": config.resolver}
        super().__init__(config, resolver, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True)

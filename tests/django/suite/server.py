"""A server with what Django's tests want to find on it: a user who may do anything, and two databases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.testing import deployment
from tests.sqlalchemy.suite.server import with_contrib

__all__ = ["Servers", "servers"]

OWN: Final = {"postgresql": "django.db.backends.postgresql", "mysql": "django.db.backends.mysql"}
"""Django's engines."""
OURS: Final = {"postgresql": "bgpool.integrations.django.postgresql", "mysql": "bgpool.integrations.django.mysql"}

_PREPARED: Final = {
    "postgresql": (
        "CREATE ROLE django LOGIN SUPERUSER PASSWORD 'django'",
        "CREATE DATABASE django OWNER django",
        "CREATE DATABASE other OWNER django",
    ),
    "mysql": (
        "CREATE USER django IDENTIFIED BY 'django'",
        "GRANT ALL ON *.* TO django WITH GRANT OPTION",
        "CREATE DATABASE django CHARACTER SET utf8mb4",
        "CREATE DATABASE other CHARACTER SET utf8mb4",
    ),
}


class Servers:
    """A pair of servers; the tests use blue.

    Attributes:
        engine: ``postgresql`` or ``mysql``.
        has_contrib: True for a PostgreSQL with the extensions that Django's tests of PostgreSQL create.
    """

    def __init__(self, pair: Pair, *, has_contrib: bool) -> None:
        """Of *pair*, which is open and prepared."""
        self.engine: Final = pair.engine.value
        self.has_contrib: Final = has_contrib
        self._pair: Final = pair

    def plain(self, **options: Any) -> dict[str, Any]:
        """The setting DATABASES with Django's engine."""
        return self._databases(OWN[self.engine], self._pair.blue.address, options)

    @contextlib.contextmanager
    def deployed(self, run_dir: Path, **options: Any) -> Iterator[dict[str, Any]]:
        """Return DATABASES with bgpool's engine, in a deployment in CREATED that lasts as long as this context."""
        names = self._pair.names
        blue, green, resolver = names.blue.primary, names.green.primary, self._pair.resolver
        with deployment(run_dir, blue=blue, green=green, bg_id="suite", bg_resolver=resolver) as made:
            own = {"bg_id": made.bg_id, "bg_run_dir": str(made.run_dir), "bg_resolver": resolver}
            yield self._databases(OURS[self.engine], blue, {**own, **options})

    def _databases(self, engine: str, host: str, options: Mapping[str, Any]) -> dict[str, Any]:
        charset = {"CHARSET": "utf8mb4"} if self.engine == "mysql" else {}
        return {
            alias: {
                "ENGINE": engine,
                "HOST": host,
                "PORT": str(self._pair.port),
                "USER": "django",
                "PASSWORD": "django",
                "NAME": name,
                "OPTIONS": dict(options),
                "TEST": charset,
            }
            for alias, name in (("default", "django"), ("other", "other"))
        }


@contextlib.contextmanager
def servers(engine: str) -> Iterator[Servers]:
    """Start a pair and prepare it."""
    programs = with_contrib() if engine == "postgresql" else None
    with Pair(engine=Engine(engine), programs=programs) as pair:
        for statement in _PREPARED[engine]:
            pair.blue.execute(statement)
        pair.green.stop("immediate")  # no client connects to it
        yield Servers(pair, has_contrib=programs is not None)

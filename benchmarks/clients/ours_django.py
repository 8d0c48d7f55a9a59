"""Django's ORM on bgpool's engines: another engine in the settings, and units of work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from benchmarks.clients import Config
from benchmarks.clients.djangos import Orm, add_row
from benchmarks.clients.ours import bg_options, helpers, is_ready
from bgpool.integrations.django import run
from bgpool.lab.ledger import Key

__all__ = ["ENGINES", "Plain", "Run", "helpers", "is_ready"]

ENGINES: Mapping[str, str] = {
    "postgresql": "bgpool.integrations.django.postgresql",
    "mysql": "bgpool.integrations.django.mysql",
}


class Plain(Orm):
    """``with atomic()``, on kept connections without health checks."""

    engines: ClassVar[Mapping[str, str]] = ENGINES

    def __init__(self, config: Config) -> None:
        """Add the database."""
        super().__init__(config, bg_options(config), CONN_MAX_AGE=None)


class Run(Plain):
    """A unit of work, which is run again if that is safe."""

    def _request(self, key: Key) -> None:
        run(add_row, self.alias, key, using=self.alias)

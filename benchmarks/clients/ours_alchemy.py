"""SQLAlchemy's ORM on bgpool's dialects: another driver in the URL, and units of work."""

from __future__ import annotations

from benchmarks.clients import Config
from benchmarks.clients.alchemy import Orm, add_row, engine_of
from benchmarks.clients.ours import bg_options, helpers, is_ready
from bgpool.integrations.sqlalchemy import run
from bgpool.lab.ledger import Key

__all__ = ["Plain", "Run", "helpers", "is_ready"]


class Plain(Orm):
    """``with Session.begin()``."""

    def __init__(self, config: Config) -> None:
        """Make the engine."""
        super().__init__(engine_of(config, "bgpool", connect_args=bg_options(config)))


class Run(Plain):
    """A unit of work, which is run again if that is safe."""

    def write(self, key: Key) -> None:
        """See Client."""
        run(self.sessions, add_row, key)

"""The database engines."""

from __future__ import annotations

from enum import Enum

__all__ = ["Engine"]


class Engine(Enum):
    """What kind of server a DSN leads to; the value is the scheme of its URLs."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"

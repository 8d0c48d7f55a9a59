"""The database engines."""

from __future__ import annotations

from enum import Enum

__all__ = ["Engine"]


class Engine(Enum):
    """The database engine of a DSN. The value is the scheme of its URLs."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"

"""A server with what SQLAlchemy's tests want to find on it: a user who may do anything, a database, two schemas."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bgpool.lab import Pair, Server
from bgpool.lab.binaries import DEBIAN_ROOT

__all__ = ["PLAIN", "Servers", "servers", "with_contrib"]

PLAIN: Final = {"postgresql": "psycopg", "mysql": "pymysql"}
"""The driver's name in the URL of the dialect that bgpool's is derived from."""

_POSTGRESQL: Final = (
    "CREATE ROLE scott LOGIN SUPERUSER PASSWORD 'tiger'",
    "CREATE DATABASE test OWNER scott",
    "ALTER DATABASE test SET default_text_search_config = 'pg_catalog.english'",
)
_IN_DATABASE: Final = (
    "CREATE SCHEMA test_schema",
    "CREATE SCHEMA test_schema_2",
    # Of the operating system's locales, which a slim one lacks.
    'CREATE COLLATION IF NOT EXISTS pg_catalog."en_US" FROM "C"',
)
_EXTENSIONS: Final = "SELECT name FROM pg_available_extensions WHERE name IN ('citext', 'hstore')"
_MYSQL: Final = (
    "CREATE USER scott IDENTIFIED BY 'tiger'",
    "GRANT ALL ON *.* TO scott WITH GRANT OPTION",
    "CREATE DATABASE test CHARACTER SET utf8mb4",
    "CREATE DATABASE test_schema CHARACTER SET utf8mb4",
    "CREATE DATABASE test_schema_2 CHARACTER SET utf8mb4",
)


class Servers:
    """A pair, of which the tests use blue.

    Attributes:
        engine: ``postgresql`` or ``mysql``.
        blue, green: Their addresses.
    """

    def __init__(self, pair: Pair) -> None:
        """Of *pair*, which is open and prepared."""
        self.engine: Final = pair.engine.value
        self.blue: Final = pair.blue.address
        self.green: Final = pair.green.address
        self._port: Final = pair.port

    def url(self, driver: str, **query: str) -> str:
        """The URL of a run with *driver*."""
        query = ({"charset": "utf8mb4"} if self.engine == "mysql" else {}) | query
        options = "&".join(f"{name}={value}" for name, value in query.items())
        return f"{self.engine}+{driver}://scott:tiger@{self.blue}:{self._port}/test?{options}"


@contextlib.contextmanager
def servers(engine: str) -> Iterator[Servers]:
    """Start a pair and prepare it."""
    if engine == "postgresql":
        with Pair(settings={"max_prepared_transactions": "20"}, programs=with_contrib()) as pair:
            _prepare(pair.blue, _POSTGRESQL)
            _prepare(pair.blue, _IN_DATABASE, "test")
            for (name,) in pair.blue.execute(_EXTENSIONS):
                pair.blue.execute(f"CREATE EXTENSION {name}", database="test")
            pair.green.stop("immediate")  # no client connects to it
            yield Servers(pair)
    else:
        with Pair(engine="mysql") as pair:
            _prepare(pair.blue, _MYSQL)
            pair.green.stop("immediate")
            yield Servers(pair)


def _prepare(server: Server, statements: tuple[str, ...], database: str = "") -> None:
    for statement in statements:
        server.execute(statement, database=database)


def with_contrib() -> str | None:
    """An installed PostgreSQL that has hstore and citext, which the wheel's has not; else the lab's choice."""
    found = any(Path("/usr/share/postgresql").glob("*/extension/hstore.control"))
    named = os.environ.get("BGPOOL_LAB_POSTGRESQL")
    return "path" if found and DEBIAN_ROOT.is_dir() and not named else None

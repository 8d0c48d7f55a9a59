"""A client of a lab's server that is the same for both engines."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pymysql

from bgpool.core.engine import Engine
from bgpool.lab import Pair, Server
from bgpool.lab.pair import MONITOR_ROLE
from bgpool.mysql import BoundedConnection, code_of


class Refused(Exception):
    """The error of the server or of the driver; *code* is the SQLSTATE, or MySQL's number."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.code = error.sqlstate if isinstance(error, psycopg.Error) else code_of(error)


class Client(contextlib.AbstractContextManager["Client"]):
    """One connection, in autocommit."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(sql, params or None)
                return list(cursor.fetchall()) if cursor.description else []
        except (psycopg.Error, pymysql.MySQLError) as error:
            raise Refused(error) from error

    def close(self) -> None:
        """Close the connection; idempotent."""
        with contextlib.suppress(psycopg.Error, pymysql.MySQLError):
            self.connection.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    pair: Pair, server: Server, *, host: str = "", user: str = "", password: str = "", name: str = "test"
) -> Client:
    """Connect to *server* as an application does, with the pair's DSN except for the arguments given.

    Args:
        pair: The server's pair.
        server: The server whose address is used, whatever the name.
        host: The name that certificates are checked for; empty for the server's address.
        user: The user; empty for the DSN's.
        password: The password; empty for the DSN's.
        name: The name of the application.
    """
    dsn = urlsplit(pair.dsn_of(host or server.address))
    place = {"user": user or dsn.username, "password": password or dsn.password or "", "host": dsn.hostname}
    options = {key: values[0] for key, values in parse_qs(dsn.query).items() if key != "connect_timeout"}
    try:
        if pair.engine is Engine.POSTGRESQL:
            postgres: dict[str, Any] = place | options
            return Client(
                psycopg.connect(
                    **postgres, hostaddr=server.address, port=pair.port, dbname="app", application_name=name,
                    autocommit=True, connect_timeout=5,
                )
            )  # fmt: skip
        tls = {"ssl_ca": options["ssl_ca"], "ssl_verify_identity": True} if options else {"ssl_disabled": True}
        # The monitor's role has no privileges on any database.
        mysql: dict[str, Any] = place | tls | {"database": None if user == MONITOR_ROLE else "app"}
        return Client(
            BoundedConnection(
                **mysql, address=server.address, port=pair.port, program_name=name, autocommit=True, connect_timeout=5,
                read_timeout=10,
            )
        )  # fmt: skip
    except (psycopg.Error, pymysql.MySQLError) as error:
        raise Refused(error) from error

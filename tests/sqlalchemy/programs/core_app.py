"""A WSGI application on SQLAlchemy Core: an engine that is made, and used, when the module loads."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import create_engine, text

from bgpool.integrations.sqlalchemy import run
from tests.sqlalchemy.programs.common import insert, url

engine = create_engine(url(), pool_size=2, max_overflow=2)

with engine.connect() as connection:
    connection.execute(text("SELECT 1"))


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """``/plain`` and ``/run``, as in the Flask application."""
    key = [int(value) for value in urllib.parse.parse_qs(environ["QUERY_STRING"])["key"][0].split(".")]
    if environ["PATH_INFO"] == "/run":
        run(engine, insert, *key)
    else:
        with engine.begin() as connection:
            insert(connection, *key)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

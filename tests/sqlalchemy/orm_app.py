"""The application whose servers are compared in a switchover: a row per request, written through SQLAlchemy's ORM.

Which URL it uses, and whether it uses units of work, is the contestant's of the benchmarks that APP_CLIENT names.
"""

from __future__ import annotations

import logging
import os
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy.exc import DBAPIError

import bgpool
from benchmarks.clients import CLIENTS, Config

# What the application's log is: whatever any library says.
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

client = CLIENTS[os.environ["APP_CLIENT"]].make(
    Config(
        os.environ["APP_DSN"],
        addresses=("", ""),
        resolver=os.environ["APP_RESOLVER"],
        bg_id="servers",
        baseline_ms=500,
        size=4,
        directory=os.environ["APP_DIRECTORY"],
    )
)


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The application for gunicorn. A failed request is answered with 503, and is not a bug."""
    worker, thread, n = urllib.parse.parse_qs(environ["QUERY_STRING"])["key"][0].split(".")
    try:
        client.write((int(worker), int(thread), int(n)))
    except (DBAPIError, bgpool.Error) as error:
        status, text = "503 Service Unavailable", f"{type(error).__name__}: {error}"
    else:
        status, text = "200 OK", str(os.getpid())
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

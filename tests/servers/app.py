"""The application of every server in these tests: a row per request, with a pool made at import, as users write it."""

from __future__ import annotations

import asyncio
import os
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bgpool
from bgpool.lab.ledger import INSERT_SQL

pool = bgpool.get_pool(
    os.environ["APP_DSN"],
    bg_id="servers",
    bg_resolver=os.environ["APP_RESOLVER"],
    bg_interval_baseline_ms=500,
    bg_interval_increased_ms=500,
    min_size=1,
    max_size=2,
)

#: Used only by asgi(). In the loop's own executor, held callers would delay all other callers.
threads = ThreadPoolExecutor(8)

if os.environ.get("APP_WARM_UP"):
    # Some applications query the database at import. With a preloading server, this happens in the master.
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def insert(connection: Any, *key: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(INSERT_SQL, key)


def serve(query: str) -> str:
    """Write the row whose key is in *query*; return the id of the process that wrote it."""
    key = [int(value) for value in urllib.parse.parse_qs(query)["key"][0].split(".")]
    pool.run(insert, *key)
    return str(os.getpid())


def wsgi(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """For gunicorn and uWSGI."""
    body = serve(environ["QUERY_STRING"]).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    """For uvicorn, with a blocking pool: calls run in threads that do nothing else."""
    if scope["type"] != "http":
        return
    query = scope["query_string"].decode()
    body = (await asyncio.get_running_loop().run_in_executor(threads, serve, query)).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""A FastAPI application as users write it: units of work, plain blocks, and an endpoint that needs no database."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import psycopg
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import bgpool
from bgpool.integrations.fastapi import connection
from bgpool.lab.ledger import INSERT_SQL

pool = bgpool.get_async_pool(
    os.environ["APP_DSN"],
    bg_id="servers",
    bg_resolver=os.environ["APP_RESOLVER"],
    bg_interval_baseline_ms=500,
    bg_interval_increased_ms=500,
)
Connection = Annotated[psycopg.AsyncConnection, connection(pool)]


async def warm_up() -> None:
    """Query the database at import; with a preloading server, this happens in the master."""
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")


if os.environ.get("APP_WARM_UP"):
    asyncio.run(warm_up())


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


app = FastAPI(lifespan=lifespan, default_response_class=PlainTextResponse)


async def insert(conn: psycopg.AsyncConnection[Any], key: str) -> None:
    await conn.execute(INSERT_SQL, [int(part) for part in key.split(".")])


@app.get("/run")
async def run(key: str) -> str:
    """Write the row in a unit of work."""
    await pool.run(insert, key)
    return str(os.getpid())


@app.get("/block")
async def block(key: str, conn: Connection) -> str:
    """Write the row in a transaction that ends with the endpoint."""
    await insert(conn, key)
    return str(os.getpid())


@app.get("/ping")
async def ping() -> str:
    """Answer without the database."""
    return str(os.getpid())

"""A rehearsed asynchronous application: a row per request."""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from fastapi import FastAPI

import bgpool

pool = bgpool.get_async_pool(os.environ["DATABASE_URL"], bg_id="shop", bg_interval_increased_ms=500)


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
@bgpool.transactional(pool)
async def order(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("INSERT INTO orders (item) VALUES ('tea')")

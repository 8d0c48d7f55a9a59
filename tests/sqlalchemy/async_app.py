"""A FastAPI application with AsyncSessions, as users write it: units of work, plain transactions, and no database."""

import os
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from bgpool.integrations.sqlalchemy import arun

INSERT = text("INSERT INTO ledger (worker, thread, n) VALUES (:worker, :thread, :n)")


def url() -> URL:
    """Blue's, with what a test asks for."""
    own = {"bg_id": "servers", "bg_resolver": os.environ["APP_RESOLVER"]}
    intervals = dict.fromkeys(("bg_interval_baseline_ms", "bg_interval_increased_ms"), "500")
    return make_url(os.environ["APP_DSN"]).set(drivername="postgresql+bgpool").update_query_dict({**own, **intervals})


engine = create_async_engine(url(), pool_size=8, max_overflow=0)
Session = async_sessionmaker(engine, expire_on_commit=False)

app = FastAPI(default_response_class=PlainTextResponse)


async def insert(session: AsyncSession, key: str) -> None:
    parts: list[Any] = [int(part) for part in key.split(".")]
    await session.execute(INSERT, dict(zip(("worker", "thread", "n"), parts, strict=True)))


@app.get("/run")
async def run(key: str) -> str:
    """A unit of work."""
    await arun(Session, insert, key)
    return str(os.getpid())


@app.get("/block")
async def block(key: str) -> str:
    """A plain transaction."""
    async with Session.begin() as session:
        await insert(session, key)
    return str(os.getpid())


@app.get("/ping")
async def ping() -> str:
    """No database."""
    return str(os.getpid())

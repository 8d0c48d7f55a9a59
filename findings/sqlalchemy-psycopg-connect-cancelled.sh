#!/usr/bin/env bash
# SQLAlchemy (asyncio): a cancelled connect of psycopg keeps its socket until the garbage collector runs.
#
# Versions: SQLAlchemy 2.1.9, psycopg 3.3.9, asyncpg 0.32.0, Python 3.11. The server is a listener that accepts
#   connections and sends nothing.
# Behaviour: when a task is cancelled, or its timeout runs out, while AsyncEngine.connect() waits for the server,
#   AsyncConnection.connect() of psycopg relies on the reference count to close the socket that it has opened. Without
#   SQLAlchemy this happens at once. With SQLAlchemy a reference cycle of greenlets and frames keeps the socket. A
#   process that waits for its database allocates little, so the collector may not run for a long time. The server has a
#   connection for each attempt, during an outage of all times, and the engine's pool counts none of them.
# Expected: the socket is closed when connect() has ended, as with asyncpg, and with psycopg without SQLAlchemy.
# Seen: psycopg alone: closed 2 s later; SQLAlchemy on asyncpg: closed 2 s later;
#   SQLAlchemy on psycopg: open 2 s later, closed after gc.collect()
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "asyncpg==0.32.0" "sqlalchemy[asyncio]==2.1.9"
"$work/venv/bin/python" - <<'PY'
import asyncio
import gc

import psycopg
from sqlalchemy.ext.asyncio import create_async_engine


async def attempt(driver):
    """Whether the server's side of a connect that ran into a timeout is closed: 2 s later, and after a collection."""
    opened, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        opened.set()
        try:
            while await reader.read(4096):
                pass
        except ConnectionResetError:
            pass
        closed.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        if driver is None:
            connect = psycopg.AsyncConnection.connect(f"host=127.0.0.1 port={port} user=app sslmode=disable")
        else:
            engine = create_async_engine(f"postgresql+{driver}://app@127.0.0.1:{port}/app")
            connect = engine.connect().start()
        gc.collect()
        task = asyncio.ensure_future(connect)
        del connect
        await asyncio.wait_for(opened.wait(), 10)
        await asyncio.sleep(0.5)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(result, asyncio.CancelledError), result
        del task, result
        await asyncio.sleep(2)
        seen = [closed.is_set()]
        gc.collect()
        await asyncio.sleep(0.5)
        return *seen, closed.is_set()


seen = []
for driver in (None, "asyncpg", "psycopg"):
    seen.append(asyncio.run(attempt(driver)))
    name = f"SQLAlchemy on {driver}" if driver else "psycopg alone"
    later, collected = ("closed" if is_closed else "open" for is_closed in seen[-1])
    print(f"{name}: {later} 2 s later, {collected} after gc.collect()")
if seen != [(True, True), (True, True), (False, True)]:
    raise SystemExit("the behaviour has changed")
PY

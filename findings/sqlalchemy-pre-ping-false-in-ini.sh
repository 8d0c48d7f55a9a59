#!/usr/bin/env bash
# SQLAlchemy: engine_from_config, which Alembic uses for alembic.ini, takes "pool_pre_ping = false" for true.
#
# Versions: SQLAlchemy 2.1.9 and 2.0.58, Python 3.11.
# Behaviour: engine_from_config converts the texts of an ini file by DefaultDialect.engine_config_types, which has
#   pool_size, pool_timeout, pool_recycle, max_overflow, echo, echo_pool and future, but neither pool_pre_ping nor
#   pool_use_lifo. These two reach the pool as strings, and the strings "false", "0" and "no" are true.
# Expected: no ping, and first in, first out, just as "echo = false" turns the echo off.
# Seen: pool_pre_ping = false: the pool pings before each checkout; pool_use_lifo = false: last in, first out
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv "$work/venv"
for version in 2.1.9 2.0.58; do
    "$work/venv/bin/pip" -q install "sqlalchemy==$version"
    "$work/venv/bin/python" - <<'PY'
import configparser

import sqlalchemy
from sqlalchemy import QueuePool, engine_from_config, event

ini = configparser.ConfigParser()
ini.read_string(
    "[alembic]\n"
    "sqlalchemy.url = sqlite://\n"
    "sqlalchemy.echo = false\n"
    "sqlalchemy.pool_pre_ping = false\n"
    "sqlalchemy.pool_use_lifo = false\n"
)
engine = engine_from_config(dict(ini["alembic"]), "sqlalchemy.", poolclass=QueuePool)
pings = []
ping = engine.dialect.do_ping
engine.dialect.do_ping = lambda connection: pings.append(1) or ping(connection)
for _ in range(3):
    with engine.connect():
        pass
pinged = len(pings) > 0
lifo = bool(engine.pool._pool.use_lifo)
print(f"{sqlalchemy.__version__}: echo {engine.echo}, pings {len(pings)} in 3 checkouts, last in first out: {lifo}")
if engine.echo or not pinged or not lifo:
    raise SystemExit("the behaviour has changed")
PY
done

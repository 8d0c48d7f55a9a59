#!/usr/bin/env bash
# SQLAlchemy: after the system clock was set back, the pool hands out connections that it has invalidated, or opens a new
# one at every checkout.
#
# Versions: SQLAlchemy 2.1.9, Python 3.11, SQLite (no server is needed).
# Behaviour: when a statement fails because its connection is dead, SQLAlchemy invalidates the other connections of the
#   pool too. It does so by storing time.time() in Pool._invalidate_time; a checkout replaces a connection whose starttime,
#   also time.time(), is earlier (sqlalchemy/pool/base.py). If the clock is set back between a connect and the
#   invalidation, the dead connections count as newer than the invalidation. If it is set back after the invalidation, new
#   connections count as older than it, and none is used twice until the clock has caught up.
# Expected: a clock that is set back changes nothing: one error, and one connect for each connection of the pool.
# Seen, with a pool of 3 connections that have all died, and a clock that is set back by an hour:
#   clock left alone: 1 error, 3 connects in 100 checkouts
#   set back before the first error: 3 errors
#   set back after the first error: 100 connects in 100 checkouts
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "sqlalchemy==2.1.9"
"$work/venv/bin/python" - <<'PY'
import time

from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.pool import QueuePool

real, step = time.time, 0.0
time.time = lambda: real() + step


def dead_pool():
    """An engine with three idle connections that have died."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=3)
    conns = [engine.connect() for _ in range(3)]
    drivers = [conn.connection.driver_connection for conn in conns]
    for conn in conns:
        conn.close()
    for driver in drivers:
        driver.close()
    time.sleep(0.02)
    return engine


def select(engine):
    """Whether it failed."""
    try:
        with engine.connect() as conn:
            conn.execute(text("SELECT 1"))
    except exc.DBAPIError as error:
        assert error.connection_invalidated
        return True
    return False


def trial(before, after):
    """Errors, and connects after the first error, with the clock set back by *before* and then by *after* seconds."""
    global step
    step = 0.0
    engine = dead_pool()
    step = -before
    errors = [select(engine)]
    time.sleep(0.02)
    step = -before - after
    connects = []
    event.listen(engine, "connect", lambda *_: connects.append(1))
    errors += [select(engine) for _ in range(100)]
    return sum(errors), len(connects)


seen = {name: trial(*steps) for name, steps in {"left alone": (0, 0), "before": (3600, 0), "after": (0, 3600)}.items()}
for name, (errors, connects) in seen.items():
    print(f"clock {name}: {errors} errors, {connects} connects in 100 checkouts")
if (seen["left alone"], seen["before"][0], seen["after"][1]) != ((1, 3), 3, 100):
    raise SystemExit("the behaviour has changed")
PY

#!/usr/bin/env bash
# psycopg_pool: close(timeout) takes timeout for each worker thread, and closes nothing until then.
#
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, Python 3.11.
# Behaviour: ConnectionPool.close(timeout) joins its worker threads one after the other, each for up to timeout seconds,
#   before it closes idle connections and fails waiting callers. With the defaults (three workers, 5 s), and a server that
#   accepts connections and does not answer, close() takes 15 s.
# Expected: close(timeout=0.5) returns after about 0.5 s ("Wait timeout seconds for threads to terminate their job").
# Seen: close(timeout=0.5) took 1.5 s
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "psycopg-pool==3.3.3"
"$work/venv/bin/python" - <<'PY'
import logging
import os
import socket
import time

from psycopg_pool import ConnectionPool

logging.disable()
with socket.create_server(("127.0.0.1", 0)) as silent:
    place = f"host=127.0.0.1 port={silent.getsockname()[1]} connect_timeout=10"
    pool = ConnectionPool(place, min_size=3, max_size=3, open=True)
    accepted = [silent.accept() for _ in range(3)]
    began = time.monotonic()
    pool.close(timeout=0.5)
    took_s = time.monotonic() - began
print(f"close(timeout=0.5) took {took_s:.1f} s")
# Skip the exit handlers, because the threads are still connecting.
os._exit(0 if 1.4 <= took_s < 3 else 1)
PY

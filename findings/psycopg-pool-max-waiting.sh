#!/usr/bin/env bash
# psycopg_pool: a caller whose getconn() has timed out still counts towards max_waiting.
#
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, Python 3.11.
# Behaviour: ConnectionPool._getconn_unchecked() leaves the place of a caller in the queue when its wait ends with
#   PoolTimeout; it is only taken out when the next connection arrives. Until then get_stats()["requests_waiting"]
#   counts it. While the server is away no connection arrives, so after max_waiting timeouts every further getconn()
#   fails at once with TooManyRequests, although no caller waits.
# Expected: the second call, alone, waits and ends with PoolTimeout as the first did.
# Seen: PoolTimeout / TooManyRequests: the pool 'pool-1' has already 1 requests waiting / requests_waiting 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "psycopg[binary]==3.3.9" "psycopg-pool==3.3.3"
"$work/venv/bin/python" - <<'PY'
import logging

from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests

logging.disable()
said = []
# No process listens on port 1.
with ConnectionPool("host=127.0.0.1 port=1", min_size=1, max_size=1, max_waiting=1, open=False) as pool:
    for _ in range(2):
        try:
            pool.getconn(timeout=0.2)
        except (PoolTimeout, TooManyRequests) as error:
            said.append(type(error).__name__)
            print(f"{type(error).__name__}: {error}")
    waiting = pool.get_stats()["requests_waiting"]
    print("requests_waiting", waiting)
if said != ["PoolTimeout", "TooManyRequests"] or waiting != 1:
    raise SystemExit("the behaviour has changed")
PY

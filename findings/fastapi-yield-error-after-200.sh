#!/usr/bin/env bash
# FastAPI: the client gets 200 although the COMMIT behind the yield of a dependency fails, after the response.
#
# Versions: FastAPI 0.117.1, 0.118.0 and 0.165.0, Python 3.11. No server is needed: the script is the ASGI server.
# Behaviour: since 0.118, for the sake of StreamingResponse, the code behind the yield of a dependency runs after the
#   response. An exception in it, such as that of a COMMIT, reaches the server but not the client. An HTTPException
#   there is replaced by RuntimeError ("response already started"). 0.117 sends the error. In 0.165 a dependency sends
#   it with Depends(..., scope="function"), which is not the default.
# Expected: an error, as before: nothing was written.
# Seen: 0.117.1: 500 for an exception, 503 for HTTPException(503)
#   0.118.0 and 0.165.0: 200 for both; 0.165.0 with scope="function": 500 and 503
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv "$work/venv"
for version in 0.117.1 0.118.0 0.165.0; do
    "$work/venv/bin/pip" -q install "fastapi==$version"
    "$work/venv/bin/python" - <<'PY'
import asyncio

import fastapi
from fastapi import Depends, FastAPI, HTTPException


async def broken():
    yield
    raise RuntimeError("COMMIT has failed")


async def refused():
    yield
    raise HTTPException(503, "COMMIT has failed")


async def ask(app):
    """The status that a client gets."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST"}
    scope |= {"path": "/orders", "raw_path": b"/orders", "root_path": "", "query_string": b"", "headers": []}
    try:
        await app(scope, receive, send)
    except RuntimeError as error:
        print(f"  the server's log: {error}")
    return sent[0]["status"]


def statuses(**options):
    found = []
    for dependency in (broken, refused):
        app = FastAPI()

        @app.post("/orders", dependencies=[Depends(dependency, **options)])
        async def order():
            return "ordered"

        found.append(asyncio.run(ask(app)))
    print(f"{fastapi.__version__} {options or ''}: {found}")
    return found


expected = [500, 503] if fastapi.__version__.startswith("0.117.") else [200, 200]
if statuses() != expected:
    raise SystemExit("the behaviour has changed")
if fastapi.__version__ == "0.165.0" and statuses(scope="function") != [500, 503]:
    raise SystemExit("the behaviour has changed")
PY
done

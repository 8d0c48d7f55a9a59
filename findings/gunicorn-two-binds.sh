#!/usr/bin/env bash
# gunicorn: with more than one bind a request may be killed after little more than half of --timeout.
#
# Versions: gunicorn 23.0.0 and 27.0.1, sync worker, Python 3.11.
# Behaviour: with one bind the worker notifies the arbiter just before it accepts a request. With two binds its last
#   notification is before it waits for a request, for up to half of the timeout, so that the arbiter counts this wait as
#   part of the request.
# Expected: 200 from both.
# Seen, with --timeout 8 and a request of 6.5 s that comes 3.5 s after the worker's start: one bind answers 200; with two
#   binds the worker is killed ("WORKER TIMEOUT") and the client gets a 500.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/app.py" <<'PROGRAM'
import time

def app(environ, start_response):
    time.sleep(6.5)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
PROGRAM
cat >"$work/try.py" <<'PROGRAM'
import http.client, socket, subprocess, sys, tempfile, time
from importlib.metadata import version

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

def ask(binds):
    ports = [free_port() for _ in range(binds)]
    options = [word for port in ports for word in ("-b", f"127.0.0.1:{port}")]
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "gunicorn", "--timeout", "8", *options, "app:app"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 20
            while "Booting worker" not in (log.seek(0), log.read())[1]:
                assert time.monotonic() < deadline, "gunicorn did not start"
                time.sleep(0.1)
            time.sleep(3.5)
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=20)
            try:
                connection.request("GET", "/")
                answer = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                answer = type(error).__name__
            killed = "WORKER TIMEOUT" in (log.seek(0), log.read())[1]
            print(f"gunicorn {version('gunicorn')}, {binds} bind(s): {answer} after {time.monotonic() - began:.1f} s, killed: {killed}")
            return answer == 200
        finally:
            server.terminate()
            server.wait(20)

sys.exit(0 if (ask(1), ask(2)) == (True, False) else 1)
PROGRAM
for version in 23.0.0 27.0.1; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$work/$version" "gunicorn==$version"
    (cd "$work" && PYTHONPATH="$work/$version:$work" "$python" try.py)
done

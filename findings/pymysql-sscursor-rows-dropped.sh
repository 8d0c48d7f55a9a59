#!/usr/bin/env bash
# PyMySQL: a loop over an unbuffered cursor ends early, without an error, where another statement runs in between.
#
# Versions: PyMySQL 1.1.3 and 1.2.4, Python 3.11. The server is a fake that accepts every login.
# Behaviour: the statement on the same connection drops the rows of the SSCursor that were not read. The only sign is a
#   UserWarning that does not name the cursor, and Python shows it once for each line of code.
# Expected: an error when the loop continues, such as mysqlclient's ProgrammingError 2014, "Commands out of sync".
# Seen: "read 2 of 5 rows, then: the end".
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/loop.py" <<'PROGRAM'
import socket, struct, sys, threading, warnings
from importlib.metadata import version

import pymysql
from pymysql.cursors import SSCursor

HELLO = (
    b"\x0a8.0.0\0" + struct.pack("<I", 7) + b"x" * 8 + b"\0" + struct.pack("<HBHHB", 0xA208, 45, 2, 0x0008, 21)
    + b"\0" * 10 + b"y" * 12 + b"\0mysql_native_password\0"
)
OK, END = b"\0\0\0\2\0\0\0", b"\xfe\0\0\2\0"
COLUMN = b"\3def\0\0\0\1n\0\x0c" + struct.pack("<HIBHBH", 45, 4, 253, 0, 0, 0)


def send(client, number, *bodies):
    for at, body in enumerate(bodies, number):
        client.sendall(struct.pack("<I", len(body))[:3] + bytes([at % 256]) + body)


def serve(listener):
    client = listener.accept()[0]
    send(client, 0, HELLO)
    while head := client.recv(4, socket.MSG_WAITALL):
        body = client.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)
        if body[1:].startswith(b"SELECT"):
            rows = [b"\1%d" % n for n in range(1, 6)]
            send(client, 1, b"\1", COLUMN, END, *rows, END)
        else:
            send(client, head[3] + 1, OK)


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
warnings.simplefilter("ignore")
connection = pymysql.connect(host="127.0.0.1", port=listener.getsockname()[1], user="x", read_timeout=5)
cursor = connection.cursor(SSCursor)
cursor.execute("SELECT n")
read, then = [], "the end"
try:
    for row in cursor:
        read.append(row)
        if len(read) == 2:
            connection.cursor().execute("DO 1")
except Exception as error:
    then = repr(error)
print(f"PyMySQL {version('PyMySQL')}: read {len(read)} of 5 rows, then: {then}")
sys.exit((len(read), then) != (2, "the end"))
PROGRAM
for version in 1.1.3 1.2.4; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/$version" "PyMySQL==$version"
    PYTHONPATH="$work/$version" "$python" "$work/loop.py"
done

#!/usr/bin/env bash
# PyMySQL: a login that needs the package cryptography raises RuntimeError, which is not a pymysql.Error.
#
# Versions: PyMySQL 1.2.4, Python 3.11.
# Behaviour: without TLS and without the package, caching_sha2_password (the default of MySQL 8 and 9) works for as long
#   as the server has the password in its cache. Without it (after a restart or FLUSH PRIVILEGES, or on another server)
#   connect() raises RuntimeError, which bypasses every "except pymysql.Error" and "except OperationalError" around it.
# Expected: an OperationalError, as for every other login that fails.
# Seen: cached: a login works / not cached: RuntimeError: 'cryptography' package is required ... / pymysql.Error: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "PyMySQL==1.2.4"
"$work/venv/bin/python" - <<'PY'
import contextlib
import socket
import struct
import threading

import pymysql

# The greeting of a MySQL server: its version, the default plugin, no TLS.
HELLO = (
    b"\x0a9.7.4\0" + struct.pack("<I", 7) + b"x" * 8 + b"\0" + struct.pack("<HBHHB", 0xA208, 45, 2, 0x0008, 21)
    + b"\0" * 10 + b"y" * 12 + b"\0caching_sha2_password\0"
)
OK = b"\0\0\0\2\0\0\0"
cached = True


def send(client, number, body):
    client.sendall(struct.pack("<I", len(body))[:3] + bytes([number]) + body)


def receive(client):
    head = client.recv(4, socket.MSG_WAITALL)
    client.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)
    return head[3]


def serve():
    while True:
        client = listener.accept()[0]
        with contextlib.suppress(OSError, IndexError), client:
            send(client, 0, HELLO)
            number = receive(client)
            if cached:
                send(client, number + 1, b"\x01\x03")
                send(client, number + 2, OK)
                while True:
                    send(client, receive(client) + 1, OK)
            send(client, number + 1, b"\x01\x04")
            send(client, receive(client) + 1, b"\x01a public key")
            receive(client)


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, daemon=True).start()
place = {"host": "127.0.0.1", "port": listener.getsockname()[1], "user": "app", "password": "secret"}
pymysql.connect(**place).close()
print("cached: a login works")
cached = False
try:
    pymysql.connect(**place)
except Exception as error:
    print(f"not cached: {type(error).__name__}: {error}")
    print("pymysql.Error:", isinstance(error, pymysql.Error))
    if type(error) is RuntimeError:
        raise SystemExit(0)
raise SystemExit("the behaviour has changed")
PY

#!/usr/bin/env bash
# PyMySQL: after LOAD DATA LOCAL is interrupted in the middle of the file, the server commits half of it in autocommit.
#
# Versions: PyMySQL 1.1.3 and 1.2.4, Python 3.11. The server is a fake that accepts every login.
# Behaviour: an interrupt (a signal's exception, Ctrl-C, gevent's Timeout) makes PyMySQL tell the server that the file is
#   complete. A statement whose connection was cut raises AttributeError, not a pymysql.err.Error.
# Expected: the connection is closed, which makes MySQL 9.7 and MariaDB 11.8 roll the statement back; OperationalError.
# Seen: "interrupted: the server was sent 65536 bytes and the end of the file" and "cut: AttributeError".
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/load.py" <<'PROGRAM'
import os, signal, socket, struct, sys, tempfile, threading
from importlib.metadata import version

import pymysql

HELLO = (
    b"\x0a8.0.0\0" + struct.pack("<I", 7) + b"x" * 8 + b"\0" + struct.pack("<HBHHB", 0xA208, 45, 2, 0x0008, 21)
    + b"\0" * 10 + b"y" * 12 + b"\0mysql_native_password\0"
)
OK = b"\0\0\0\2\0\0\0"


def send(client, number, body):
    client.sendall(struct.pack("<I", len(body))[:3] + bytes([number]) + body)


def receive(client):
    head = client.recv(4, socket.MSG_WAITALL)
    return (client.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL), head[3]) if head else (None, 0)


def serve(client, path, cut, told):
    send(client, 0, HELLO)
    body, number = receive(client)
    while body is not None:
        if not body[1:].startswith(b"LOAD"):
            send(client, number + 1, OK)
        else:
            send(client, number + 1, b"\xfb" + path.encode())
            if cut:
                receive(client)
                client.shutdown(socket.SHUT_RDWR)
                client.close()
                return
            size = 0
            while piece := receive(client)[0]:
                size += len(piece)
            if piece is not None:
                told.append(f"the server was sent {size} bytes and the end of the file")
            return
        body, number = receive(client)


def load(path, cut):
    listener, told = socket.create_server(("127.0.0.1", 0)), []
    thread = threading.Thread(target=lambda: serve(listener.accept()[0], path, cut, told))
    thread.start()
    client = pymysql.connect(port=listener.getsockname()[1], host="127.0.0.1", user="x", local_infile=True, read_timeout=2)
    try:
        client.cursor().execute("LOAD DATA")
    except Exception as error:
        told.append(type(error).__name__)
    client._force_close()
    thread.join()
    return told


class Interrupt(Exception):
    pass


def interrupt(*_):
    raise Interrupt


with tempfile.TemporaryDirectory() as here:
    pipe, large = os.path.join(here, "pipe"), os.path.join(here, "large")
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    threading.Thread(target=os.write, args=(writer, b"x" * 65536), daemon=True).start()
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(1)
    interrupted = load(pipe, cut=False)
    with open(large, "wb") as file:
        file.truncate(100_000_000)
    cut = load(large, cut=True)
print(f"PyMySQL {version('PyMySQL')}: interrupted: {interrupted[0]}; cut: {cut[0]}")
sys.exit(not ("end of the file" in interrupted[0] and cut[0] == "AttributeError"))
PROGRAM
for version in 1.1.3 1.2.4; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/$version" "PyMySQL==$version"
    PYTHONPATH="$work/$version" "$python" "$work/load.py"
done

"""A network that goes silent under two MySQL connections: one has a query to send, the other a COMMIT.

Run as root under ``unshare --net``. Prints how many seconds each connection waited for its error. The server runs in a
separate namespace and accepts every login.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import pymysql

from bgpool.mysql import BoundedConnection

HOST = "10.213.45.1"
#: Longer than the promised time to detect a silent network.
LIMIT_S = 60

SERVER = f"""
import socket, struct, threading
pack = lambda number, body: struct.pack("<I", len(body))[:3] + bytes([number]) + body
HELLO = (
    b"\\x0a8.0.0\\0" + struct.pack("<I", 7) + b"x" * 8 + b"\\0" + struct.pack("<HBHHB", 0xa208, 45, 2, 0x0008, 21)
    + b"\\0" * 10 + b"y" * 12 + b"\\0mysql_native_password\\0"
)
def serve(client):
    client.sendall(pack(0, HELLO))
    while head := client.recv(4, socket.MSG_WAITALL):
        client.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)
        client.sendall(pack(head[3] + 1, b"\\0\\0\\0\\2\\0\\0\\0"))
listener = socket.create_server(("{HOST}", 3306))
print("up", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

NETWORK = f"""
ip link set lo up
ip link add ours type veth peer name theirs
ip link set theirs netns $1
ip addr add 10.213.45.2/30 dev ours
ip link set ours up
nsenter --target $1 --net sh -c 'ip link set lo up; ip addr add {HOST}/30 dev theirs; ip link set theirs up'
"""


def main() -> None:
    with subprocess.Popen(["unshare", "--net", "sleep", "300"]) as place:
        try:
            time.sleep(0.5)
            subprocess.run(["sh", "-ec", NETWORK, "sh", str(place.pid)], check=True)
            inside = ["nsenter", "--target", str(place.pid), "--net"]
            with subprocess.Popen([*inside, sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
                try:
                    assert server.stdout is not None
                    server.stdout.readline()
                    measure([*inside, "ip", "link", "set", "theirs", "down"])
                finally:
                    server.kill()
        finally:
            place.kill()


def measure(silence: list[str]) -> None:
    connections = [BoundedConnection(host=HOST, user="app", read_timeout=3600, write_timeout=60) for _ in range(2)]
    subprocess.run(silence, check=True)
    began = time.monotonic()
    waited: list[float] = []

    def ask(connection: BoundedConnection, sql: str) -> None:
        with contextlib.suppress(pymysql.err.OperationalError):
            connection.query(sql)
            return
        waited.append(time.monotonic() - began)

    callers = [
        threading.Thread(target=ask, args=job, daemon=True)
        for job in zip(connections, ("SELECT 1", "COMMIT"), strict=True)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LIMIT_S)
    print(*(f"{seconds:.1f}" for seconds in waited))


if __name__ == "__main__":
    main()

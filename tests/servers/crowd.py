"""``python -m tests.servers.crowd PORT NUMBER CLIENTS PINGS``: clients of a server, in a separate process.

Each client keeps one connection and sends one request at a time. The first *CLIENTS* clients write rows; the others
request ``/ping``. The process prints a line when every client has had one answer. It runs until standard input ends.
Then it prints its observations: a JSON list of [client, n, began, ended, the answer or null, the error or null].
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic
from typing import Final

#: The pause between two requests of a client that writes, and of a client that pings, in seconds.
PAUSE_S: Final = 0.25
PING_PAUSE_S: Final = 0.01
#: Longer than any hold.
ANSWER_S: Final = 35.0

Note = tuple[int, int, float, float, "str | None", "str | None"]


class Client:
    """A connection that is reopened after the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port: Final = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str) -> str:
        """Send a request and return the body of the answer.

        Raises:
            OSError, EOFError, asyncio.TimeoutError: No answer arrived.
            RuntimeError: The status of the answer is not 200.
        """
        try:
            return await asyncio.wait_for(self._ask(path), ANSWER_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, path: str) -> str:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = (await reader.readexactly(int(headers["content-length"]))).decode()
        if headers.get("connection") == "close":
            self.close()
        if status.split(" ", 2)[1] != "200":
            raise RuntimeError(f"{status}: {body[:200]}")
        return body


async def use(
    stopping: asyncio.Event, port: int, number: int, client: int, path: str, pause_s: float, notes: list[Note]
) -> None:
    """Send requests repeatedly; stop after the current request."""
    connection, n = Client(port), 0
    # Spread the start of the clients.
    await asyncio.sleep(pause_s * (client % 16) / 16)
    while not stopping.is_set():
        n += 1
        began, body, failure = monotonic(), None, None
        try:
            body = await connection.ask(path.format(key=f"{number}.{client}.{n}"))
        except (OSError, EOFError, RuntimeError, asyncio.TimeoutError) as error:
            failure = repr(error)
        notes.append((client, n, began, monotonic(), body, failure))
        await asyncio.sleep(pause_s)
    connection.close()


async def main(port: int, number: int, clients: int, pings: int) -> None:
    """Run until standard input ends."""
    notes: list[Note] = []
    stopping = asyncio.Event()
    paths = ["/block?key={key}", "/run?key={key}"]
    tasks = [use(stopping, port, number, client, paths[client % 2], PAUSE_S, notes) for client in range(clients)]
    tasks += [use(stopping, port, number, clients + n, "/ping", PING_PAUSE_S, notes) for n in range(pings)]
    crowd = asyncio.gather(*tasks)
    while len({client for client, *_ in notes}) < clients + pings:
        await asyncio.sleep(0.05)
    print("begun", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    stopping.set()
    await crowd
    json.dump(notes, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:5])))

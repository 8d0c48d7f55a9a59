"""The data between a client that has logged in and its server."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final

from bgpool.lab.mysql_proxy_wire import FULL_PACKET, HEADER, Packet, length_and_number

__all__ = ["Rewriter", "splice"]

FORWARD_BYTES: Final = 65536
WAITING_BYTES: Final = 1 << 20
"""The largest amount of data of one side that the other has not received before reading pauses."""

NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

COM_QUERY: Final = 0x03


class Rewriter:
    """A replacer of names in the queries of one client; all other data are unchanged."""

    def __init__(self, names: Mapping[bytes, bytes]) -> None:
        """Replace the keys of *names*, in any case, by their values."""
        self._names: Final = {name.lower(): other for name, other in names.items()}
        # The longest first: one name may be the beginning of another.
        longest_first = sorted(map(re.escape, self._names), key=len, reverse=True)
        self._pattern: Final = re.compile(b"|".join(longest_first), re.IGNORECASE)
        self._held: Final = bytearray()
        self._passing = 0  # remaining bytes of a packet that passes unchanged

    def __call__(self, data: bytes) -> bytes:
        """Return the data to forward: all except an incomplete query."""
        if not self._names:
            return data
        self._held.extend(data)
        found = bytearray()
        while piece := self._next():
            found += piece
        return bytes(found)

    def _next(self) -> bytes:
        held = self._held
        if not self._passing:
            if len(held) < HEADER.size:
                return b""
            length, number = length_and_number(held)
            end = HEADER.size + length
            # A command is the first packet of an exchange; later ones are the rest of a long one, or a file's content.
            if not number and 0 < length < FULL_PACKET:
                if len(held) == HEADER.size:
                    return b""
                if held[HEADER.size] == COM_QUERY:
                    return self._query(end) if len(held) >= end else b""
            self._passing = end
        piece = bytes(held[: self._passing])
        del held[: self._passing]
        self._passing -= len(piece)
        return piece

    def _query(self, end: int) -> bytes:
        query = bytes(self._held[HEADER.size : end])
        del self._held[:end]
        other = self._pattern.sub(lambda match: self._names[match[0].lower()], query)
        return Packet(0, other if len(other) < FULL_PACKET else query).encode()


class _Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, convert: Callable[[bytes], bytes]) -> None:
        self.source: Final = source
        self.sink: Final = sink
        self._convert: Final = convert
        self._ended = False
        self.waiting: Final = bytearray()

    @property
    def listening(self) -> bool:
        return not self._ended and len(self.waiting) < WAITING_BYTES

    @property
    def over(self) -> bool:
        """True if the source has closed the connection, and the sink has received everything."""
        return self._ended and not self.waiting

    def move(self) -> None:
        """Read and write all that is possible without waiting."""
        if self.listening:
            with contextlib.suppress(*NOT_NOW):
                data = self.source.recv(FORWARD_BYTES)
                self._ended = not data
                self.waiting.extend(self._convert(data))
        if self.waiting:
            with contextlib.suppress(*NOT_NOW):
                del self.waiting[: self.sink.send(self.waiting[:FORWARD_BYTES])]


def splice(client: socket.socket, backend: socket.socket, rewriter: Rewriter) -> None:
    """Forward data of both sides until one closes the connection. A wait for one does not block the other."""
    for sock in (client, backend):
        sock.setblocking(False)
    flows = _Flow(client, backend, rewriter), _Flow(backend, client, bytes)
    while True:
        # Always before polling: data that TLS has decrypted already do not show on the socket. A record has at most 16
        # KB, so that one read takes all of it.
        for flow in flows:
            flow.move()
        if any(flow.over for flow in flows):
            return
        _wait(flows)


def _wait(flows: tuple[_Flow, _Flow]) -> None:
    """Wait until one of *flows* can move."""
    wanted: dict[socket.socket, int] = {}
    for flow in flows:
        if flow.listening:
            wanted[flow.source] = wanted.get(flow.source, 0) | select.POLLIN
        if flow.waiting:
            wanted[flow.sink] = wanted.get(flow.sink, 0) | select.POLLOUT
    poller = select.poll()
    for sock, events in wanted.items():
        poller.register(sock, events)
    poller.poll()

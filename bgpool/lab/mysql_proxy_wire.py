"""The part of MySQL's protocol that the proxy must understand: packets, both sides of the greeting, and queries.

Source: MySQL's and MariaDB's protocol documentation, "Connection Phase" and "COM_QUERY"; both servers agree on
everything here.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ERROR",
    "FAST_AUTH_OK",
    "FULL_AUTH",
    "FULL_PACKET",
    "HEADER",
    "OK",
    "Greeting",
    "Login",
    "Packet",
    "access_denied",
    "asks_for_tls",
    "auth_switch",
    "length_and_number",
    "proof_of",
    "read_packet",
    "tls_request",
    "user_of",
    "with_transport",
]

#: Offered by servers and accepted by clients.
CONNECT_WITH_DB, COMPRESS, PROTOCOL_41, SSL = 1 << 3, 1 << 5, 1 << 9, 1 << 11
SECURE_CONNECTION, PLUGIN_AUTH, LENENC_AUTH_DATA = 1 << 15, 1 << 19, 1 << 21

#: The first byte of a server's packet in the handshake.
OK, AUTH_SWITCH, ERROR = 0x00, 0xFE, 0xFF

#: The packet of caching_sha2_password that it needs no further data of the client: the only one in the handshake
#: without an answer.
FAST_AUTH_OK: Final = b"\x01\x03"

#: Its packet that it needs the password itself, in clear text over TLS.
FULL_AUTH: Final = b"\x01\x04"

#: The length in two bytes and one, and the number.
HEADER: Final = struct.Struct("<HBB")

#: A packet of this length continues in the next.
FULL_PACKET: Final = 0xFFFFFF

#: No packet before the end of the login is longer. A token of IAM has about 1.5 KB.
HANDSHAKE_BYTES: Final = 65536

#: A client's capabilities, largest packet, character set and 23 bytes that MariaDB uses for more capabilities.
LOGIN_HEAD: Final = struct.Struct("<I28s")


@dataclass(frozen=True)
class Packet:
    """A sequence number, which increases with each packet of either side, and the payload."""

    number: int
    payload: bytes

    def encode(self, shift: int = 0) -> bytes:
        """Return the bytes to send; *shift* corrects the number for a side that has received more or fewer packets."""
        length = len(self.payload)
        return HEADER.pack(length & 0xFFFF, length >> 16, (self.number + shift) % 256) + self.payload

    def answer(self, payload: bytes) -> bytes:
        """Return the bytes of *payload* as an answer to this packet."""
        return Packet(self.number, payload).encode(1)

    @property
    def kind(self) -> int:
        """The first byte.

        Raises:
            ValueError: There is none.
        """
        if not self.payload:
            raise ValueError("an empty packet")
        return self.payload[0]


def read_packet(sock: socket.socket) -> Packet:
    """Return one packet of the handshake, without reading any further byte: the following data may be TLS.

    Raises:
        OSError: The connection ends, or is silent for longer than its timeout.
        ValueError: No such packet is part of a handshake.
    """
    length, number = length_and_number(_read(sock, HEADER.size))
    if length > HANDSHAKE_BYTES:
        raise ValueError(f"{length} bytes in a handshake")
    return Packet(number, _read(sock, length))


def _read(sock: socket.socket, length: int) -> bytes:
    found = b""  # a TLS socket knows no MSG_WAITALL
    while len(found) < length:
        data = sock.recv(length - len(found))
        if not data:
            raise ConnectionError("the connection ended in the handshake")
        found += data
    return found


def length_and_number(header: bytes | bytearray) -> tuple[int, int]:
    """Return the length and number of the packet with this header."""
    low, high, number = HEADER.unpack_from(header)
    return low | high << 16, number


@dataclass(frozen=True)
class Greeting:
    """The first packet of a server.

    Attributes:
        salt: The salt for scrambled passwords.
        plugin: The way of scrambling, if a user has no other.
        has_tls: True if a client may request TLS.
    """

    payload: bytes
    salt: bytes
    plugin: bytes
    has_tls: bool
    _flags_at: int

    @classmethod
    def parse(cls, payload: bytes) -> Greeting:
        """Raises ValueError for a payload that is no greeting."""
        # The protocol's version, the server's as text, and the session's number.
        salt_at = payload.index(0, 1) + 5
        # Eight bytes of salt and a zero; two of flags, six with more flags and other data, ten unused; the other salt.
        flags_at = salt_at + 9
        salt = payload[salt_at : salt_at + 8] + payload[flags_at + 18 : flags_at + 30]
        if len(salt) != 20:
            raise ValueError("a greeting without a salt")
        (flags,) = struct.unpack_from("<H", payload, flags_at)
        # The other salt and the name each end with a zero.
        plugin = payload[flags_at + 31 :].partition(b"\0")[0]
        return cls(payload, salt, plugin, bool(flags & SSL), flags_at)

    def offering(self, *, tls: bool) -> bytes:
        """Return the same of a server with or without *tls*, and without compression, which would hide the queries."""
        at = self._flags_at
        (flags,) = struct.unpack_from("<H", self.payload, at)
        flags = flags & ~(SSL | COMPRESS) | (SSL if tls else 0)
        return self.payload[:at] + struct.pack("<H", flags) + self.payload[at + 2 :]


def asks_for_tls(payload: bytes) -> bool:
    """Return whether a client continues with TLS, in which it repeats this packet."""
    return len(payload) == LOGIN_HEAD.size and bool(payload[1] & SSL >> 8)


def user_of(payload: bytes) -> str:
    """Return the user name in a client's login.

    Raises:
        ValueError: There is none, or the protocol is older than that of MySQL 4.1.
    """
    if len(payload) < LOGIN_HEAD.size or not payload[1] & PROTOCOL_41 >> 8:
        raise ValueError("no login")
    return payload[LOGIN_HEAD.size : payload.index(0, LOGIN_HEAD.size)].decode("utf-8", "replace")


def tls_request(payload: bytes) -> bytes:
    """Return the packet with which a client requests TLS before the login *payload*."""
    return with_transport(payload, tls=True)[: LOGIN_HEAD.size]


def with_transport(payload: bytes, *, tls: bool) -> bytes:
    """Return a client's login for a server with or without *tls*, without compression."""
    flags, rest = LOGIN_HEAD.unpack_from(payload)
    flags = flags & ~(SSL | COMPRESS) | (SSL if tls else 0)
    return LOGIN_HEAD.pack(flags, rest) + payload[LOGIN_HEAD.size :]


@dataclass(frozen=True)
class Login:
    """A client's login packet.

    Attributes:
        head: Everything before the user: capabilities, largest packet, character set.
        database: Its name and a zero; empty without one.
        rest: Everything after the name of the plugin: the attributes.
    """

    head: bytes
    user: bytes
    database: bytes
    rest: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Login:
        """Raises ValueError for a payload that is no login, or a client without support for a change of the plugin."""
        (flags,) = struct.unpack_from("<I", payload)
        if not flags & PLUGIN_AUTH or not flags & (SECURE_CONNECTION | LENENC_AUTH_DATA):
            raise ValueError("a client from before MySQL 5.5")
        user_end = payload.index(0, LOGIN_HEAD.size)
        # Both encodings of the length use one byte below 251, and the first proof is never longer.
        proof_end = user_end + 2 + payload[user_end + 1]
        database_end = payload.index(0, proof_end) + 1 if flags & CONNECT_WITH_DB else proof_end
        return cls(
            head=payload[: LOGIN_HEAD.size],
            user=payload[LOGIN_HEAD.size : user_end],
            database=payload[proof_end:database_end],
            rest=payload[payload.index(0, database_end) + 1 :],
        )

    def proving(self, plugin: bytes, proof: bytes) -> bytes:
        """Return the same with a proof for *plugin*."""
        name = self.user + b"\0" + bytes([len(proof)]) + proof
        return self.head + name + self.database + plugin + b"\0" + self.rest


def proof_of(plugin: bytes, password: str, salt: bytes) -> bytes:
    """Return the first proof of a password for *plugin*.

    Raises:
        ValueError: The plugin is unknown.
    """
    if not password:
        return b""
    if plugin == b"mysql_native_password":
        once = hashlib.sha1(password.encode()).digest()
        mask = hashlib.sha1(salt + hashlib.sha1(once).digest()).digest()
    elif plugin == b"caching_sha2_password":
        once = hashlib.sha256(password.encode()).digest()
        mask = hashlib.sha256(hashlib.sha256(once).digest() + salt).digest()
    else:
        raise ValueError(f"no proof for {plugin!r}")
    return bytes(a ^ b for a, b in zip(once, mask, strict=True))


def auth_switch(plugin: bytes) -> bytes:
    """Return the packet of a server that requires the proof of *plugin*."""
    return bytes([AUTH_SWITCH]) + plugin + b"\0"


def access_denied(user: str, host: str) -> bytes:
    """Return the packet of a server that rejects a login."""
    text = f"Access denied for user '{user}'@'{host}' (using password: YES)"
    return struct.pack("<BH", ERROR, 1045) + b"#28000" + text.encode()

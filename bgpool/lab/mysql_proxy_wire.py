"""As much of MySQL's protocol as the relay must understand: packets, both sides of the greeting, and queries.

Source: MySQL's and MariaDB's protocol documentation, "Connection Phase" and "COM_QUERY"; both servers agree on all
that is here.
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

#: Offered by servers and taken up by clients.
CONNECT_WITH_DB, COMPRESS, PROTOCOL_41, SSL = 1 << 3, 1 << 5, 1 << 9, 1 << 11
SECURE_CONNECTION, PLUGIN_AUTH, LENENC_AUTH_DATA = 1 << 15, 1 << 19, 1 << 21

#: The first byte of what a server says in the handshake.
OK, AUTH_SWITCH, ERROR = 0x00, 0xFE, 0xFF

#: caching_sha2_password's word that it needs no more of the client: the one in the handshake that no answer follows.
FAST_AUTH_OK: Final = b"\x01\x03"

#: Its word that it needs the password itself, in clear text over TLS.
FULL_AUTH: Final = b"\x01\x04"

#: Two and one byte of length, and the number.
HEADER: Final = struct.Struct("<HBB")

#: A packet of this length goes on in the next.
FULL_PACKET: Final = 0xFFFFFF

#: Nobody says more than this before they are let in. A token of IAM has about 1.5 KB.
HANDSHAKE_BYTES: Final = 65536

#: A client's capabilities, largest packet, character set and 23 bytes that MariaDB uses for more capabilities.
LOGIN_HEAD: Final = struct.Struct("<I28s")


@dataclass(frozen=True)
class Packet:
    """A number, counted on by whoever speaks next, and what is said."""

    number: int
    payload: bytes

    def encode(self, shift: int = 0) -> bytes:
        """As sent, its number shifted for a side that has heard more packets than the other, or fewer."""
        length = len(self.payload)
        return HEADER.pack(length & 0xFFFF, length >> 16, (self.number + shift) % 256) + self.payload

    def answer(self, payload: bytes) -> bytes:
        """As sent after this packet."""
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
    """One packet of the handshake, and no byte more: what follows may be TLS.

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
    """How long a packet is that begins so, and its number."""
    low, high, number = HEADER.unpack_from(header)
    return low | high << 16, number


@dataclass(frozen=True)
class Greeting:
    """What a server says first.

    Attributes:
        salt: What passwords are to be scrambled with.
        plugin: How, if a user has no other way.
        has_tls: Whether a client may ask for TLS.
    """

    payload: bytes
    salt: bytes
    plugin: bytes
    has_tls: bool
    _flags_at: int

    @classmethod
    def parse(cls, payload: bytes) -> Greeting:
        """Raises ValueError for what is none."""
        # The protocol's version, the server's as text, and the session's number.
        salt_at = payload.index(0, 1) + 5
        # Eight bytes of salt and a zero; two of flags, six with more flags and other news, ten unused; the other salt.
        flags_at = salt_at + 9
        salt = payload[salt_at : salt_at + 8] + payload[flags_at + 18 : flags_at + 30]
        if len(salt) != 20:
            raise ValueError("a greeting without a salt")
        (flags,) = struct.unpack_from("<H", payload, flags_at)
        # A zero ends the other salt, and one the name.
        plugin = payload[flags_at + 31 :].partition(b"\0")[0]
        return cls(payload, salt, plugin, bool(flags & SSL), flags_at)

    def offering(self, *, tls: bool) -> bytes:
        """The same from a server that has *tls* or has not, and does not compress, which would hide the queries."""
        at = self._flags_at
        (flags,) = struct.unpack_from("<H", self.payload, at)
        flags = flags & ~(SSL | COMPRESS) | (SSL if tls else 0)
        return self.payload[:at] + struct.pack("<H", flags) + self.payload[at + 2 :]


def asks_for_tls(payload: bytes) -> bool:
    """Whether a client goes on with TLS, and says all this again in it."""
    return len(payload) == LOGIN_HEAD.size and bool(payload[1] & SSL >> 8)


def user_of(payload: bytes) -> str:
    """The user that a client is.

    Raises:
        ValueError: It does not say, or speaks a protocol from before MySQL 4.1.
    """
    if len(payload) < LOGIN_HEAD.size or not payload[1] & PROTOCOL_41 >> 8:
        raise ValueError("no login")
    return payload[LOGIN_HEAD.size : payload.index(0, LOGIN_HEAD.size)].decode("utf-8", "replace")


def tls_request(payload: bytes) -> bytes:
    """What a client says before the login *payload* to go on with TLS."""
    return with_transport(payload, tls=True)[: LOGIN_HEAD.size]


def with_transport(payload: bytes, *, tls: bool) -> bytes:
    """A client's login as a server sees it that has *tls* or has not, and does not compress."""
    flags, rest = LOGIN_HEAD.unpack_from(payload)
    flags = flags & ~(SSL | COMPRESS) | (SSL if tls else 0)
    return LOGIN_HEAD.pack(flags, rest) + payload[LOGIN_HEAD.size :]


@dataclass(frozen=True)
class Login:
    """How a client introduces itself.

    Attributes:
        head: All before the user: capabilities, largest packet, character set.
        database: Its name and a zero; empty without one.
        rest: All after the name of the plugin: the attributes.
    """

    head: bytes
    user: bytes
    database: bytes
    rest: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Login:
        """Raises ValueError for what is none, or does not know that servers may ask for another proof."""
        (flags,) = struct.unpack_from("<I", payload)
        if not flags & PLUGIN_AUTH or not flags & (SECURE_CONNECTION | LENENC_AUTH_DATA):
            raise ValueError("a client from before MySQL 5.5")
        user_end = payload.index(0, LOGIN_HEAD.size)
        # Either way of giving the length is one byte below 251, and no proof that comes unasked is longer.
        proof_end = user_end + 2 + payload[user_end + 1]
        database_end = payload.index(0, proof_end) + 1 if flags & CONNECT_WITH_DB else proof_end
        return cls(
            head=payload[: LOGIN_HEAD.size],
            user=payload[LOGIN_HEAD.size : user_end],
            database=payload[proof_end:database_end],
            rest=payload[payload.index(0, database_end) + 1 :],
        )

    def proving(self, plugin: bytes, proof: bytes) -> bytes:
        """The same with a proof for *plugin*."""
        name = self.user + b"\0" + bytes([len(proof)]) + proof
        return self.head + name + self.database + plugin + b"\0" + self.rest


def proof_of(plugin: bytes, password: str, salt: bytes) -> bytes:
    """The first proof that *plugin* wants of a password.

    Raises:
        ValueError: It is not known how.
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
    """What a server says that wants the proof of *plugin*."""
    return bytes([AUTH_SWITCH]) + plugin + b"\0"


def access_denied(user: str, host: str) -> bytes:
    """What a server says to whom it does not let in."""
    text = f"Access denied for user '{user}'@'{host}' (using password: YES)"
    return struct.pack("<BH", ERROR, 1045) + b"#28000" + text.encode()

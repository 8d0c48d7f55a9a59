"""A replacement for IAM: tokens that are valid for one host name, and the service that checks them.

RDS passes a token, which a client sends as its password over TLS, to a PAM module. PostgreSQL in the lab uses RADIUS,
which it has built in. For MariaDB and MySQL the proxy in front of the server checks the token. Clients see no
difference.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Radius", "TokenCheck", "Tokens"]

log = logging.getLogger("bgpool.lab")

TOKEN_LIFE_S: Final = 900
"""The lifetime of a token of IAM."""

ACCESS_REQUEST, ACCESS_ACCEPT, ACCESS_REJECT = 1, 2, 3
USER_NAME, USER_PASSWORD, NAS_IDENTIFIER = 1, 2, 32
HEADER: Final = struct.Struct("!BBH16s")


@dataclass(frozen=True)
class Tokens:
    """A maker of tokens; a password callable for get_pool, which can also be passed to a monitor."""

    secret: bytes = field(repr=False)

    def __call__(self, host: str, port: int, user: str) -> str:
        """Return a token for *user* on *host* only."""
        return self.token(host, port, user, int(time.time()) + TOKEN_LIFE_S)

    def token(self, host: str, port: int, user: str, expires: int) -> str:
        """Return a token that is valid until *expires*, in seconds since 1970."""
        text = f"{host}:{port}/{user}/{expires}".encode()
        return f"{expires:x}.{hmac.new(self.secret, text, hashlib.sha256).hexdigest()[:40]}"


class TokenCheck:
    """A checker of the tokens on the servers of one pair."""

    def __init__(self, port: int) -> None:
        """Check tokens for *port*."""
        self.tokens: Final = Tokens(secrets.token_bytes(16))
        self._port: Final = port
        self._names: dict[str, frozenset[str]] = {}

    def rename(self, server: str, names: Iterable[str]) -> None:
        """Accept only tokens for *names* on *server* from now on."""
        self._names = {**self._names, server: frozenset(names)}

    def accepts(self, server: str, user: str, token: str) -> bool:
        """Return whether *token* authenticates *user* on the server that is called *server*."""
        expires = _expiry(token)
        names = self._names.get(server, ())
        expected = (self.tokens.token(name, self._port, user, expires) for name in names)
        good = any(hmac.compare_digest(token.encode(), one.encode()) for one in expected)
        return good and expires > time.time()


class Radius(threading.Thread):
    """The RADIUS server of one pair, on a loopback address."""

    def __init__(self, check: TokenCheck, address: str) -> None:
        """Listen at *address*, and answer with the results of *check*.

        Raises:
            OSError: The address cannot be used.
        """
        super().__init__(name="bgpool-lab-iam", daemon=True)
        self._check: Final = check
        self.shared_secret: Final = secrets.token_hex(8)
        self._socket: Final = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self.address: Final[str] = address
        self.port: Final[int] = self._socket.getsockname()[1]

    def hba(self, user: str, server: str) -> str:
        """Return the line of pg_hba.conf that has *user* checked here, on the server that is called *server*."""
        return (
            f"host all {user} 127.0.0.0/8 radius radiusservers={self.address} radiusports={self.port} "
            f"radiussecrets={self.shared_secret} radiusidentifiers={server}\n"
        )

    def close(self) -> None:
        """End the thread."""
        # An empty datagram is no request, and ends the wait.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as goodbye:
            goodbye.sendto(b"", (self.address, self.port))
        self.join(5.0)
        self._socket.close()

    def run(self) -> None:
        """Answer requests until closed."""
        while True:
            data, client = self._socket.recvfrom(4096)
            if not data:
                return
            try:
                self._socket.sendto(self._answer(data), client)
            except (ValueError, struct.error, OSError) as error:
                log.warning("no RADIUS request: %s", error)

    def _answer(self, data: bytes) -> bytes:
        code, number, length, authenticator = HEADER.unpack_from(data)
        if code != ACCESS_REQUEST:
            raise ValueError(f"code {code}")
        attributes = _attributes(data[HEADER.size : length])
        user, server = attributes[USER_NAME].decode(), attributes[NAS_IDENTIFIER].decode()
        accepted = self._check.accepts(server, user, self._password(attributes[USER_PASSWORD], authenticator))
        answer = ACCESS_ACCEPT if accepted else ACCESS_REJECT
        head = struct.pack("!BBH", answer, number, HEADER.size)
        return head + hashlib.md5(head + authenticator + self.shared_secret.encode()).digest()

    def _password(self, hidden: bytes, authenticator: bytes) -> str:
        """Decode as in RFC 2865, 5.2: each block is hidden by a digest of the secret and the block before."""
        found, before = b"", authenticator
        for start in range(0, len(hidden), 16):
            block = hidden[start : start + 16]
            mask = hashlib.md5(self.shared_secret.encode() + before).digest()
            found += bytes(a ^ b for a, b in zip(block, mask, strict=True))
            before = block
        return found.rstrip(b"\0").decode("utf-8", "replace")


def _expiry(token: str) -> int:
    """Return the expiry of *token*; 0 for a value that is no token."""
    try:
        return int(token.partition(".")[0], 16)
    except ValueError:
        return 0


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {USER_NAME: b"", USER_PASSWORD: b"", NAS_IDENTIFIER: b""}
    while len(data) >= 2:
        kind, length = data[0], data[1]
        if length < 2:
            raise ValueError("an attribute without a length")
        found[kind], data = data[2:length], data[length:]
    return found

"""The names that a server's certificate is for."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from bgpool.mysql import BoundedConnection

__all__ = ["names"]

#: How a PostgreSQL client asks for TLS: the length of the message, and a number.
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)


def names(
    connection: psycopg.Connection[Any] | BoundedConnection, params: Mapping[str, Any], timeout_s: float
) -> tuple[str, ...] | None:
    """The host names in the certificate of *connection*'s server; None where they cannot be told.

    libpq does not tell them, so that PostgreSQL is asked once more, as far as the handshake.
    """
    if isinstance(connection, BoundedConnection):
        return _names_in(connection.certificate())
    try:
        return _names_in(_shown_by_postgres(connection, str(params.get("sslrootcert") or ""), timeout_s))
    except (OSError, ValueError):
        return None


def _shown_by_postgres(connection: psycopg.Connection[Any], authority: str, timeout_s: float) -> Mapping[str, Any]:
    """As SSLSocket.getpeercert has it; nothing where *authority* is not a file: then Python verifies nothing."""
    if not authority or authority == "system":
        return {}
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False  # libpq has done that; this is to see what is there
    place = connection.info.hostaddr, connection.info.port
    with socket.create_connection(place, timeout_s) as plain:
        plain.sendall(_SSL_REQUEST)
        if plain.recv(1) != b"S":
            return {}
        with context.wrap_socket(plain) as encrypted:
            return encrypted.getpeercert() or {}


def _names_in(certificate: Mapping[str, Any]) -> tuple[str, ...] | None:
    found = tuple(str(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")
    return found or None

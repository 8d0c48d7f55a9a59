"""The names in a server's certificate."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from bgpool.mysql import BoundedConnection

__all__ = ["names"]

#: A PostgreSQL client's request for TLS: the length of the message, and a number.
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)


def names(
    connection: psycopg.Connection[Any] | BoundedConnection, params: Mapping[str, Any], timeout_s: float
) -> tuple[str, ...] | None:
    """Return the host names in the certificate of *connection*'s server; None if they cannot be determined.

    libpq does not provide them, so a second TLS handshake with a PostgreSQL server is made.
    """
    if isinstance(connection, BoundedConnection):
        return _names_in(connection.certificate())
    try:
        return _names_in(_shown_by_postgres(connection, str(params.get("sslrootcert") or ""), timeout_s))
    except (OSError, ValueError):
        return None


def _shown_by_postgres(connection: psycopg.Connection[Any], authority: str, timeout_s: float) -> Mapping[str, Any]:
    """Return the certificate like SSLSocket.getpeercert; empty if *authority* is not a file, as Python needs one."""
    if not authority or authority == "system":
        return {}
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False  # libpq has verified it; this only reads it
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

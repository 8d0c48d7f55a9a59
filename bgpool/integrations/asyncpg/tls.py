"""TLS to an address under a name. asyncpg itself only verifies the host name to which it connects."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bgpool.errors import ConfigurationError

__all__ = ["NamedContext", "verifying"]

_CONTENTS: Final = {"ssl_min_protocol_version": "minimum_version", "ssl_max_protocol_version": "maximum_version"}


class NamedContext(ssl.SSLContext):
    """Like a given context, but the server must prove one name, whatever the address of the connection.

    The context itself is not changed: it may be the application's, and used for other hosts. asyncio and uvloop only
    call ``wrap_bio``, also for a cancel request.
    """

    def __new__(cls, context: ssl.SSLContext, name: str) -> NamedContext:
        """Return a context that wraps like *context*, verifies *name* and sends it (SNI)."""
        named = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        # The attributes of a context that asyncpg reads.
        named.check_hostname = context.check_hostname
        named.verify_mode = context.verify_mode
        named._wrapped, named._name = context, name
        return named

    _wrapped: ssl.SSLContext
    _name: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,  # noqa:ARG002  # it is the address
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Like SSLContext.wrap_bio, with the given name."""
        return self._wrapped.wrap_bio(incoming, outgoing, server_side, self._name, session)

    def wrap_socket(self, *_args: Any, **_kwargs: Any) -> ssl.SSLSocket:
        """Refuse: asyncio and uvloop do not call it, and it would verify the address.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a NamedContext wraps connections of an event loop only")


def verifying(params: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the context for sslmode=verify-full, with the certificate settings of libpq's parameters *params*.

    Raises:
        ConfigurationError: A file does not exist or cannot be used, or a TLS version is unknown.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, attribute in _CONTENTS.items():
        version = _given(params, name)
        if version:
            try:
                setattr(context, attribute, ssl.TLSVersion[version.replace(".", "_")])
            except KeyError:
                raise ConfigurationError(f"{name}={version!r}: TLSv1.2 or TLSv1.3 is allowed") from None
    root = _given(params, "sslrootcert") or _own("root.crt")
    if root == "system":
        context.load_default_certs()
    else:
        _load("sslrootcert", root, lambda: context.load_verify_locations(cafile=root))
    revoked = _given(params, "sslcrl") or _own("root.crl", needed=False)
    if revoked:
        _load("sslcrl", revoked, lambda: context.load_verify_locations(cafile=revoked))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    certificate = _given(params, "sslcert") or _own("postgresql.crt", needed=False)
    if certificate:
        key = _given(params, "sslkey") or _own("postgresql.key", needed=False)
        password = str(params.get("sslpassword") or "")
        _load("sslcert", certificate, lambda: context.load_cert_chain(certificate, key or None, lambda: password))
    context.set_alpn_protocols(["postgresql"])
    return context


def _given(params: Mapping[str, Any], name: str) -> str:
    return str(params.get(name) or os.environ.get(f"PG{name.replace('_', '').upper()}") or "")


def _own(name: str, *, needed: bool = True) -> str:
    """Return the path of the user's own file *name*, like libpq; empty if it does not exist and is not *needed*."""
    path = Path("~/.postgresql", name).expanduser()
    return str(path) if needed or path.exists() else ""


def _load(name: str, path: str, load: Any) -> None:
    try:
        load()
    except OSError as error:
        # An ssl.SSLError is an OSError.
        raise ConfigurationError(f"{name}={path!r} cannot be used: {error.strerror or type(error).__name__}") from None

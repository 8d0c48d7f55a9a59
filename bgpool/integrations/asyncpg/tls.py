"""TLS to an address, under a name: asyncpg has the name of a host proved that it connects to, and no other."""

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
    """As a given context, but whoever answers has to prove one name, wherever the connection goes.

    The context itself is left as it is: it is the application's, perhaps, and used for other hosts. asyncio and uvloop
    call ``wrap_bio`` alone, for a request to cancel as well.
    """

    def __new__(cls, context: ssl.SSLContext, name: str) -> NamedContext:
        """A context that wraps as *context* does, with *name* to be proved and sent (SNI)."""
        named = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        # What asyncpg reads of a context.
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
        """As SSLContext.wrap_bio, with our name."""
        return self._wrapped.wrap_bio(incoming, outgoing, server_side, self._name, session)

    def wrap_socket(self, *_args: Any, **_kwargs: Any) -> ssl.SSLSocket:
        """Refuse: nobody calls it, and it would have the address proved.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a NamedContext wraps connections of an event loop only")


def verifying(params: Mapping[str, Any]) -> ssl.SSLContext:
    """The context for sslmode=verify-full, with what libpq's parameters *params* say of certificates.

    Raises:
        ConfigurationError: A file of theirs that is not there or cannot be used, or a version that is not known.
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
    """The user's own file of that *name*, as libpq has it; empty where it is not there and not *needed*."""
    path = Path("~/.postgresql", name).expanduser()
    return str(path) if needed or path.exists() else ""


def _load(name: str, path: str, load: Any) -> None:
    try:
        load()
    except OSError as error:
        # An ssl.SSLError is one.
        raise ConfigurationError(f"{name}={path!r} cannot be used: {error.strerror or type(error).__name__}") from None

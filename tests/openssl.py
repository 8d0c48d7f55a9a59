"""OpenSSL's error queue of the calling thread, for tests: leave an error there, and look whether one is there."""

from __future__ import annotations

import _ssl
import contextlib
import ssl
from typing import Any, Final

import trustme

__all__ = ["Ends", "is_spoiled", "spoil"]


def spoil() -> None:
    """Leave an error in the queue, as another library may: every version of the ssl module forgets this one."""
    with contextlib.suppress(ValueError):
        _ssl.txt2obj("no such object", name=True)


def is_spoiled() -> bool:
    """Return whether an error is in the queue; the check empties it."""
    try:
        _OBSERVER.client.read(1)
    except ssl.SSLWantReadError:
        return False
    except OSError:  # ssl.SSLError is one
        return True
    raise AssertionError("no error was queued")


class Ends:
    """The two ends of a TLS connection in memory, after their handshake.

    Attributes:
        to_client: Bytes that the server has sent and the client has not read.
    """

    def __init__(self) -> None:
        authority = trustme.CA()
        served, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.issue_cert("db.test").configure_cert(served)
        authority.configure_trust(trusting)
        self.to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trusting.wrap_bio(self.to_client, to_server, server_hostname="db.test")
        self.server = served.wrap_bio(to_server, self.to_client, server_side=True)
        steps: list[Any] = [self.client.do_handshake, self.server.do_handshake] * 3
        for step in steps:
            with contextlib.suppress(ssl.SSLWantReadError):
                step()
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.read(1)  # the session tickets


#: Made at the import: its handshake empties the queue, so a first look that makes it would see nothing.
_OBSERVER: Final = Ends()

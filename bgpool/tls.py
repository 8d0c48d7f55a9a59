"""TLS contexts that are made once, and connections that no error in OpenSSL's error queue harms, nor leave one there.

A context takes 20 ms of CPU time where it loads the certificates of many authorities, such as those of RDS, and 1 ms
with a single one: more than all the rest of a login.

OpenSSL has one error queue per thread. SSL_get_error() looks there first: while an old error is in it, "no data yet" on
a healthy connection is reported as that error. Python's ssl module does not empty the queue before it reads or writes
(python/cpython issues 81891 and 148594), and from Python 3.14 on with OpenSSL 3.6 it leaves the "broken pipe" of a
connection that was cut. Every later connection that this thread reads from then fails at its first wait, unless the
thread itself made its handshake, which empties the queue. With gevent all connections of a process share one thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from bgpool.core.limits import SSL_CONTEXTS

__all__ = ["GuardedContext", "clear_error_queue", "shared"]

T = TypeVar("T")

_CONTEXT: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

#: Of each thread: a TLS object must not be used by two at a time, and a child may be forked while another uses its own.
_local: Final = threading.local()


@dataclass(frozen=True, slots=True)
class _Terms:
    """What somebody asks of a context. The password of a key may be in it, so that it is never shown."""

    given: Hashable = field(repr=False)


class _Made(NamedTuple):
    """What was made, and of what: a state of the files, and a class of contexts.

    gevent replaces ssl.SSLContext, and the sockets of a context made before would block all green threads.
    """

    of: tuple[object, ...]
    context: Any


_made: Final[dict[_Terms, _Made]] = {}


def shared(terms: Hashable, files: Iterable[str], make: Callable[[], T]) -> T:
    """The one context of this process for *terms*: what *make* makes, again only once one of the *files* has changed.

    Whoever asks with the same terms at the same moment may make another one, which is as good.

    Args:
        terms: All settings that the context depends on.
        files: What *make* reads; each has to exist.
        make: Makes it.

    Raises:
        OSError: A file is not there, or *make* says so; ssl.SSLError is one.
    """
    key, of = _Terms(terms), (ssl.SSLContext, *map(_state, files))
    made = _made.get(key)
    if made is None or made.of != of:
        # The state is from before: a file that is replaced meanwhile is found out the next time.
        made = _Made(of, make())
        _made[key] = made
        # Settings that nobody uses any more must not be collected for ever.
        for oldest in list(_made)[:-SSL_CONTEXTS]:
            _made.pop(oldest, None)
    context: T = made.context
    return context


def _state(file: str) -> tuple[int, ...]:
    """What is another once *file* was written to, or replaced by another one, a symbolic link to it included."""
    found = Path(file).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def clear_error_queue() -> None:
    """Empty the calling thread's OpenSSL error queue; 1 µs.

    The ssl module has no function for that. A handshake begins with it, so each thread has one that never gets any
    further: its client says nothing. ERR_clear_error by ctypes would need the very libcrypto that the interpreter was
    linked with, which may be linked statically.
    """
    handshake = getattr(_local, "handshake", None)
    if handshake is None:
        handshake = _CONTEXT.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True).do_handshake
        _local.handshake = handshake
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake()


class GuardedContext:
    """As much of an SSLContext as PyMySQL uses; the error queue is empty before and after all that its sockets do."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """Guard the sockets that *context* wraps."""
        self._context: Final = context

    def wrap_socket(self, sock: socket.socket, *, server_hostname: str | None = None) -> ssl.SSLSocket:
        """As SSLContext.wrap_socket.

        Raises:
            OSError: The handshake failed; ssl.SSLError is one.
        """
        try:
            wrapped: Any = self._context.wrap_socket(sock, server_hostname=server_hostname)
        except BaseException:
            clear_error_queue()
            raise
        # All that is read and written goes through this object, also when gevent's sockets try again after a wait.
        wrapped._sslobj = _Guard(wrapped._sslobj)
        found: ssl.SSLSocket = wrapped
        return found


class _Guard:
    """Stands before the _ssl._SSLSocket of an SSLSocket."""

    __slots__ = ("_tls",)

    def __init__(self, tls: Any) -> None:
        self._tls: Final = tls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)

    def read(self, *args: Any) -> Any:
        clear_error_queue()
        try:
            return self._tls.read(*args)
        except BaseException:
            clear_error_queue()
            raise

    def write(self, data: Any) -> Any:
        clear_error_queue()
        try:
            return self._tls.write(data)
        except BaseException:
            clear_error_queue()
            raise

"""Cached TLS contexts, and TLS connections that are isolated from OpenSSL's error queue.

Making a context takes 20 ms of CPU time if it loads the certificates of many authorities, such as those of RDS, and
1 ms with a single one: more than the rest of a login.

OpenSSL has one error queue per thread. SSL_get_error() checks it first: while an old error is in it, "no data yet" on a
healthy connection is reported as that error. Python's ssl module does not empty the queue before it reads or writes
(python/cpython issues 81891 and 148594). From Python 3.14 on with OpenSSL 3.6 it leaves the "broken pipe" of a
connection that was cut. Every later connection that this thread reads from then fails at its first wait, unless the
same thread made its handshake, which empties the queue. With gevent all connections of a process share one thread.
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

#: Per thread: a TLS object must not be used by two threads at a time, and a process may fork while another thread uses
#: its own.
_local: Final = threading.local()


@dataclass(frozen=True, slots=True)
class _Terms:
    """The settings of a context, as a key. Never shown, because they may include the password of a private key."""

    given: Hashable = field(repr=False)


class _Made(NamedTuple):
    """A cached context, and the state that it was made from: the class of contexts, and the state of the files.

    gevent replaces ssl.SSLContext, and sockets of a context that was made before would block all green threads.
    """

    of: tuple[object, ...]
    context: Any


_made: Final[dict[_Terms, _Made]] = {}


def shared(terms: Hashable, files: Iterable[str], make: Callable[[], T]) -> T:
    """Return this process's context for *terms*. *make* is called again only if one of the *files* has changed.

    Concurrent calls with the same terms may make more than one context, each of which is valid.

    Args:
        terms: All settings that the context depends on.
        files: The files that *make* reads; each must exist.
        make: Makes the context.

    Raises:
        OSError: A file does not exist, or *make* failed; ssl.SSLError is a subclass.
    """
    key, of = _Terms(terms), (ssl.SSLContext, *map(_state, files))
    made = _made.get(key)
    if made is None or made.of != of:
        # The state was read before. A file that is replaced while the context is made is detected at the next call.
        made = _Made(of, make())
        _made[key] = made
        # Limit the cache: settings that are no longer used must not accumulate.
        for oldest in list(_made)[:-SSL_CONTEXTS]:
            _made.pop(oldest, None)
    context: T = made.context
    return context


def _state(file: str) -> tuple[int, ...]:
    """Return a state of *file* that changes when the file is written or replaced, also behind a symbolic link."""
    found = Path(file).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def clear_error_queue() -> None:
    """Empty the calling thread's OpenSSL error queue; 1 µs.

    The ssl module has no function for that, but every handshake step begins by emptying the queue. So each thread keeps
    a handshake that never progresses, because its client sends nothing. Calling ERR_clear_error by ctypes would require
    the same libcrypto that the interpreter is linked with, possibly statically.
    """
    handshake = getattr(_local, "handshake", None)
    if handshake is None:
        handshake = _CONTEXT.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True).do_handshake
        _local.handshake = handshake
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake()


class GuardedContext:
    """The part of SSLContext that PyMySQL uses. The error queue is empty before and after each socket operation."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """Guard the sockets that *context* wraps."""
        self._context: Final = context

    def wrap_socket(self, sock: socket.socket, *, server_hostname: str | None = None) -> ssl.SSLSocket:
        """See SSLContext.wrap_socket.

        Raises:
            OSError: The handshake failed; ssl.SSLError is one.
        """
        try:
            wrapped: Any = self._context.wrap_socket(sock, server_hostname=server_hostname)
        except BaseException:
            clear_error_queue()
            raise
        # All reads and writes go through this object, also when gevent's sockets retry after a wait.
        wrapped._sslobj = _Guard(wrapped._sslobj)
        found: ssl.SSLSocket = wrapped
        return found


class _Guard:
    """A wrapper around the _ssl._SSLSocket of an SSLSocket."""

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

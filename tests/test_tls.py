"""Errors in OpenSSL's error queue do not affect bgpool's TLS connections, and these leave none there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from bgpool import tls
from bgpool.core.limits import SSL_CONTEXTS
from bgpool.mysql import BoundedConnection
from bgpool.tls import GuardedContext, clear_error_queue, shared
from tests.openssl import is_spoiled, spoil


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and that of a client who trusts it."""
    authority = trustme.CA()
    served, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("db.test").configure_cert(served)
    authority.configure_trust(trusting)
    return served, trusting


def connected(served: ssl.SSLContext, client: Any) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """A server's end and that of a client whose context is *client*."""
    ends = socket.socketpair()
    found: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: found.append(served.wrap_socket(ends[0], server_side=True)))
    thread.start()
    ends[1].settimeout(0.05)
    wrapped: ssl.SSLSocket = client.wrap_socket(ends[1], server_hostname="db.test")
    thread.join()
    with pytest.raises(TimeoutError):
        # The session tickets: they are part of a handshake, and OpenSSL empties the queue before it looks at them.
        wrapped.recv(1)
    return found[0], wrapped


@pytest.fixture
def ends(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """A server's end and a guarded client's."""
    server, client = connected(contexts[0], GuardedContext(contexts[1]))
    with server, client:
        yield server, client


def test_an_old_error_ends_the_wait_of_an_unguarded_connection(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    # What the tests below rest on.
    server, client = connected(*contexts)
    with server, client:
        spoil()
        with pytest.raises(OSError) as caught:  # noqa: PT011  # which OSError depends on the version of Python
            client.recv(1)
    assert not isinstance(caught.value, TimeoutError)


def test_an_old_error_ends_no_wait(ends: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
    server, client = ends
    spoil()
    with pytest.raises(TimeoutError):
        client.recv(1)
    spoil()
    client.sendall(b"ping")
    assert server.recv(4) == b"ping"
    server.sendall(b"pong")
    with client.makefile("rb") as file:
        assert file.read(4) == b"pong"
    assert client.getpeercert() == client._sslobj.getpeercert()  # type: ignore[attr-defined]  # not in the stubs


def test_what_fails_leaves_no_error() -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        # As Python 3.14 does with OpenSSL 3.6 when a connection was cut.
        spoil()
        raise BrokenPipeError

    tls = SimpleNamespace(read=fail, write=fail)
    context: Any = SimpleNamespace(wrap_socket=lambda *_args, **_kwargs: SimpleNamespace(_sslobj=tls))
    guard: Any = GuardedContext(context).wrap_socket(None)._sslobj  # type: ignore[arg-type, attr-defined]  # doubles
    context.wrap_socket = fail
    for operation in (
        lambda: guard.read(1),
        lambda: guard.write(b""),
        lambda: GuardedContext(context).wrap_socket(None),  # type: ignore[arg-type]  # a double
    ):
        with pytest.raises(BrokenPipeError):
            operation()
        assert not is_spoiled()


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_connection_that_was_cut_leaves_no_error(ends: tuple[ssl.SSLSocket, ssl.SSLSocket], how: str) -> None:
    _, client = ends
    with socket.socket(fileno=os.dup(client.fileno())) as cut:
        cut.shutdown(socket.SHUT_RDWR)
    if how == "write":
        with pytest.raises(OSError):  # noqa: PT011  # which OSError depends on the version of Python
            client.sendall(b"ping")
    else:
        with contextlib.suppress(BrokenPipeError):  # Python 3.14
            assert client.recv(1) == b""
    assert not is_spoiled()


def test_each_thread_has_a_queue_of_its_own() -> None:
    spoil()
    thread = threading.Thread(target=clear_error_queue)
    thread.start()
    thread.join()
    assert is_spoiled()


def test_threads_clear_at_the_same_time() -> None:
    spoiled: list[bool] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for _ in range(500):
            spoil()
            clear_error_queue()
        spoiled.append(False)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spoiled == [False] * 8


def test_a_context_made_before_gevent_patched_is_not_used_after(monkeypatch: pytest.MonkeyPatch) -> None:
    class Green:
        """Like gevent's: another class with the same name."""

        def __init__(self, protocol: int) -> None:
            self.protocol = protocol

    def context() -> object:
        return BoundedConnection(defer_connect=True)._create_ssl_ctx({})._context

    before = context()
    assert context() is before
    monkeypatch.setattr(ssl, "SSLContext", Green)
    assert type(context()) is Green


def _write_again(file: Path, old: os.stat_result) -> None:
    file.write_text("b")
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))


def _replace(file: Path, _: os.stat_result) -> None:
    other = file.with_name("other")
    other.write_text("a")
    other.replace(file)


def _point_elsewhere(file: Path, _: os.stat_result) -> None:
    other = file.with_name("other")
    other.write_text("a")
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", [_write_again, _replace, _point_elsewhere])
def test_a_file_that_has_changed_makes_another_context(
    change: Callable[[Path, os.stat_result], object], tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("a")
    before = shared("terms", [str(file)], object)
    assert shared("terms", [str(file)], object) is before
    change(file, file.stat())
    after = shared("terms", [str(file)], object)
    assert after is not before
    assert shared("terms", [str(file)], object) is after


def test_other_terms_have_another_context_and_a_missing_file_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("a")
    assert shared("terms", [str(file)], object) is not shared("other terms", [str(file)], object)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        shared("terms", [str(file)], object)


def test_contexts_are_limited_in_number_and_show_no_password() -> None:
    first = shared(("password", "s3cret"), [], object)
    assert "s3cret" not in repr(tls._made)
    for number in range(SSL_CONTEXTS):
        shared(number, [], object)
    assert len(tls._made) == SSL_CONTEXTS
    assert shared(("password", "s3cret"), [], object) is not first


GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import socket, ssl, threading, time, trustme
from bgpool.tls import GuardedContext
from tests.openssl import spoil

authority = trustme.CA()
served, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
authority.issue_cert("db.test").configure_cert(served)
authority.configure_trust(trusting)

def serve(sock):
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = served.wrap_bio(heard, said, server_side=True)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(said.read())
            heard.write(sock.recv(65536))
    sock.sendall(said.read())
    tls.write(b"pong")
    data = said.read()
    # The client waits; it is woken by what is not enough yet, and an error is there.
    for part in (data[:-5], data[-5:]):
        time.sleep(0.05)
        spoil()
        sock.sendall(part)

for context in (trusting, GuardedContext(trusting)):
    server, client = socket.socketpair()
    threading.Thread(target=serve, args=(server,)).start()
    client.settimeout(30)
    try:
        print(context.wrap_socket(client, server_hostname="db.test").recv(4).decode())
    except OSError as error:
        print("failed")
"""


def test_an_error_that_another_greenlet_left_ends_no_wait() -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("no gevent")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GEVENT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["failed", "pong"], done.stderr

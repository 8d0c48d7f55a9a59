"""A process that logs in to green for the first time, at a release, and measures the CPU time of each piece.

The orders are one line on standard input, because they contain a password. The process prints "held" once all is ready.
The next input is the release.
"""

from __future__ import annotations

import functools
import json
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pymysql import _auth
from pymysql.connections import Connection

import bgpool
from benchmarks.clients.mysqls import KnownConnection, bare, prepare_rsa
from bgpool import Phase, testing

__all__ = ["CLIENTS", "Orders"]

#: The time after which the early trial login on green and the work of the phases are over.
_SETTLE_S: Final = 0.2
#: The pieces of a login, and the functions in which they happen.
_PIECES: Final[tuple[tuple[str, Any, str], ...]] = (
    ("login", Connection, "__init__"),
    ("context", Connection, "_create_ssl_ctx"),
    ("handshake", ssl.SSLContext, "wrap_socket"),
    ("encryption", _auth, "sha2_rsa_encrypt"),
    ("statements", Connection, "set_character_set"),
    ("statements", Connection, "autocommit"),
)


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders of the process.

    Attributes:
        client: The client in CLIENTS.
        names, addresses: The names and addresses of blue and green.
        bundle: The file of ``ssl_ca`` that is replaced by a copy before the switchover begins; empty for none.
    """

    client: str
    dsn: str
    names: tuple[str, str]
    addresses: tuple[str, str]
    resolver: str
    run_dir: str
    bundle: str = ""

    def as_line(self) -> str:
        """Return the orders as a line for standard input."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Orders:
        """Return the orders in a line of as_line()."""
        return cls(**json.loads(line))


_spent_ns: Final[dict[str, int]] = {}


def main() -> None:
    """Get ready, wait, log in, and print the ms of CPU time by piece and of the whole process."""
    orders = Orders.from_line(sys.stdin.readline())
    with CLIENTS[orders.client](orders) as release:
        for piece, owner, name in _PIECES:
            setattr(owner, name, _measured(piece, getattr(owner, name)))
        print("held", flush=True)
        sys.stdin.readline()
        _spent_ns.clear()
        began_ns = time.process_time_ns()
        release()
        whole_ns = time.process_time_ns() - began_ns
        pieces = dict(_spent_ns)
    print(json.dumps({piece: ns / 1e6 for piece, ns in {**pieces, "whole": whole_ns}.items()}), flush=True)


def _measured(piece: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began_ns = time.thread_time_ns()
        try:
            return call(*args, **kwargs)
        finally:
            _spent_ns[piece] = _spent_ns.get(piece, 0) + time.thread_time_ns() - began_ns

    return wrapper


def _replace(bundle: str) -> None:
    if bundle:
        like = Path(f"{bundle}.new")
        shutil.copyfile(bundle, like)
        like.replace(bundle)


@contextmanager
def _pool(orders: Orders) -> Iterator[Callable[[], object]]:
    blue, green = orders.names
    with testing.deployment(orders.run_dir, blue=blue, green=green, bg_resolver=orders.resolver) as deployment:
        pool = bgpool.get_pool(
            orders.dsn, bg_run_dir=orders.run_dir, bg_resolver=orders.resolver, min_size=1, max_size=1
        )  # fmt: skip

        def use() -> None:
            pool.putconn(pool.getconn())

        use()
        time.sleep(_SETTLE_S)
        _replace(orders.bundle)
        deployment.phase(Phase.PREPARATION)
        time.sleep(_SETTLE_S)
        deployment.phase(Phase.IN_PROGRESS)
        caller = threading.Thread(target=use)
        caller.start()
        deployment.wait_held()
        time.sleep(_SETTLE_S)

        def release() -> None:
            deployment.release()
            caller.join()

        yield release


@contextmanager
def _oracle(orders: Orders) -> Iterator[Callable[[], object]]:
    """Be the oracle, which knows both addresses and has prepared everything that it can."""
    prepare_rsa()
    params = bare(orders.dsn)
    KnownConnection(orders.addresses[0], **params).close()
    yield lambda: KnownConnection(orders.addresses[1], **params)


@contextmanager
def _pymysql(orders: Orders) -> Iterator[Callable[[], object]]:
    """Be PyMySQL with its defaults: a TLS context for each connection."""
    params = bare(orders.dsn)
    if "ssl" in params:
        del params["ssl"]
        authority = orders.dsn.partition("ssl_ca=")[2].partition("&")[0]
        params |= {"ssl_ca": authority, "ssl_verify_cert": True, "ssl_verify_identity": True}
    KnownConnection(orders.addresses[0], **params).close()
    yield lambda: KnownConnection(orders.addresses[1], **params)


CLIENTS: Final = {"pool": _pool, "oracle": _oracle, "PyMySQL": _pymysql}

if __name__ == "__main__":
    main()

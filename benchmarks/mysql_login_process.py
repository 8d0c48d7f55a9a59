"""One process that logs in to green for the first time, at a release: how much CPU time that takes, piece by piece.

Orders come as one line on standard input, because a password is in them. "held" is printed once all is ready, and
whatever comes next on standard input is the release.
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
from benchmarks.clients.mysqls import KnownConnection, bare, rehearse
from bgpool import Phase, testing

__all__ = ["CLIENTS", "Orders"]

#: The login that is tried on green ahead, and the work of the phases, are over by then.
_SETTLE_S: Final = 0.2
#: What is measured, and where it happens.
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
    """What is to be done.

    Attributes:
        client: Which of CLIENTS.
        names, addresses: Blue's and green's.
        bundle: The file of ``ssl_ca`` that is replaced, by its like, before the switchover begins; empty for none.
    """

    client: str
    dsn: str
    names: tuple[str, str]
    addresses: tuple[str, str]
    resolver: str
    run_dir: str
    bundle: str = ""

    def as_line(self) -> str:
        """For standard input."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Orders:
        """What as_line() gave."""
        return cls(**json.loads(line))


_spent_ns: Final[dict[str, int]] = {}


def main() -> None:
    """Be ready, wait, log in, and tell: ms of CPU time by piece, and of the whole process."""
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
    """Knows both addresses, and has made ready what it can before."""
    rehearse()
    params = bare(orders.dsn)
    KnownConnection(orders.addresses[0], **params).close()
    yield lambda: KnownConnection(orders.addresses[1], **params)


@contextmanager
def _pymysql(orders: Orders) -> Iterator[Callable[[], object]]:
    """As its users have it: a context for each connection."""
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

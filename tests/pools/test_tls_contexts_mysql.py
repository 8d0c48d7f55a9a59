"""The TLS contexts of MySQL pools: one per set of files, a new one after a file has changed, none made at a release."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest
from pymysql.connections import Connection

from bgpool import testing
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.lab.mysql_proxy import MysqlProxy
from bgpool.lab.tls_proxy import Authority
from bgpool.lab.waiting import wait_until
from bgpool.pools.mysql.pool import MysqlPool
from bgpool.testing import Deployment

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., MysqlPool]

BLUE, GREEN = "blue.test", "green.test"


class Entrance:
    """A TLS proxy in front of a server, whose certificate's authority may be replaced."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        address = pair.blue.address
        with socket.create_server((address, 0)) as taken:
            port = int(taken.getsockname()[1])
        self.relay = MysqlProxy("tls", address=address, port=port, backend_port=pair.blue.port)
        self.directory = directory
        self.ca_file = directory / "trusted.pem"
        self.renew()
        hosts = directory / "hosts"
        hosts.write_text(f"{address} {BLUE}\n{address} {GREEN}\n")
        self.resolver = f"hosts:{hosts}"
        login = urlsplit(pair.dsn).netloc.split("@")[0]
        self.dsn = f"mysql://{login}@{BLUE}:{port}/app?ssl_ca={self.ca_file}&ssl_verify_identity=true"

    def renew(self) -> None:
        """Present a certificate of another authority, the only trusted one from now on."""
        authority = Authority(self.directory)
        self.relay.context = authority.context([BLUE])
        authority.ca_file.replace(self.ca_file)


@pytest.fixture
def entrance(mysql_pair: Pair, tmp_path: Path) -> Iterator[Entrance]:
    entrance = Entrance(mysql_pair, tmp_path)
    yield entrance
    entrance.relay.close()


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have made contexts."""
    found: list[str] = []
    make: Any = Connection._create_ssl_ctx  # type: ignore[attr-defined]  # not in the stubs

    def make_and_tell(self: object, sslp: Any) -> Any:
        if sslp:
            found.append(threading.current_thread().name)
        return make(self, sslp)

    monkeypatch.setattr(Connection, "_create_ssl_ctx", make_and_tell)
    return found


@pytest.fixture
def deployment(entrance: Entrance, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment with both hosts behind the proxy."""
    with testing.deployment(tmp_path / "run", blue=BLUE, green=GREEN, bg_resolver=entrance.resolver) as deployment:
        yield deployment


def use(pool: MysqlPool, connections: int) -> None:
    """Use *connections* connections of *pool* at the same time."""
    for connection in [pool.getconn() for _ in range(connections)]:
        pool.putconn(connection)


def test_many_logins_of_two_pools_share_a_context(make_pool: MakePool, entrance: Entrance, makers: list[str]) -> None:
    for _ in range(2):
        pool = make_pool(entrance.dsn, bg_resolver=entrance.resolver, min_size=4, max_size=4)
        use(pool, 4)
        pool.drain()
        use(pool, 4)
    assert makers == [threading.current_thread().name], "the first checkout made the context, before any connect"


def test_other_parameters_have_another_context(make_pool: MakePool, entrance: Entrance, makers: list[str]) -> None:
    use(make_pool(entrance.dsn, bg_resolver=entrance.resolver), 1)
    unproved = entrance.dsn.replace("ssl_verify_identity=true", "ssl_verify_cert=true")
    use(make_pool(unproved, bg_resolver=entrance.resolver), 1)
    assert len(makers) == 2


def test_a_renewed_certificate_is_noticed(make_pool: MakePool, entrance: Entrance, makers: list[str]) -> None:
    pool = make_pool(entrance.dsn, bg_resolver=entrance.resolver)
    use(pool, 1)
    entrance.renew()
    pool.drain()
    use(pool, 1)
    assert len(makers) == 2


def test_a_server_that_is_no_longer_trusted_is_refused(make_pool: MakePool, entrance: Entrance) -> None:
    pool = make_pool(entrance.dsn, bg_resolver=entrance.resolver, timeout=2.0)
    use(pool, 1)
    shown = entrance.relay.context
    entrance.renew()
    entrance.relay.context = shown
    pool.drain()
    with pytest.raises(pymysql.OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        use(pool, 1)


def test_no_context_is_made_at_a_release(
    deployment: Deployment, make_pool: MakePool, entrance: Entrance, makers: list[str]
) -> None:
    pool = make_pool(entrance.dsn, bg_resolver=entrance.resolver)
    use(pool, 1)
    entrance.renew()
    deployment.phase(Phase.PREPARATION)
    wait_until(lambda: makers[1:] == ["bgpool-load"], timeout_s=30, what="the new file is loaded")
    deployment.phase(Phase.IN_PROGRESS)
    served = threading.Thread(target=use, args=(pool, 1))
    served.start()
    deployment.wait_held()
    deployment.release()
    served.join()
    assert len(makers) == 2


def test_a_pool_first_used_during_a_hold_makes_its_context_before_the_release(
    deployment: Deployment, make_pool: MakePool, entrance: Entrance, makers: list[str]
) -> None:
    deployment.phase(Phase.IN_PROGRESS)
    served = threading.Thread(target=use, args=(make_pool(entrance.dsn, bg_resolver=entrance.resolver), 1))
    served.start()
    deployment.wait_held()
    assert len(makers) == 1
    deployment.release()
    served.join()
    assert len(makers) == 1

"""The name is verified for every connection: to a recorded address, to green, and to cancel a statement."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.phase import Phase
from bgpool.integrations import asyncpg as bg
from bgpool.integrations.asyncpg.tls import NamedContext
from bgpool.lab import Pair
from bgpool.lab.tls_proxy import Authority, TlsProxy
from bgpool.testing import Deployment
from tests.asyncpg.conftest import Opened, Run
from tests.waiting import until

pytestmark = pytest.mark.lab

WHERE = "SELECT host(inet_server_addr())"


class Fronts:
    """TLS proxies of both servers, with a certificate for the name of each."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        self.authority = Authority(directory)
        self.pair = pair
        with socket.create_server((pair.blue.address, 0)) as taken:
            port = int(taken.getsockname()[1])
        names = (pair.names.blue.primary, pair.names.green.primary)
        self.blue, self.green = (
            TlsProxy(server, port, self.authority.context([name]))
            for server, name in zip((pair.blue, pair.green), names, strict=True)
        )
        login = pair.dsn.partition("://")[2].partition("@")[0]
        self.plain = f"postgresql://{login}@{names[0]}:{port}/app"
        self.dsn = f"{self.plain}?sslmode=verify-full&sslrootcert={self.authority.ca_file}"

    def prove(self, front: TlsProxy, name: str) -> None:
        front.context = self.authority.context([name])

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.ca_file))


@pytest.fixture
def fronts(pair: Pair, tmp_path: Path) -> Iterator[Fronts]:
    fronts = Fronts(pair, tmp_path)
    yield fronts
    fronts.blue.close()
    fronts.green.close()


@pytest.mark.parametrize("given", ["dsn", "context", "text"])
def test_the_name_is_proved_by_name_at_the_recorded_address_and_at_green(
    opened: Opened, fronts: Fronts, deployment: Deployment, pair: Pair, run: Run, given: str
) -> None:
    own = fronts.trusting()
    options: dict[str, Any] = {"dsn": fronts.dsn}
    if given == "context":
        options = {"dsn": fronts.plain, "ssl": own}
    elif given == "text":
        options = {"dsn": f"{fronts.plain}?sslrootcert={fronts.authority.ca_file}", "ssl": "verify-full"}

    async def main() -> None:
        # For this time a failure to connect is attributed to the switchover.
        async with opened(**options, bg_connect_timeout_ms=500) as pool:
            uses = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            for phase in (Phase.CREATED, Phase.PREPARATION):
                deployment.phase(phase)
                await pool.expire_connections()
                assert await pool.fetchval(WHERE) == pair.blue.address
                # The lab's servers are behind TLS proxies.
                assert await pool.fetchval(uses) is False
                async with pool.acquire() as connection:
                    assert connection._con._transport.get_extra_info("sslcontext") is not None
            deployment.phase(Phase.IN_PROGRESS)
            deployment.release()
            # It has green's certificate until that is renewed, and then blue's.
            assert await pool.fetchval(WHERE) == pair.green.address
            fronts.prove(fronts.green, pair.names.blue.primary)
            pool.connector.drain()
            assert await pool.fetchval(WHERE) == pair.green.address
            fronts.prove(fronts.green, "other.example")
            pool.connector.drain()
            with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
                await pool.fetchval(WHERE)

    run(main())
    assert type(own) is ssl.SSLContext, "it is the application's"


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])
def test_a_wrong_name_is_refused(
    opened: Opened, fronts: Fronts, deployment: Deployment, run: Run, phase: Phase
) -> None:
    async def main() -> None:
        fronts.prove(fronts.blue, "other.example")
        deployment.phase(phase)
        async with opened(fronts.dsn) as pool:
            with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
                await pool.fetchval("SELECT 1", timeout=30)

    run(main())


def test_a_cancel_goes_to_the_same_address_and_has_the_name_proved(
    opened: Opened, fronts: Fronts, deployment: Deployment, run: Run
) -> None:
    async def main() -> None:
        deployment.phase(Phase.PREPARATION)
        async with opened(fronts.dsn) as pool:
            async with pool.acquire() as connection:
                before = connection.get_server_pid()
                with pytest.raises(asyncio.TimeoutError):
                    await connection.execute("SELECT pg_sleep(20)", timeout=0.1)
                assert await connection.fetchval("SELECT pg_backend_pid()", timeout=30) == before
            fronts.prove(fronts.blue, "other.example")
            async with pool.acquire(timeout=30) as connection:
                with pytest.raises(asyncio.TimeoutError):
                    await connection.execute("SELECT pg_sleep(1)", timeout=0.1)
                # It is not sent to a server that cannot prove the name; the connection is not used again.
                await until(lambda: connection._con is None or connection.is_closed())

    run(main())


def test_a_context_is_made_once_for_each_name(fronts: Fronts, deployment: Deployment, pair: Pair) -> None:
    async def main() -> None:
        pool = bg.create_pool(fronts.dsn, bg_resolver=pair.resolver, bg_run_dir=str(deployment.run_dir))
        recipe: Any = pool.connector._recipe
        name: Callable[[str], Any] = lambda name: recipe._tls_for(name)["ssl"]  # noqa:E731  # a line for two uses
        assert name("a.test") is name("a.test") is not name("b.test")
        assert isinstance(name("a.test"), NamedContext)
        with socket.socket() as sock, pytest.raises(TypeError, match="event loop only"):
            name("a.test").wrap_socket(sock)

    asyncio.run(main())

"""MySQL engines whose servers prove their names: what SQLAlchemy makes of ``ssl_ca`` in a URL counts as elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.testing import Deployment

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)


@pytest.fixture(scope="module")
def tls_pair() -> Iterator[Pair]:
    """Servers with certificates, each for the server's own name."""
    with Pair(engine="mysql", tls="verified") as pair:
        yield pair


@pytest.fixture
def pair(tls_pair: Pair) -> Pair:
    return tls_pair


@pytest.mark.parametrize(
    ("query", "connect_args"),
    [
        (["ssl_ca"], []),
        ([], ["ssl"]),
        (["ssl_ca", "ssl_verify_identity"], []),
        (["ssl_verify_identity"], ["ssl"]),
        ([], ["ssl_ca", "ssl_verify_identity"]),
    ],
)
@pytest.mark.usefixtures("kit")
def test_green_is_tried_under_its_own_name(
    query: list[str], connect_args: list[str], pair: Pair, deployment: Deployment
) -> None:
    plain = make_url(pair.dsn)
    ca = str(plain.query["ssl_ca"])
    values: dict[str, Any] = {"ssl_ca": ca, "ssl_verify_identity": "true", "ssl": {"ca": ca}}
    own = {"bg_resolver": pair.resolver, "bg_run_dir": str(deployment.run_dir), "bg_connect_timeout_ms": "5000"}
    engine = sqlalchemy.create_engine(
        plain.set(drivername="mysql+bgpool", query={**{name: values[name] for name in query}, **own}),
        connect_args={name: values[name] for name in connect_args},
    )
    for name, server in (("blue", pair.blue), ("green", pair.green)):
        with engine.connect() as connection:
            drivers: Any = connection.connection.driver_connection
            assert drivers.peer == server.address
            # Of a server that has proved nothing there is none.
            names = [found for _, found in drivers.certificate()["subjectAltName"]]
            assert getattr(pair.names, name).primary in names
        deployment.release()
    engine.dispose()

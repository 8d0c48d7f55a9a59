"""Engines of SQLAlchemy's on a pair of real servers of each kind, and deployments whose phases a test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import URL, make_url

from bgpool import testing
from bgpool.core.engine import Engine
from bgpool.lab import Pair, ledger
from bgpool.testing import Deployment
from tests.engines import KITS, Kit


@pytest.fixture(scope="session")
def postgres_pair() -> Iterator[Pair]:
    """A blue and a green PostgreSQL server that no test switches over."""
    with Pair(settings={"max_prepared_transactions": "5"}) as pair:
        ledger.create(pair)
        yield pair


@pytest.fixture(scope="session")
def mysql_pair() -> Iterator[Pair]:
    """The same of MySQL."""
    with Pair(engine="mysql") as pair:
        ledger.create(pair)
        yield pair


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a *kit* runs on both engines, or on those that its module's ``ENGINES`` name."""
    if "kit" in metafunc.fixturenames:
        engines = getattr(metafunc.module, "ENGINES", tuple(KITS))
        metafunc.parametrize("kit", [KITS[engine] for engine in engines], ids=[engine.value for engine in engines])


@pytest.fixture
def pair(kit: Kit, request: pytest.FixtureRequest) -> Pair:
    """The servers of the engine."""
    found: Pair = request.getfixturevalue("mysql_pair" if kit.engine is Engine.MYSQL else "postgres_pair")
    return found


@pytest.fixture
def deployment(pair: Pair, tmp_path: Path) -> Iterator[Deployment]:
    """The deployment that the engines of *make_engine* follow; a test sets its phases."""
    with testing.deployment(
        tmp_path / "run",
        blue=pair.names.blue.primary,
        green=pair.names.green.primary,
        bg_resolver=pair.resolver,
        bg_switchover_timeout_ms=60_000,
    ) as deployment:
        yield deployment


@pytest.fixture
def url(pair: Pair, deployment: Deployment) -> URL:
    """The URL of blue, in the deployment."""
    plain = make_url(pair.dsn)
    bg = {"bg_resolver": pair.resolver, "bg_run_dir": str(deployment.run_dir)}
    return plain.set(drivername=f"{plain.drivername}+bgpool").update_query_dict(bg)


@pytest.fixture
def make_engine(url: URL) -> Iterator[Callable[..., Any]]:
    """Makes engines, of another *url* perhaps; keywords that begin with ``bg_`` go into it, others to create_engine."""
    made: list[sqlalchemy.Engine] = []

    def make(url: URL = url, **options: Any) -> sqlalchemy.Engine:
        bg = {name: str(options.pop(name)) for name in [*options] if name.startswith("bg_")}
        engine = sqlalchemy.create_engine(url.update_query_dict(bg), **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()

"""Engines of SQLAlchemy's on a pair of real servers of each kind, and deployments whose phases a test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import URL, make_url

from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.engines import Kit, on_each_engine
from tests.greenlets import create_engine, end


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See there."""
    on_each_engine(metafunc)


@pytest.fixture
def url(pair: Pair, deployment: Deployment) -> URL:
    """The URL of blue, in the deployment."""
    plain = make_url(pair.dsn)
    bg = {"bg_resolver": pair.resolver, "bg_run_dir": str(deployment.run_dir)}
    return plain.set(drivername=f"{plain.drivername}+bgpool").update_query_dict(bg)


@pytest.fixture
def make_engine(kit: Kit, url: URL) -> Iterator[Callable[..., Any]]:
    """Makes engines, of another *url* perhaps; keywords that begin with ``bg_`` go into it, others to create_engine."""
    made: list[sqlalchemy.Engine] = []

    def make(url: URL = url, **options: Any) -> sqlalchemy.Engine:
        bg = {name: str(options.pop(name)) for name in [*options] if name.startswith("bg_")}
        engine = create_engine(kit, url.update_query_dict(bg), **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        end(kit, engine)

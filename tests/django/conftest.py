"""Databases of Django's on a pair of real servers of each kind, and deployments whose phases a test sets."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from sqlalchemy.engine import make_url

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.engines import Kit, on_each_engine

#: The setting ENGINE of each.
ENGINES = {
    Engine.POSTGRESQL: "bgpool.integrations.django.postgresql",
    Engine.MYSQL: "bgpool.integrations.django.mysql",
}
_numbers = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """See there."""
    on_each_engine(metafunc)


@pytest.fixture(scope="session", autouse=True)
def configured() -> None:
    """Django, set up once in a process, with no database: tests add theirs."""
    if not settings.configured:
        settings.configure(USE_TZ=True, SECRET_KEY="of the tests", INSTALLED_APPS=["bgpool.integrations.django"])
        django.setup()


@pytest.fixture
def database(kit: Kit, pair: Pair, deployment: Deployment) -> dict[str, Any]:
    """The settings of blue's database, in the deployment."""
    url = make_url(pair.dsn)
    return {
        "ENGINE": ENGINES[kit.engine],
        "HOST": url.host,
        "PORT": str(url.port),
        "USER": url.username,
        "PASSWORD": url.password,
        "NAME": url.database,
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "bg_id": deployment.bg_id,
            "bg_resolver": pair.resolver,
            "bg_run_dir": str(deployment.run_dir),
        },
    }


@pytest.fixture
def make_database(database: dict[str, Any]) -> Iterator[Callable[..., str]]:
    """Add databases to Django's settings: *database* with other settings, and *options* in addition to its own.

    Return the alias; ``connections[alias]`` is this thread's wrapper.
    """
    made: list[str] = []

    def make(options: dict[str, Any] | None = None, **changed: Any) -> str:
        # Like Django's engine, that of bgpool refuses to keep connections of a pool.
        max_age = {"CONN_MAX_AGE": 0} if options and options.get("pool") else {}
        whole = {**database, **max_age, **changed}
        whole["OPTIONS"] = {**whole["OPTIONS"], **(options or {})}
        defaults = connections.configure_settings({"default": whole})["default"]
        alias = f"test{next(_numbers)}"
        connections.settings[alias] = defaults
        made.append(alias)
        return alias

    yield make
    for alias in made:
        # An engine that cannot be loaded has left nothing.
        with contextlib.suppress(ImproperlyConfigured, ImportError):
            wrapper: Any = connections[alias]
            wrapper.close()
            if hasattr(wrapper, "close_pool"):
                wrapper.close_pool()
            del connections[alias]
        del connections.settings[alias]


@pytest.fixture
def entries(kit: Kit, pair: Pair) -> Iterator[int]:
    """Return the number of rows of worker 88 in the ledger."""
    with kit.connect(pair) as connection:
        for n in range(300):
            kit.execute(connection, f"INSERT INTO ledger (worker, thread, n) VALUES (88, 8, {n})")
        connection.commit()
    yield 300
    with kit.connect(pair) as connection:
        kit.execute(connection, "DELETE FROM ledger WHERE worker = 88")
        connection.commit()

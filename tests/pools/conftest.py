"""One pair of real servers for all tests, and deployments whose phases are set by the test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker

from bgpool import testing
from bgpool.core.engine import Engine
from bgpool.dsn import parse
from bgpool.lab import Pair, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.participant import Participant
from bgpool.pools.pool import Pool
from bgpool.pools.source import ConnectionSource
from bgpool.registry import ASYNC_POOLS, CONNECTORS, POOLS
from bgpool.testing import Deployment
from tests.engines import ASYNC_POOL, ASYNCPG, KITS, WAYS, Kit, Sqlalchemy, extra_kits
from tests.greenlets import create_engine, end, run
from tests.pools.bridge import Bridge


@pytest.fixture(scope="session")
def postgres_pair() -> Iterator[Pair]:
    """A blue and a green PostgreSQL server that no test switches over."""
    with Pair() as pair:
        ledger.create(pair)
        yield pair


@pytest.fixture(scope="session")
def mysql_pair() -> Iterator[Pair]:
    """A MySQL pair, without the TLS that servers offer by default: the proxies of the tests read the traffic."""
    with Pair(engine="mysql", tls="disabled") as pair:
        ledger.create(pair)
        yield pair


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by the kits of the module's ``ENGINES``; for units of work, by SQLAlchemy's kits, too.

    A module with ``ON_ASYNC_POOL``, the marks of such tests, also runs on an AsyncPool, except for tests that are
    marked as specific to threads. A module with ``ON_ASYNCPG`` also runs through SQLAlchemy on asyncpg; all other ways
    through SQLAlchemy are then part of the full run only.
    """
    if "kit" in metafunc.fixturenames:
        engines = getattr(metafunc.module, "ENGINES", (Engine.POSTGRESQL,))
        kits: list[Kit] = [KITS[engine] for engine in engines] + extra_kits(metafunc)
        if "make_runner" in metafunc.fixturenames:
            kits = [kit for engine in engines for kit in WAYS[engine]]
        on_asyncpg = getattr(metafunc.module, "ON_ASYNCPG", False)
        if on_asyncpg and "make_runner" in metafunc.fixturenames:
            kits += [Sqlalchemy(ASYNCPG, sessions=sessions) for sessions in (True, False)]
        params = [
            pytest.param(kit, id=kit.name, marks=[pytest.mark.full] if _repeats(kit, on_asyncpg=on_asyncpg) else [])
            for kit in kits
        ]
        on_async_pool = getattr(metafunc.module, "ON_ASYNC_POOL", None)
        of_threads = metafunc.definition.get_closest_marker("threads")
        if on_async_pool is not None and of_threads is None:
            params.append(pytest.param(ASYNC_POOL, id=ASYNC_POOL.name, marks=on_async_pool))
        metafunc.parametrize("kit", params)


def _repeats(kit: Kit, *, on_asyncpg: bool) -> bool:
    """Return whether *kit* is redundant: Connection differs from Session in the same way as in threads on PostgreSQL.

    With *on_asyncpg*, all other kits are redundant, too: asyncpg's sessions combine SQLAlchemy, a loop and another
    driver.
    """
    if not isinstance(kit, Sqlalchemy):
        return False
    in_threads_on_postgres = kit.engine is Engine.POSTGRESQL and not kit.in_greenlet
    return not (kit.on_asyncpg and kit.sessions) if on_asyncpg else not (kit.sessions or in_threads_on_postgres)


@pytest.fixture
def pair(kit: Kit, request: pytest.FixtureRequest) -> Pair:
    """The servers of the engine."""
    found: Pair = request.getfixturevalue("mysql_pair" if kit.engine is Engine.MYSQL else "postgres_pair")
    return found


@pytest.fixture
def timer_ms() -> int:
    """The switchover timer of *deployment*."""
    return 60_000


@pytest.fixture
def deployment(pair: Pair, tmp_path: Path, timer_ms: int) -> Iterator[Deployment]:
    """The deployment that the pools of *make_pool* follow; a test sets its phases."""
    with testing.deployment(
        tmp_path / "run",
        blue=pair.names.blue.primary,
        green=pair.names.green.primary,
        bg_resolver=pair.resolver,
        bg_switchover_timeout_ms=timer_ms,
    ) as deployment:
        yield deployment


@pytest.fixture
def make_pool(kit: Kit, pair: Pair, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a maker of pools that follow the segment in the test's own directory and start no monitor."""
    usual = {"min_size": 1, "max_size": 2, "timeout": 20.0}
    if kit is not ASYNC_POOL:
        yield from maker(POOLS, pair, tmp_path, usual)
        return
    with Bridge() as bridge:
        for make in maker(ASYNC_POOLS, pair, tmp_path, usual):
            yield bridge.maker(make)


@pytest.fixture
def make_connector(pair: Pair, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return such a maker of connectors."""
    yield from maker(CONNECTORS, pair, tmp_path, {})


def maker(kinds: Mapping[Engine, type[Any]], pair: Pair, tmp_path: Path, usual: Mapping[str, Any]) -> Iterator[Any]:
    """Make sources of *kinds* with the *usual* options and others, and close them."""
    made: list[ConnectionSource[Any]] = []

    def make(dsn: str | None = None, **options: Any) -> ConnectionSource[Any]:
        place, settings, left = parse(dsn or pair.dsn, {"bg_resolver": pair.resolver, **usual, **options})
        participant = Participant(settings.bg_id, tmp_path / "run", lambda _files: None)
        made.append(kinds[place.engine](place, settings, participant, left))
        return made[-1]

    yield make
    for one in made:
        one.stop()


class Runner:
    """Runs units of work through SQLAlchemy, with the interface of a pool."""

    def __init__(self, maker: Any) -> None:
        self._maker = maker

    def run(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """See Pool.run."""
        return run(self._maker, fn, *args, **options)


@pytest.fixture
def make_engine(kit: Kit, pair: Pair, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a maker of SQLAlchemy engines in the test's own directory; without a *deployment*, a monitor starts.

    Options that begin with ``bg_`` become part of the URL.
    """
    made: list[Any] = []

    def make(dsn: str | None = None, **options: Any) -> sqlalchemy.Engine:
        plain = make_url(dsn or pair.dsn)
        bg = {name: str(options.pop(name)) for name in [*options] if name.startswith("bg_")}
        query = {"bg_resolver": pair.resolver, "bg_run_dir": str(tmp_path / "run"), **bg}
        suffix = kit.suffix if isinstance(kit, Sqlalchemy) else "+bgpool"
        url = plain.set(drivername=f"{plain.drivername}{suffix}").update_query_dict(query)
        options = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 20.0} | options
        engine = create_engine(kit, url, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        assert engine.pool.checkedout() == 0, "a slot was lost"
        end(kit, engine)
        engine.dialect.bgpool_connector.stop()


@pytest.fixture
def make_runner(kit: Kit, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a maker of objects with ``run``: a pool, or SQLAlchemy with its own engine, which needs a *deployment*."""
    if not isinstance(kit, Sqlalchemy):
        pools: Callable[..., Any] = request.getfixturevalue("make_pool")
        return pools
    make_engine, sessions = request.getfixturevalue("make_engine"), kit.sessions

    def make(dsn: str | None = None, max_size: int = 2, **bg: Any) -> Runner:
        engine = make_engine(dsn, pool_size=max_size, **bg)
        return Runner(sessionmaker(engine) if sessions else engine)

    return make


@pytest.fixture
def returning(make_pool: Callable[..., Any]) -> Pool[Any]:
    """A pool of one connection whose close() returns it."""
    pool: Pool[Any] = make_pool(max_size=1, close_returns=True)
    return pool


@pytest.fixture
def nudges(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pool[Any]], list[int]]:
    """Return a function that counts the nudges of a pool."""

    def count(pool: Pool[Any]) -> list[int]:
        counted: list[int] = []
        monkeypatch.setattr(pool._gate, "_nudge", lambda: counted.append(1))
        return counted

    return count


@pytest.fixture(autouse=True)
def _quiet_driver() -> None:
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class Work:
    """A function of a connection that inserts a row with its own key, and counts its calls."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.key = (99, 0, next(_numbers))
        self.calls = 0
        self.meanwhile: Callable[[Any], object] = lambda _conn: None

    def __call__(self, conn: Any) -> str:
        self.calls += 1
        self.kit.execute(conn, INSERT_SQL, self.key)
        self.meanwhile(conn)
        return f"call {self.calls}"

    def rows(self, pair: Pair, colour: str = "blue") -> int:
        """Return how many times its row is in the ledger."""
        server = pair.blue if colour == "blue" else pair.green
        return sum(row.key == self.key for row in ledger.read(server))


_numbers = iter(range(1, 10_000))


@pytest.fixture
def work(kit: Kit) -> Work:
    """A unit of work."""
    return Work(kit)

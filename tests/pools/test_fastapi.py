"""FastAPI's dependencies: the answer that a client gets if a transaction did not commit."""

import contextlib
import importlib
import math
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import fastapi
import psycopg
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

import bgpool
import bgpool.integrations.fastapi as ours
from bgpool.lab import Pair

lab = pytest.mark.lab

#: The second row with a number fails at the COMMIT; the row with number 13 loses its connection there.
TABLE = """
CREATE TABLE numbers (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON numbers DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.n = 13) EXECUTE FUNCTION cut()
"""
WRITE = "INSERT INTO numbers VALUES (%s)"


class Shop:
    """An application, and the contents of its database."""

    def __init__(self, app: FastAPI, pool: bgpool.AsyncPool, dsn: str) -> None:
        self.app, self.pool, self._dsn = app, pool, dsn

    def numbers(self) -> list[int]:
        """Return the committed numbers."""
        with psycopg.connect(self._dsn) as conn:
            return [n for (n,) in conn.execute("SELECT n FROM numbers ORDER BY n")]

    @contextlib.contextmanager
    def client(self) -> Iterator[TestClient]:
        """Return a client that gets an answer with 500 where a test client usually raises."""
        with TestClient(self.app, raise_server_exceptions=False) as client:
            yield client


@pytest.fixture
def dsn(postgres_pair: Pair) -> str:
    """A database with an empty table."""
    dsn = postgres_pair.direct_dsn(postgres_pair.servers[0])
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS numbers; DROP FUNCTION IF EXISTS cut;" + TABLE)
    return dsn


@pytest.fixture
def shop(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    # So that no monitor is started.
    monkeypatch.setenv("BGPOOL_DISABLE", "1")
    pool = bgpool.get_async_pool(dsn, bg_id="fastapi", bg_run_dir=str(tmp_path), min_size=1, max_size=2)
    yield Shop(application(pool), pool, dsn)
    pool.stop()


def application(pool: bgpool.AsyncPool) -> FastAPI:
    """Return an application as users write it."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with pool:
            yield

    app = FastAPI(lifespan=lifespan)
    connection = Annotated[psycopg.AsyncConnection, ours.connection(pool)]

    async def naive() -> AsyncIterator[psycopg.AsyncConnection]:
        async with pool.connection() as conn:
            yield conn

    async def pid(conn: connection) -> int:
        return conn.info.backend_pid

    @app.post("/ours/{n}")
    async def write(n: int, conn: connection) -> int:
        await conn.execute(WRITE, [n])
        return n

    @app.post("/naive/{n}")
    async def write_naively(n: int, conn: Annotated[psycopg.AsyncConnection, Depends(naive)]) -> int:
        await conn.execute(WRITE, [n])
        return n

    @app.post("/unit/{n}")
    @bgpool.transactional(pool)
    async def write_in_a_unit(conn: psycopg.AsyncConnection, n: int) -> int:
        await conn.execute(WRITE, [n])
        return n

    @app.post("/refused/{n}")
    async def refuse(n: int, conn: connection) -> None:
        await conn.execute(WRITE, [n])
        raise HTTPException(418)

    @app.post("/broken/{n}")
    async def fail(n: int, conn: connection) -> None:
        await conn.execute(WRITE, [n])
        raise ZeroDivisionError

    @app.get("/shared")
    async def share(
        conn: connection,
        again: Annotated[psycopg.AsyncConnection, ours.connection(pool)],
        first: Annotated[int, Depends(pid, scope="function")],
    ) -> bool:
        return conn is again and conn.info.backend_pid == first

    return app


@lab
class TestConnection:
    def test_the_commit_precedes_the_answer(self, shop: Shop) -> None:
        with shop.client() as client:
            answer = client.post("/ours/1")
            assert (answer.status_code, answer.json()) == (200, 1)
            assert shop.numbers() == [1]

    @pytest.mark.parametrize("n", [1, 13], ids=["refused", "cut"])
    def test_a_failed_commit_is_not_answered_with_success(self, shop: Shop, n: int) -> None:
        with shop.client() as client:
            client.post("/ours/1")
            assert client.post(f"/ours/{n}").status_code == 500
            assert shop.numbers() == [1]
            assert client.post("/ours/2").status_code == 200, "the pool still works"

    def test_a_dependency_that_only_yields_answers_with_success(self, shop: Shop) -> None:
        """The hazard that bgpool's dependency avoids. If this fails, FastAPI has changed: correct docs/servers.md."""
        with shop.client() as client:
            client.post("/naive/1")
            assert client.post("/naive/1").status_code == 200
            assert shop.numbers() == [1]

    def test_an_endpoint_may_be_a_unit_of_work(self, shop: Shop) -> None:
        with shop.client() as client:
            answer = client.post("/unit/1")
            assert (answer.status_code, answer.json()) == (200, 1)
            assert client.post("/unit/1").status_code == 500
            assert shop.numbers() == [1]

    def test_an_error_at_the_commit_is_the_applications(self, shop: Shop) -> None:
        @shop.app.exception_handler(psycopg.errors.UniqueViolation)
        async def conflict(*_: object) -> fastapi.Response:
            return fastapi.Response("twice", 409)

        with shop.client() as client:
            client.post("/ours/1")
            answer = client.post("/ours/1")
            assert (answer.status_code, answer.text) == (409, "twice")

    @pytest.mark.parametrize(("path", "status"), [("refused", 418), ("broken", 500)])
    def test_an_error_rolls_back(self, shop: Shop, path: str, status: int) -> None:
        with shop.client() as client:
            assert client.post(f"/{path}/1").status_code == status
            assert shop.numbers() == []

    def test_dependencies_of_a_request_share_one(self, shop: Shop) -> None:
        with shop.client() as client:
            assert client.get("/shared").json() is True

    def test_the_dependency_can_be_overridden(self, shop: Shop) -> None:
        class Fake:
            async def execute(self, *_: object) -> None:
                pass

        shop.app.dependency_overrides[ours.connection(shop.pool).dependency] = Fake
        with shop.client() as client:
            assert client.post("/ours/1").json() == 1
        assert shop.numbers() == []

    def test_every_request_may_have_its_own_loop(self, shop: Shop) -> None:
        # Like the requests of a TestClient that is not used as a context manager.
        client = TestClient(shop.app)
        for n in range(5):
            assert client.post(f"/ours/{n}").json() == n
        assert shop.numbers() == [0, 1, 2, 3, 4]


@lab
class TestSession:
    @pytest.mark.parametrize("n", [1, 13], ids=["refused", "cut"])
    def test_a_failed_commit_is_not_answered_with_success(self, shop: Shop, dsn: str, n: int) -> None:
        engine = create_async_engine(dsn.replace("postgresql://", "postgresql+bgpool://"))
        sessions = async_sessionmaker(engine)

        @shop.app.post("/session/{n}")
        async def write(n: int, session: Annotated[AsyncSession, ours.session(sessions)]) -> int:
            await session.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": n})
            return n

        with shop.client() as client:
            assert client.post("/session/1").status_code == 200
            assert client.post(f"/session/{n}").status_code == 500
            assert shop.numbers() == [1]
            assert client.portal is not None
            client.portal.call(engine.dispose)


class TestRefusals:
    def test_a_blocking_pool_is_refused(self) -> None:
        pool: Any = bgpool.get_pool("postgresql://app@ledger.example/app", bg_id="fastapi")
        dsn: Any = "postgresql://app:s3cret@ledger.example/app"
        for wrong, shown in ((pool, "PostgresPool"), (dsn, "str")):
            with pytest.raises(bgpool.ConfigurationError, match=f"connection: {shown} is no async pool, which bgpool"):
                ours.connection(wrong)

    @pytest.mark.parametrize("timeout", [-1, math.nan, "1"])
    def test_a_timeout_is_a_number_of_seconds(self, timeout: Any) -> None:
        pool = bgpool.get_async_pool("postgresql://app@ledger.example/app", bg_id="fastapi")
        with pytest.raises(bgpool.ConfigurationError, match=f"connection: timeout={timeout!r}: a number of seconds"):
            ours.connection(pool, timeout=timeout)

    def test_a_blocking_session_is_refused(self) -> None:
        maker: Any = sessionmaker(create_engine("sqlite://"))
        with pytest.raises(bgpool.ConfigurationError, match="is no async_sessionmaker"):
            ours.session(maker)

    @pytest.mark.parametrize("version", ["0.105.0", "0.117.1", "0.118.0", "0.120.4"])
    def test_an_older_fastapi_is_refused(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        monkeypatch.setattr(fastapi, "__version__", version)
        monkeypatch.delitem(sys.modules, ours.__name__)
        with pytest.raises(ImportError, match=rf"needs FastAPI 0\.121 or newer, and this is {version}, which cannot"):
            importlib.import_module(ours.__name__)

"""A connection that its server has reset, where psycopg fails before it has read the end of the stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool import sockets
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import KITS
from tests.pools.conftest import Work
from tests.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.threads]

MakePool = Callable[..., Pool[Any]]

KIT = KITS[Engine.POSTGRESQL]


@pytest.fixture
def reset(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Reset the server's side of a connection; the next send succeeds, and psycopg then finds an error at the socket.

    Outside of tests, the reset must arrive exactly when psycopg looks.
    """
    ended: list[int] = []
    wait = psycopg.waiting.wait

    def give_up(gen: Generator[Any, Any, Any], fileno: int, *args: Any, **kwargs: Any) -> Any:
        if fileno not in ended:
            return wait(gen, fileno, *args, **kwargs)
        ended.remove(fileno)
        next(gen)
        wait_until(lambda: sockets.has_ended(fileno))
        raise psycopg.OperationalError("connection socket closed")

    def end(conn: Any) -> None:
        KIT.kill(pair, KIT.session(conn))
        ended.append(conn.fileno())

    monkeypatch.setattr(psycopg.waiting, "wait", give_up)
    yield end
    assert ended == []


@pytest.mark.parametrize("send", ["rollback", "commit", "execute"])
@pytest.mark.usefixtures("deployment")
def test_a_reset_connection_is_lost(make_pool: MakePool, reset: Callable[[Any], None], send: str) -> None:
    pool = make_pool(max_size=1)
    conn = pool.getconn()
    conn.execute("SELECT 1")
    reset(conn)
    with pytest.raises(psycopg.OperationalError, match="socket closed"):
        conn.execute("SELECT 2") if send == "execute" else getattr(conn, send)()
    assert conn.closed
    pool.putconn(conn)
    with pool.connection() as conn:
        assert conn.execute("SELECT 3").fetchone() == (3,)


@pytest.mark.parametrize(
    ("send", "error"),
    [("execute", bgpool.SwitchoverInterrupted), ("commit", bgpool.CommitOutcomeUnknown)],
)
def test_in_a_switchover_a_reset_counts_as_a_cut(
    deployment: Deployment, make_pool: MakePool, reset: Callable[[Any], None], send: str, error: type[Exception]
) -> None:
    pool = make_pool(max_size=1, bg_drain_timeout_ms=20_000)
    conn = pool.getconn()
    conn.execute("SELECT 1")
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    reset(conn)
    with pytest.raises(error):
        conn.execute("SELECT 2") if send == "execute" else conn.commit()
    pool.putconn(conn)


def test_a_unit_of_work_is_run_again(
    deployment: Deployment, make_pool: MakePool, pair: Pair, reset: Callable[[Any], None], work: Work
) -> None:
    deployment.phase(Phase.PREPARATION)

    def lose(conn: Any) -> None:
        if work.calls == 1:
            reset(conn)
            conn.execute("SELECT 1")

    work.meanwhile = lose
    assert make_pool(max_size=1).run(work) == "call 2"
    assert work.rows(pair) == 1


def test_an_error_on_a_healthy_socket_leaves_it_open(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        conn.execute("SELECT 1")

        def refuse(gen: Generator[Any, Any, Any], *_args: Any, **_kwargs: Any) -> Any:
            gen.close()
            raise psycopg.OperationalError("sending query failed: another command is already in progress")

        with monkeypatch.context() as patch, pytest.raises(psycopg.OperationalError):
            patch.setattr(psycopg.waiting, "wait", refuse)
            conn.execute("SELECT 2")
        assert conn.execute("SELECT 3").fetchone() == (3,)

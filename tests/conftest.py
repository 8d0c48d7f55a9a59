"""Fixtures for all tests."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bgpool import registry, testing
from bgpool.core.engine import Engine
from bgpool.core.events import Answered, Resolved
from bgpool.core.phase import Phase, Role
from bgpool.lab import Pair, ledger
from bgpool.monitor.probe import now
from bgpool.pools.postgres.async_connection import AsyncAware
from bgpool.pools.postgres.blocking_connection import BlockingAware
from bgpool.pools.postgres.refusal import QUESTION
from bgpool.testing import Deployment
from tests.clusters import copy_clusters, in_memory
from tests.engines import Kit
from tests.greenlets import call_in_greenlet
from tests.pools.proxy import CommitCutter

# How long an example takes to be made, or to be tried, is the machine's affair.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="session")
def copied_clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The run begins hundreds of PostgreSQL servers."""
    tmp_path_factory.getbasetemp()  # that of pytest stays where it is
    with pytest.MonkeyPatch.context() as patch, in_memory(patch), tempfile.TemporaryDirectory() as directory:
        copy_clusters(patch, Path(directory))
        yield


@pytest.fixture(autouse=True, scope="module")
def no_pool_outlives_its_module() -> Iterator[None]:
    """Later tests of the process would meet its threads, its rows and its log lines, or get it for the same DSN."""
    yield
    for pool in registry.pools():
        pool.stop(timeout=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what may take long: whichever process began it last would keep the others waiting at the end."""
    items.sort(key=_own_limit, reverse=True)


def _own_limit(item: pytest.Item) -> float:
    """The time limit that the test itself gives, in seconds; 0 without one."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else 0.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call a test whose kit is asyncio's in a greenlet."""
    kit = pyfuncitem.funcargs.get("kit")
    if not isinstance(kit, Kit) or not kit.in_greenlet:
        return None
    call_in_greenlet(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have recorded as ``told``: a result that is more than passed or failed."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(str(value))


@pytest.fixture
def own_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """caplog, without records that the garbage collector causes for earlier tests.

    For example, asyncio logs a call of asyncpg.connect that was cancelled while its socket opened, at ERROR, when it is
    collected.
    """
    gc.collect()
    caplog.clear()
    return caplog


@pytest.fixture
def patient_threads() -> Iterator[None]:
    """Keeps other threads from asking for the interpreter lock during a fork without hooks, which would lose it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


# -- a pair of each engine, for the tests of frameworks ------------------------------------------------------------


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


@pytest.fixture
def pair(kit: Kit, request: pytest.FixtureRequest) -> Pair:
    """The servers of the engine."""
    found: Pair = request.getfixturevalue("mysql_pair" if kit.engine is Engine.MYSQL else "postgres_pair")
    return found


@pytest.fixture
def deployment(pair: Pair, tmp_path: Path) -> Iterator[Deployment]:
    """The deployment of *pair*; a test sets its phases."""
    with testing.deployment(
        tmp_path / "run",
        blue=pair.names.blue.primary,
        green=pair.names.green.primary,
        bg_resolver=pair.resolver,
        bg_switchover_timeout_ms=60_000,
    ) as deployment:
        yield deployment


@pytest.fixture
def cutter(pair: Pair) -> Iterator[CommitCutter]:
    """Stands where blue's name leads to."""
    address = pair.blue.address.rsplit(".", 1)[0] + ".99"
    with CommitCutter(address, pair.port, (pair.blue.address, pair.port)) as cutter:
        yield cutter


@pytest.fixture
def cut_at_the_question(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blue takes no writes; it cuts the first connection that asks whether it does, and takes writes again then."""
    asked: list[object] = []

    def cutting(exchange: Callable[..., Any]) -> Callable[..., Any]:
        async def cut(self: object, gen: Any) -> Any:
            if not asked and gen.gi_frame.f_locals.get("command") == QUESTION:
                asked.append(gen)
                pair.blue.set_read_only(False)
                pair.blue.cut_clients()
            return await exchange(self, gen)

        return cut

    for kind in (BlockingAware, AsyncAware):
        monkeypatch.setattr(kind, "_exchange", cutting(kind._exchange))
    pair.blue.set_read_only(True)
    yield
    assert asked
    pair.blue.set_read_only(False)


@pytest.fixture
def replica() -> bool:
    """True if green was a physical replica before the switchover."""
    return True


@pytest.fixture
def prepared(deployment: Deployment, cutter: CommitCutter, replica: bool) -> Deployment:
    """A switchover is prepared, and blue is behind the cutter."""
    blue = deployment.snapshot.hosts_of(Role.SOURCE)[0].name
    deployment.tell(Resolved(now(), {blue: (cutter.address,)}))
    deployment.tell(Answered(now(), Role.TARGET, read_only=True, replica=replica))
    deployment.phase(Phase.PREPARATION)
    return deployment

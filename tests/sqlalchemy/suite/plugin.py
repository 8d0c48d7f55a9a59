"""A plugin of the pytest that runs SQLAlchemy's tests in a separate process: it records the outcome of each test.

SQLAlchemy's conftest must be the first to import SQLAlchemy's testing package, so no part of it is imported above.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["OUTCOMES"]

OUTCOMES: Final = "SUITE_OUTCOMES"
"""The environment variable that names the file to write."""

_WORST: Final = ("passed", "skipped", "failed")

_outcomes: dict[str, tuple[str, str]] = {}


def _note(test: str, outcome: str, reason: str) -> None:
    # bgpool's pool classes are parameters.
    test = re.sub(r"(?<=[\[-])Gated", "", test)
    if _WORST.index(outcome) >= _WORST.index(_outcomes.get(test, ("passed", ""))[0]):
        _outcomes[test] = outcome, reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that fails in its setup or teardown has failed."""
    _note(report.nodeid, report.outcome, report.longreprtext[-3000:] if report.failed else "")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that cannot be imported has failed."""
    if report.failed:
        _note(report.nodeid, "failed", report.longreprtext[-3000:])


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart() -> Iterator[None]:
    """SQLAlchemy's plugin connects in its own hook, when its conftest has been read."""
    _register_hooks()
    yield
    connector = _connector()
    if connector is not None:
        _gate_all(connector)
        dialect = _engine().dialect
        if not dialect.is_async:  # its drivers are adapted again for each engine
            _lead_through_the_driver(dialect.loaded_dbapi)


def pytest_sessionfinish() -> None:
    """Write the file."""
    connector = _connector()
    phase = connector.stats().phase if connector is not None else None
    told = {
        "outcomes": _outcomes,
        "dialect": type(_engine().dialect).__name__,
        "phase": phase.name if phase is not None else "",
    }
    Path(os.environ[OUTCOMES]).write_text(json.dumps(told), encoding="utf-8")


def _register_hooks() -> None:
    """SQLAlchemy looks for the hooks of an engine in the package of the dialect's module, where bgpool has none."""
    import sqlalchemy.dialects.mysql.provision
    import sqlalchemy.dialects.postgresql.provision  # noqa: F401  # both register their hooks
    from sqlalchemy.testing.provision import post_configure_engine

    # PostgreSQL's creates hstore and citext: without contrib no test would run. The server has what there is of them.
    post_configure_engine.for_db("postgresql")(lambda *_: None)


def _engine() -> Any:
    """Return the engine of the tests."""
    from sqlalchemy.testing import config

    return config.db


def _connector() -> Any:
    """Of the tests' engine; None with SQLAlchemy's own dialects."""
    return getattr(_engine().dialect, "bgpool_connector", None)


class _Gate:
    """A replacement for a connector in pools that a test makes itself, for example of mock connections."""

    def __init__(self, connector: Any) -> None:
        self.wait_admitted = connector.wait_admitted
        self.checkouts = 0

    def is_fit(self, connection: object) -> bool:
        """Return True: the connection is not bgpool's."""
        del connection
        return True


def _gate_all(connector: Any) -> None:
    """Have every pool be gated as an engine's is."""
    from sqlalchemy import pool

    from bgpool.integrations.sqlalchemy import gated

    gate = _Gate(connector)

    def with_gate(connect: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wrapped(self: Any) -> Any:
            if getattr(self._dialect, "bgpool_connector", None) is None:
                self._dialect.bgpool_connector = gate
                self._dialect.bgpool_switched_within = lambda _seconds: False
            return connect(self)

        return wrapped

    for own, ours in gated.GATED.items():
        setattr(ours, "connect", with_gate(ours.connect))  # noqa: B010  # mypy has no other way
        for module in (pool, pool.impl):
            setattr(module, own.__name__, ours)


def _lead_through_the_driver(driver: Any) -> None:
    """Tests replace the driver's ``connect()``, which bgpool's dialect does not use, to get at connections."""
    from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect

    made_by, called = BgpoolDialect.connect, threading.local()
    drivers = driver.connect

    def dialects(self: BgpoolDialect, *args: Any, **params: Any) -> Any:
        called.make = partial(made_by, self, *args, **params)
        return self.loaded_dbapi.connect(*args, **params)

    def connect(*args: Any, **params: Any) -> Any:
        make = vars(called).pop("make", None)
        return make() if make is not None else drivers(*args, **params)

    driver.connect = connect
    setattr(BgpoolDialect, "connect", dialects)  # noqa: B010  # mypy has no other way

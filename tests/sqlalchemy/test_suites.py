"""SQLAlchemy's own tests with bgpool's dialects: what passes with the original dialect passes with the derived one.

bgpool's pools are gated and watched in the meantime: there is a deployment in CREATED. Tests that fail with both
dialects, because of the server or the machine, do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final

import pytest

from bgpool.testing import deployment
from tests import sdists
from tests.sqlalchemy.suite import runs
from tests.sqlalchemy.suite.runs import Run
from tests.sqlalchemy.suite.server import PLAIN, Servers, servers

PART: Final = ("test/engine/test_reconnect.py",)
#: A session uses connections in the same way on each engine: one engine runs these.
SESSIONS: Final = "test/orm/test_transaction.py"
WHOLE: Final = (*PART, SESSIONS, "test/engine/test_pool.py", "test/dialect/test_suite.py")
PART_TIMEOUT_S: Final = 200.0
WHOLE_TIMEOUT_S: Final = 1200.0


class Both:
    """Runs tests with SQLAlchemy's dialect and with bgpool's, on one server."""

    def __init__(self, server: Servers, scratch: Path, suffix: str) -> None:
        """On *server*, with *scratch* for what the runs write; *suffix* is of the drivers' names in a URL."""
        self._server = server
        self._suffix = suffix
        self._scratch = scratch
        self._tree = sdists.unpacked("sqlalchemy")

    def plain(self, selection: Sequence[str], timeout_s: float, *options: str) -> Run:
        """With SQLAlchemy's."""
        url = self._server.url(PLAIN[self._server.engine] + self._suffix)
        return runs.run(self._tree, url, selection, self._scratch, options=options, timeout_s=timeout_s)

    def ours(self, selection: Sequence[str], timeout_s: float, *options: str) -> Run:
        """Run with bgpool's dialect, in a deployment."""
        with deployment(blue=self._server.blue, green=self._server.green, bg_id="suite") as made:
            url = self._server.url("bgpool" + self._suffix, bg_id="suite", bg_run_dir=str(made.run_dir))
            run = runs.run(self._tree, url, selection, self._scratch, options=options, timeout_s=timeout_s)
        assert ("Bgpool" in run.dialect, run.phase) == (True, "CREATED")
        return run

    def lost(self, plain: Run, ours: Run, timeout_s: float, *options: str) -> dict[str, str]:
        """The same as `runs.lost`."""
        return runs.lost(
            plain, ours, lambda files: (self.plain(files, timeout_s, *options), self.ours(files, timeout_s, *options))
        )


@pytest.fixture(scope="class")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Runs tests on a server of the engine."""
    with servers(request.cls.engine) as server:
        yield Both(server, tmp_path_factory.mktemp("suite"), request.cls.suffix)


class Suite:
    """A class for each engine, so that they run side by side."""

    engine: ClassVar[str]
    own: ClassVar[str]
    suffix: ClassVar[str] = ""
    #: Tests that always run in addition to PART and the dialect's own, and the least number that must pass.
    more: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[int]

    @pytest.mark.lab
    @pytest.mark.timeout(4 * PART_TIMEOUT_S)
    def test_a_part_passes(self, both: Both) -> None:
        """If all tests pass with bgpool's dialect there is nothing to compare."""
        options = ("--notimingintensive", *self.options)
        ours = both.ours([*PART, *self.more, f"{self.own}/test_dialect.py"], PART_TIMEOUT_S, *options)
        assert len(ours.of("passed")) > self.least, str(ours)
        if ours.of("failed"):
            plain = both.plain(
                sorted({test.partition("::")[0] for test in ours.of("failed")}), PART_TIMEOUT_S, *options
            )
            assert both.lost(plain, ours, PART_TIMEOUT_S, *options) == {}

    @pytest.mark.lab
    @pytest.mark.full
    @pytest.mark.timeout(4 * WHOLE_TIMEOUT_S)
    def test_what_passes_with_sqlalchemys_dialect_passes_with_bgpools(
        self, both: Both, record_property: Callable[[str, object], None]
    ) -> None:
        selection = *WHOLE, self.own
        plain, ours = both.plain(selection, WHOLE_TIMEOUT_S), both.ours(selection, WHOLE_TIMEOUT_S)
        for run in (plain, ours):
            record_property("told", str(run))
        assert both.lost(plain, ours, WHOLE_TIMEOUT_S) == {}


class TestPostgresql(Suite):
    engine = "postgresql"
    own = "test/dialect/postgresql"
    more = (SESSIONS,)
    options = ("-k", "not test_transaction or SessionTransactionTest or SavepointTest")
    least = 220


class TestAsyncio:
    """The tests of the asyncio extension."""

    engine = "postgresql"
    suffix = "_async"

    @pytest.mark.lab
    @pytest.mark.full
    @pytest.mark.timeout(4 * WHOLE_TIMEOUT_S)
    def test_what_passes_with_sqlalchemys_dialect_passes_with_bgpools(
        self, both: Both, record_property: Callable[[str, object], None]
    ) -> None:
        selection = ["test/ext/asyncio"]
        plain, ours = both.plain(selection, WHOLE_TIMEOUT_S), both.ours(selection, WHOLE_TIMEOUT_S)
        for run in (plain, ours):
            record_property("told", str(run))
        assert both.lost(plain, ours, WHOLE_TIMEOUT_S) == {}


class TestMysql(Suite):
    engine = "mysql"
    own = "test/dialect/mysql"
    least = 160


def test_what_is_lost() -> None:
    """A test that fails with both dialects, or passes when run again, is not lost; a missing or skipped one is."""
    same = {"a::1": ("passed", ""), "b::1": ("failed", "no locale"), "b::2": ("skipped", "")}
    plain = Run("", "", same | {"a::2": ("passed", ""), "a::3": ("passed", ""), "c::1": ("passed", "")})
    ours = Run("", "", same | {"a::2": ("failed", "late"), "a::3": ("failed", "why"), "b::2": ("failed", "")})
    again: list[Sequence[str]] = []

    def run(files: Sequence[str]) -> tuple[Run, Run]:
        again.append(files)
        return plain, Run("", "", same | {"a::2": ("passed", ""), "a::3": ("failed", "why"), "b::2": ("skipped", "")})

    assert runs.lost(plain, ours, run) == {"a::3": "failed\nwhy", "c::1": "not run\n"}
    assert again == [["a", "c"]]
    assert runs.lost(plain, plain, run) == {}
    assert len(again) == 1

"""Django's own tests with bgpool's engines: what passes with Django's engine passes with bgpool's.

They run twice with bgpool's: in a deployment in CREATED, where connections are gated and watched, and as in a user's
test run, where bgpool takes no part. Tests that fail with Django's engine on this server and machine are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from bgpool.integrations.django.under_test import IN_TESTS
from tests import sdists
from tests.django.suite import runs
from tests.django.suite.runs import Run
from tests.django.suite.server import OURS, Servers, servers

PART: Final = ("backends", "transactions", "transaction_hooks")
WHOLE: Final = (*PART, "basic", "queries", "select_for_update", "get_or_create", "servers", "test_runner")
PART_TIMEOUT_S: Final = 100.0
WHOLE_TIMEOUT_S: Final = 600.0


class Both:
    """Runs tests with Django's engine and with bgpool's, on one server.

    Attributes:
        server: The server.
    """

    def __init__(self, server: Servers, scratch: Path) -> None:
        """On *server*, with *scratch* for what the runs write."""
        self.server: Final = server
        self._scratch: Final = scratch
        self._tree: Final = sdists.unpacked("django")

    def plain(self, labels: Sequence[str], timeout_s: float, **options: Any) -> Run:
        """With Django's."""
        return self._run(self.server.plain(**options), labels, timeout_s, {})

    def deployed(self, labels: Sequence[str], timeout_s: float, **options: Any) -> Run:
        """Run with bgpool's engine, in a deployment."""
        with self.server.deployed(self._scratch / "run", **options) as databases:
            run = self._run(databases, labels, timeout_s, {IN_TESTS: "1"})
        assert (run.engine, run.phase) == (OURS[self.server.engine], "CREATED")
        return run

    def aside(self, labels: Sequence[str], timeout_s: float, **options: Any) -> Run:
        """Run with bgpool's engine, as a user's tests run."""
        with self.server.deployed(self._scratch / "run", **options) as databases:
            run = self._run(databases, labels, timeout_s, {})
        assert (run.engine, run.phase) == (OURS[self.server.engine], "")
        return run

    def again(self, ours: Callable[..., Run], **options: Any) -> Callable[[Sequence[str]], tuple[Run, Run]]:
        """Run labels with Django's engine and with that of bgpool, by the method given."""

        def run(labels: Sequence[str]) -> tuple[Run, Run]:
            return self.plain(labels, WHOLE_TIMEOUT_S, **options), ours(labels, WHOLE_TIMEOUT_S, **options)

        return run

    def _run(
        self, databases: dict[str, Any], labels: Sequence[str], timeout_s: float, environment: Mapping[str, str]
    ) -> Run:
        return runs.run(self._tree, databases, labels, self._scratch, environment=environment, timeout_s=timeout_s)


@pytest.fixture(scope="class")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Runs tests on a server of the engine."""
    with servers(request.cls.engine) as server:
        yield Both(server, tmp_path_factory.mktemp("suite"))


class Suite:
    """A class for each engine, so that they run side by side."""

    engine: ClassVar[str]

    @pytest.mark.lab
    @pytest.mark.timeout(4 * PART_TIMEOUT_S)
    def test_a_part_passes(self, both: Both) -> None:
        """If all tests pass with bgpool's engine there is nothing to compare."""
        ours = both.deployed(PART, PART_TIMEOUT_S)
        assert len(ours.of("passed")) > 250, str(ours)
        if ours.of("failed"):
            labels = sorted({runs.label(test) for test in ours.of("failed")})
            plain = both.plain(labels, PART_TIMEOUT_S)
            assert runs.lost(plain, ours, both.again(both.deployed)) == {}

    @pytest.mark.lab
    @pytest.mark.full
    @pytest.mark.timeout(6 * WHOLE_TIMEOUT_S)
    @pytest.mark.parametrize("options", [{}, {"pool": True}], ids=["kept", "pool"])
    def test_what_passes_with_djangos_engine_passes_with_bgpools(
        self, both: Both, options: dict[str, Any], record_property: Callable[[str, object], None]
    ) -> None:
        if options and self.engine == "mysql":
            pytest.skip("Django's engine has no pool")
        labels = (*WHOLE, "postgres_tests") if both.server.has_contrib else WHOLE
        plain = both.plain(labels, WHOLE_TIMEOUT_S, **options)
        record_property("told", str(plain))
        for way in (both.deployed, both.aside):
            ours = way(labels, WHOLE_TIMEOUT_S, **options)
            record_property("told", str(ours))
            assert runs.lost(plain, ours, both.again(way, **options)) == {}


class TestPostgresql(Suite):
    engine = "postgresql"


class TestMysql(Suite):
    engine = "mysql"


def test_what_is_lost() -> None:
    """A test that fails with both engines, or passes when run again, is not lost; a missing or skipped one is."""
    same = {"a.T.1": ("passed", ""), "b.T.1": ("failed", "no locale"), "b.T.2": ("skipped", "")}
    gone = {"c.T.1": ("passed", ""), "a.T.4": ("passed", "")}
    plain = Run("", "", same | gone | {"a.T.2": ("passed", ""), "a.T.3": ("passed", "")})
    misfit = {"a.T.4": ("misfit", "private")}
    ours = Run("", "", same | misfit | {"a.T.2": ("failed", "late"), "a.T.3": ("failed", "why")})
    again: list[Sequence[str]] = []

    def run(labels: Sequence[str]) -> tuple[Run, Run]:
        again.append(labels)
        return plain, Run("", "", same | misfit | {"a.T.2": ("passed", ""), "a.T.3": ("failed", "why")})

    assert runs.lost(plain, ours, run) == {"a.T.3": "failed\nwhy", "c.T.1": "not run\n"}
    assert again == [["a", "c"]]
    assert runs.lost(plain, plain, run) == {}
    assert len(again) == 1


def test_a_class_that_cannot_be_set_up_is_run_again_by_its_name() -> None:
    assert runs.label("setUpClass (backends.tests.T)") == "backends.tests.T"
    assert runs.label("backends.tests.T.test_it") == "backends.tests.T.test_it"

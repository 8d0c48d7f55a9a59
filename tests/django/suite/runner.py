"""The runner of Django's tests, in a separate process: it records the outcome of each test."""

from __future__ import annotations

import json
import os
import re
import unittest
from pathlib import Path
from typing import Any, Final

from django.db import connections
from django.test.runner import DiscoverRunner

from tests.django.suite import OUTCOMES

__all__ = ["Runner"]

_WORST: Final = ("passed", "skipped", "failed")


class _Result(unittest.TextTestResult):
    """Notes the worst outcome of each test; one that fails in its setup or teardown has failed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: Final[dict[str, tuple[str, str]]] = {}

    def _note(self, test: unittest.TestCase, outcome: str, reason: str = "") -> None:
        name = re.sub(r"0x[0-9a-f]+", "0x", test.id())
        if _WORST.index(outcome) >= _WORST.index(self.outcomes.get(name, ("passed", ""))[0]):
            self.outcomes[name] = outcome, reason

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's name
        super().addSuccess(test)
        self._note(test, "passed")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802  # unittest's name
        super().addExpectedFailure(test, err)
        self._note(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802  # unittest's name
        super().addSkip(test, reason)
        self._note(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802  # unittest's name
        super().addFailure(test, err)
        self._note(test, "failed", self.failures[-1][1][-3000:])

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802  # unittest's name
        super().addError(test, err)
        self._note(test, "failed", self.errors[-1][1][-3000:])

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802  # unittest's name
        super().addUnexpectedSuccess(test)
        self._note(test, "failed", "an unexpected success")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802  # unittest's
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "failed", [*self.failures, *self.errors][-1][1][-3000:])


class Runner(DiscoverRunner):
    """Django's, and writes the file when the tests have run."""

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        """Return this module's class in place of unittest's."""
        return _Result

    def run_suite(self, suite: unittest.TestSuite, **kwargs: Any) -> Any:
        """Run the tests, as Django's runner does."""
        result: Any = super().run_suite(suite, **kwargs)
        wrapper: Any = connections["default"]
        wrapper.ensure_connection()
        source = getattr(wrapper, "bgpool_source", None)
        phase = source.connections.stats().phase if source is not None else None
        told = {
            "outcomes": result.outcomes,
            "engine": wrapper.settings_dict["ENGINE"],
            "phase": phase.name if phase is not None else "",
        }
        Path(os.environ[OUTCOMES]).write_text(json.dumps(told), encoding="utf-8")
        return result

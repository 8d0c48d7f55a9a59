"""Callers in separate threads, and functions that wait for their results."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bgpool.core.phase import Phase
from bgpool.testing import Deployment
from tests.waiting import PATIENCE_S, wait_until

__all__ = ["Caller", "drain", "wait_until"]


def drain(deployment: Deployment, conn: Any) -> None:
    """Begin a switchover, and wait until the process of *conn* has noticed it."""
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: conn.bgpool_generation.drained and not conn.bgpool_generation.live[0])


class Caller(threading.Thread):
    """Runs a function in a thread and keeps its result or exception."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.result: Any = None
        self.start()

    def run(self) -> None:
        """Call the function."""
        try:
            self.result = self._function()
        except Exception as error:
            self.result = error

    def wait(self) -> Any:
        """Return the function's result or exception."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the caller did not return"
        return self.result

"""Callers in threads of their own, and waiting for what they come to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bgpool.core.phase import Phase
from bgpool.testing import Deployment
from tests.waiting import PATIENCE_S, wait_until

__all__ = ["Caller", "drain", "wait_until"]


def drain(deployment: Deployment, conn: Any) -> None:
    """A switchover begins, and the process of *conn* has noticed."""
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: conn.bgpool_generation.drained and not conn.bgpool_generation.live[0])


class Caller(threading.Thread):
    """Runs a function in a thread and keeps what came of it."""

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
        """What the function returned or raised."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the caller never came back"
        return self.result

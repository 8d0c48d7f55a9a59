"""A replacement for a generation's way to connect, for pools whose callers open connections themselves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

__all__ = ["Connecting"]


class Connecting:
    """Makes connections; the first attempts call the given functions.

    Attributes:
        KIND: The class of the connections.
        by: The names of the threads that have connected.
        limits: The callers' limits for their own attempts, in seconds.
    """

    KIND: ClassVar[type[Any]]

    def __init__(self, *first: Callable[[], object]) -> None:
        self.by: list[str] = []
        self.limits: list[float] = []
        self._first = list(first)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """See Generation."""
        self.limits.append(seconds)
        yield

    def connect(self, _conninfo: str = "", **_: Any) -> Any:
        """See Generation."""
        self.by.append(threading.current_thread().name)
        if self._first:
            self._first.pop(0)()
        return self.KIND()

"""Connecting in place of a generation, for pools whose callers open connections themselves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

__all__ = ["Connecting"]


class Connecting:
    """Connects: the first attempts as they are told.

    Attributes:
        KIND: What it makes.
        by: The names of the threads that have connected.
        limits: What callers have limited their own attempts to, in seconds.
    """

    KIND: ClassVar[type[Any]]

    def __init__(self, *first: Callable[[], object]) -> None:
        self.by: list[str] = []
        self.limits: list[float] = []
        self._first = list(first)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """As a generation's."""
        self.limits.append(seconds)
        yield

    def connect(self, _conninfo: str = "", **_: Any) -> Any:
        """As a generation's."""
        self.by.append(threading.current_thread().name)
        if self._first:
            self._first.pop(0)()
        return self.KIND()

"""What the callers of one pool went through: how long they were held, and which errors reached them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final

from bgpool.segment.table import ERRORS, Usage

__all__ = ["Tally"]

#: Marks an error that is counted, with where.
_COUNTED: Final = "_bgpool_counted"
_FIELDS: Final = {name: field for field, name in ERRORS.items()}


class Tally:
    """The counts of one pool in this process. The quick way through a pool touches none of them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """After a fork, in the child: nothing has happened here yet."""
        self._lock = threading.Lock()
        # Callers that are held, the one that has waited longest first, and since when.
        self._since: dict[object, float] = {}
        self._holds = self._repeated = 0
        self._longest_s = self._period_s = 0.0
        self._errors: Counter[str] = Counter()
        # What came of receipts, by field of Usage.
        self._receipts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Callers that are held now."""
        return len(self._since)

    def begin_hold(self) -> object:
        """A caller is held from now on; returns what end_hold takes."""
        caller = object()
        with self._lock:
            self._since[caller] = time.monotonic()
            self._holds += 1
        return caller

    def end_hold(self, caller: object) -> None:
        """The hold of *caller* is over, one way or the other."""
        with self._lock:
            since = self._since.pop(caller, None)
            if since is None:
                # A fork lies in between, and the child goes on where its parent was held.
                return
            held_s = time.monotonic() - since
            self._longest_s, self._period_s = max(self._longest_s, held_s), max(self._period_s, held_s)

    def take_longest_s(self) -> float:
        """The longest hold that has ended since the last call, in seconds; 0 if none has."""
        with self._lock:
            longest_s, self._period_s = self._period_s, 0.0
            return longest_s

    def count_error(self, error: Exception) -> None:
        """*error* goes to the application; counted once, however often it is told."""
        if not getattr(error, _COUNTED, None):
            setattr(error, _COUNTED, _Mark(self))
            with self._lock:
                self._errors[_field(error)] += 1

    def count_receipts(self, field: str, number: int = 1) -> None:
        """One of Usage's fields about receipts is *number* higher."""
        with self._lock:
            self._receipts[field] += number

    def repeat(self, error: Exception) -> None:
        """A unit of work is run again after *error*, which does not reach the application."""
        with self._lock:
            self._repeated += 1
        self.absorb(error)

    def absorb(self, error: Exception) -> None:
        """A unit of work has settled *error*, which does not reach the application after all.

        It may be that of another pool, which the unit's function has used as well: it is not counted there any more.
        """
        mark = getattr(error, _COUNTED, None)
        if mark:
            setattr(error, _COUNTED, None)
            mark.tally._discount(error)

    def _discount(self, error: Exception) -> None:
        with self._lock:
            # A fork may lie in between.
            if self._errors[_field(error)] > 0:
                self._errors[_field(error)] -= 1

    def usage(self) -> Usage:
        """The counts, for the table of workers."""
        return self.added_to(Usage())

    def added_to(self, usage: Usage) -> Usage:
        """*usage*, which says nothing of callers, with the counts."""
        with self._lock:
            oldest = next(iter(self._since.values()), None)
            under_way_s = time.monotonic() - oldest if oldest is not None else 0.0
            return usage._replace(
                held=len(self._since),
                holds=self._holds,
                longest_hold_ms=round(max(self._longest_s, under_way_s) * 1000),
                repeated=self._repeated,
                **self._errors,
                **self._receipts,
            )


class _Mark:
    """On an error that *tally* has counted."""

    def __init__(self, tally: Tally) -> None:
        self.tally: Final = tally

    def __reduce__(self) -> tuple[type[bool], tuple[()]]:
        # Errors are copied, and sent to other processes. Nobody has counted the copy.
        return bool, ()


def _field(error: Exception) -> str:
    """Which count *error* belongs to; a driver's form of an error is a subclass of it."""
    return next((_FIELDS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _FIELDS), "other_errors")

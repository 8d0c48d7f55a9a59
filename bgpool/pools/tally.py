"""The counts of one pool's callers: how long they were held, and which errors reached them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final

from bgpool.segment.table import ERRORS, Usage

__all__ = ["Tally"]

#: The attribute that marks a counted error, with the tally that counted it.
_COUNTED: Final = "_bgpool_counted"
_FIELDS: Final = {name: field for field, name in ERRORS.items()}


class Tally:
    """The counts of one pool in this process. The fast path through a pool changes none of them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start all counts at zero, in the child after a fork."""
        self._lock = threading.Lock()
        # The held callers with the start of their holds, the longest hold first.
        self._since: dict[object, float] = {}
        self._holds = self._repeated = 0
        self._longest_s = self._period_s = 0.0
        self._errors: Counter[str] = Counter()
        # Counts of the results of receipts, by field of Usage.
        self._receipts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """The number of callers that are held now."""
        return len(self._since)

    def begin_hold(self) -> object:
        """Record that a caller begins to be held; return the argument for end_hold."""
        caller = object()
        with self._lock:
            self._since[caller] = time.monotonic()
            self._holds += 1
        return caller

    def end_hold(self, caller: object) -> None:
        """Record the end of the hold of *caller*, whatever ended it."""
        with self._lock:
            since = self._since.pop(caller, None)
            if since is None:
                # The process was forked in between, and the child continues where its parent was held.
                return
            held_s = time.monotonic() - since
            self._longest_s, self._period_s = max(self._longest_s, held_s), max(self._period_s, held_s)

    def take_longest_s(self) -> float:
        """Return the longest hold that has ended since the last call, in seconds; 0 if none has."""
        with self._lock:
            longest_s, self._period_s = self._period_s, 0.0
            return longest_s

    def count_error(self, error: Exception) -> None:
        """Count *error*, which reaches the application; once, however often this is called for it."""
        if not getattr(error, _COUNTED, None):
            setattr(error, _COUNTED, _Mark(self))
            with self._lock:
                self._errors[_field(error)] += 1

    def count_receipts(self, field: str, number: int = 1) -> None:
        """Increase one of Usage's fields about receipts by *number*."""
        with self._lock:
            self._receipts[field] += number

    def repeat(self, error: Exception) -> None:
        """Count that a unit of work is repeated after *error*, which does not reach the application."""
        with self._lock:
            self._repeated += 1
        self.absorb(error)

    def absorb(self, error: Exception) -> None:
        """Discount *error*, which does not reach the application because a unit of work has settled it.

        Another pool may have counted it, if the unit's function uses that as well. Then it is discounted there.
        """
        mark = getattr(error, _COUNTED, None)
        if mark:
            setattr(error, _COUNTED, None)
            mark.tally._discount(error)

    def _discount(self, error: Exception) -> None:
        with self._lock:
            # The process may have been forked in between.
            if self._errors[_field(error)] > 0:
                self._errors[_field(error)] -= 1

    def usage(self) -> Usage:
        """Return the counts for the table of workers."""
        return self.added_to(Usage())

    def added_to(self, usage: Usage) -> Usage:
        """Return *usage*, which has no counts of callers, with these counts."""
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
    """The mark on an error that *tally* has counted."""

    def __init__(self, tally: Tally) -> None:
        self.tally: Final = tally

    def __reduce__(self) -> tuple[type[bool], tuple[()]]:
        # Errors are copied, and sent to other processes. No tally has counted the copy.
        return bool, ()


def _field(error: Exception) -> str:
    """Return the name of the count for *error*; a driver's form of an error is a subclass of it."""
    return next((_FIELDS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _FIELDS), "other_errors")

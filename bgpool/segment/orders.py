"""An operator's order on its way to the monitor: one word of the table of workers, stored as a whole.

The upper 52 bits are the time at which it was given (CLOCK_MONOTONIC in ms), the lower 12 the seconds for which callers
are to be held; 0 seconds is a release. The last order is the one that counts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bgpool.core.events import Order
from bgpool.core.limits import ORDER_S

__all__ = ["PendingOrder", "pack", "unpack"]

_SECONDS_BITS: Final = 12


class PendingOrder(NamedTuple):
    """An order.

    Attributes:
        at_ns: When it was given, on the monotonic clock, in whole ms.
        until_ns: When it ends by itself.
    """

    order: Order
    at_ns: int
    until_ns: int


def pack(order: Order, seconds: int, mono_ns: int) -> int:
    """The word for *order*, given at *mono_ns*; for a hold *seconds* is how long, 1 to ORDER_S."""
    if order is Order.HOLD and not 1 <= seconds <= ORDER_S:
        raise ValueError(f"a hold of {seconds} s; 1 to {ORDER_S} are allowed")
    return mono_ns // 1_000_000 << _SECONDS_BITS | (seconds if order is Order.HOLD else 0)


def unpack(word: int) -> PendingOrder | None:
    """The order in *word*; None if there is none, or none that anybody can have given."""
    at_ns, seconds = (word >> _SECONDS_BITS) * 1_000_000, word & (1 << _SECONDS_BITS) - 1
    if not word or seconds > ORDER_S:
        return None
    return PendingOrder(Order.HOLD if seconds else Order.RELEASE, at_ns, at_ns + (seconds or ORDER_S) * 1_000_000_000)

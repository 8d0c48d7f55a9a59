"""An operator's order for the monitor: one word in the table of workers, written atomically.

The upper 52 bits are the time of the order (CLOCK_MONOTONIC in ms), the lower 12 bits the duration of a hold in
seconds; 0 seconds means a release. The last order counts.
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
        at_ns: The time of the order, on the monotonic clock, in whole ms.
        until_ns: The time at which it expires.
    """

    order: Order
    at_ns: int
    until_ns: int


def pack(order: Order, seconds: int, mono_ns: int) -> int:
    """Return the word for *order* at *mono_ns*; *seconds* is the duration of a hold, 1 to ORDER_S."""
    if order is Order.HOLD and not 1 <= seconds <= ORDER_S:
        raise ValueError(f"a hold of {seconds} s; 1 to {ORDER_S} are allowed")
    return mono_ns // 1_000_000 << _SECONDS_BITS | (seconds if order is Order.HOLD else 0)


def unpack(word: int) -> PendingOrder | None:
    """Return the order in *word*; None if there is none, or if it is invalid."""
    at_ns, seconds = (word >> _SECONDS_BITS) * 1_000_000, word & (1 << _SECONDS_BITS) - 1
    if not word or seconds > ORDER_S:
        return None
    return PendingOrder(Order.HOLD if seconds else Order.RELEASE, at_ns, at_ns + (seconds or ORDER_S) * 1_000_000_000)

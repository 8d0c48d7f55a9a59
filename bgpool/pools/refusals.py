"""The errors of a driver's pool without a free connection, converted to bgpool's own; the same for every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import psycopg_pool

from bgpool.errors import PoolClosed, PoolTimeout, TooManyRequests
from bgpool.pools.generation import Generation

__all__ = ["REFUSALS", "as_ours", "forget_frames"]

#: The errors of a driver's pool that cannot provide a connection.
REFUSALS: Final = (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests)


def forget_frames(error: Exception) -> None:
    """Release the objects that the frames of a handled *error* hold, such as a mapping of the segment.

    psycopg_pool stores the error with the caller's place in its queue, and the error's frames refer to that place. This
    cycle lives until the garbage collector runs, and with it the descriptor of a file that was replaced long ago.
    """
    error.__traceback__ = None


def as_ours(
    error: Exception,
    like: Callable[[None, Callable[..., Exception], str], Exception],
    generation: Generation | None,
    phase: str,
) -> Exception:
    """Return bgpool's own error for *error* of the driver's pool; a timeout says why there was no connection.

    Args:
        error: The error that the driver's pool has raised.
        like: The same as Recipe.like.
        generation: The generation whose connections are handed out.
        phase: The phase for the text.
    """
    if isinstance(error, psycopg_pool.PoolTimeout):
        why = _why_none(generation, phase) if generation is not None else f"phase {phase}"
        return like(None, PoolTimeout, f"{error.args[-1]}: {why}")
    for kind in (TooManyRequests, PoolClosed):
        # Each kind is a subclass of psycopg_pool's error of the same name.
        if isinstance(error, kind.__bases__[-1]):
            return error if isinstance(error, kind) else kind(str(error))
    return error


def _why_none(generation: Generation, phase: str) -> str:
    inner = generation.inner
    inner.forget_who_gave_up()
    counts = inner.get_stats()
    size, idle = counts.get("pool_size", 0), counts.get("pool_available", 0)
    in_use = max(0, generation.connections() - idle)
    if inner.failure:
        why = f"none could be opened: {inner.failure}"
    else:
        why = f"all {size} are in use" if 0 < size <= in_use else "none was opened in time"
    return (
        f"{why} (size {size} of {counts.get('pool_max', size)}, {idle} idle, {in_use} in use, "
        f"{counts['requests_waiting']} others waiting; phase {phase})"
    )

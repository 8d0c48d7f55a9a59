"""What a driver's pool says when it has nothing to give, as bgpool's own errors; whatever the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import psycopg_pool

from bgpool.errors import PoolClosed, PoolTimeout, TooManyRequests
from bgpool.pools.generation import Generation

__all__ = ["REFUSALS", "as_ours", "forget_frames"]

#: A driver's pool has nothing to give.
REFUSALS: Final = (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests)


def forget_frames(error: Exception) -> None:
    """Let go of what the frames of a handled *error* hold: a mapping of the segment among other things.

    psycopg_pool keeps the error with the caller's place in its queue, and the error's frames keep that place: a circle
    that lives, with the descriptor of a file that is long replaced, until the collector comes by.
    """
    error.__traceback__ = None


def as_ours(
    error: Exception,
    like: Callable[[None, Callable[..., Exception], str], Exception],
    generation: Generation | None,
    phase: str,
) -> Exception:
    """*error* of the driver's pool as bgpool's own; a timeout says why there was no connection.

    Args:
        error: What the driver's pool has raised.
        like: As Recipe.like.
        generation: What callers are given connections of.
        phase: For the text.
    """
    if isinstance(error, psycopg_pool.PoolTimeout):
        why = _why_none(generation, phase) if generation is not None else f"phase {phase}"
        return like(None, PoolTimeout, f"{error.args[-1]}: {why}")
    for kind in (TooManyRequests, PoolClosed):
        # Each is a subclass of psycopg_pool's error of the same name.
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

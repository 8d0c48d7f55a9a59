"""What kind of function somebody has given us."""

from __future__ import annotations

import functools
import inspect

__all__ = ["is_coroutine_function"]


def is_coroutine_function(value: object) -> bool:
    """Whether a call of *value*, a function, a partial one or an object that can be called, is to be awaited."""
    while isinstance(value, functools.partial):
        value = value.func
    return inspect.iscoroutinefunction(value) or (callable(value) and inspect.iscoroutinefunction(type(value).__call__))

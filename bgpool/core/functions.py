"""Classification of callables that the application passes."""

from __future__ import annotations

import functools
import inspect

__all__ = ["is_coroutine_function"]


def is_coroutine_function(value: object) -> bool:
    """Return whether a call of *value* must be awaited. *value* is a function, a partial or a callable object."""
    while isinstance(value, functools.partial):
        value = value.func
    return inspect.iscoroutinefunction(value) or (callable(value) and inspect.iscoroutinefunction(type(value).__call__))

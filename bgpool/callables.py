"""Callables of the application's that another process is to call: how the monitor gets them."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from bgpool.errors import ConfigurationError
from bgpool.green_threads import patched_by

__all__ = ["hand_over", "take_over"]


def hand_over(name: str, given: Callable[..., object], remedy: str) -> bytes:
    """*given*, pickled.

    Args:
        name: Of the parameter.
        remedy: What to do where that cannot be, for the error.

    Raises:
        ConfigurationError: It cannot be pickled, or the process that reads it could not import it.
    """
    reason = "part of it is defined in the program itself, which the monitor does not run"
    try:
        pickled = pickle.dumps(given)
        # Wherever it is mentioned: a functools.partial of a function of the program comes from functools itself.
        if all(argument != "__main__" for _, argument, _ in pickletools.genops(pickled)):
            return pickled
    except Exception as error:
        # Not its text, which may quote what the callable holds.
        reason = f"{type(error).__name__} at pickling it"
    called = getattr(given, "__qualname__", type(given).__qualname__)
    # Without the error as the context: its text would be in the traceback.
    raise ConfigurationError(f"{name}: {called} cannot be handed to the monitor's process ({reason}); {remedy}")


def take_over(what: str, pickled: bytes, remedy: str) -> Any:
    """What hand_over has pickled.

    Args:
        what: Which callable, for the error.
        pickled: Of our own user's making, through a pipe: as trustworthy as the program that started us.
        remedy: As hand_over's.

    Raises:
        ConfigurationError: It cannot be imported here, or its module patches threads.
    """
    try:
        found: Any = pickle.loads(pickled)
    except (Exception, SystemExit) as error:
        # The text of an import names what is missing; any other is of the callable's making and may hold a secret.
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else type(error).__name__
        raise ConfigurationError(f"{what} cannot be used in the monitor's process ({reason}); {remedy}") from error
    if library := patched_by():
        # By that module: a monitor loads nothing else of the application. Its heartbeat would stop with each wait.
        raise ConfigurationError(
            f"{what}'s module patches threads with {library}, on which a monitor does not run: "
            "define the callable in a small module of its own"
        )
    return found

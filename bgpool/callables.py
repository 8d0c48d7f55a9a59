"""Passing the application's callables to the monitor, which is another process."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from bgpool.errors import ConfigurationError
from bgpool.green_threads import patched_by

__all__ = ["hand_over", "take_over"]


def hand_over(name: str, given: Callable[..., object], remedy: str) -> bytes:
    """Return *given*, pickled.

    Args:
        name: The name of the parameter.
        given: The callable.
        remedy: Advice for the error text.

    Raises:
        ConfigurationError: It cannot be pickled, or the process that reads it could not import it.
    """
    reason = "part of it is defined in the program itself, which the monitor does not run"
    try:
        pickled = pickle.dumps(given)
        # Check every name in the pickle: a functools.partial of a function of the program comes from functools itself.
        if all(argument != "__main__" for _, argument, _ in pickletools.genops(pickled)):
            return pickled
    except Exception as error:
        # Without the text, which may quote the callable's contents.
        reason = f"{type(error).__name__} at pickling it"
    called = getattr(given, "__qualname__", type(given).__qualname__)
    # Raised outside of the handler: as the context, the error's text would be in the traceback.
    raise ConfigurationError(f"{name}: {called} cannot be passed to the monitor's process ({reason}); {remedy}")


def take_over(what: str, pickled: bytes, remedy: str) -> Any:
    """Return the callable that hand_over has pickled.

    Args:
        what: The name of the callable, for the error text.
        pickled: The pickle. It comes through a pipe from a process of the same user, and is trusted like that program.
        remedy: Advice for the error text.

    Raises:
        ConfigurationError: It cannot be imported here, or its module patches threads.
    """
    try:
        found: Any = pickle.loads(pickled)
    except (Exception, SystemExit) as error:
        # The text of an import error names the missing module. Any other text is the callable's and may hold a secret.
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else type(error).__name__
        raise ConfigurationError(f"{what} cannot be used in the monitor's process ({reason}); {remedy}") from error
    if library := patched_by():
        # Only that module can have done it: a monitor loads nothing else of the application. On patched threads each
        # wait would stop the monitor's heartbeat.
        raise ConfigurationError(
            f"{what}'s module patches threads with {library}, on which a monitor does not run: "
            "define the callable in a small module of its own"
        )
    return found

"""Threads of ours take no signals: these are for the threads of the application.

A server's own handler, uWSGI's for instance, expects to run in the thread that serves requests, and ends the one that
it does run in. The kernel chooses any that does not block the signal while the main thread is busy with another.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Set
from typing import Final

__all__ = ["refusing", "take_again"]

#: What a thread does to itself is told to it in any case, and what nobody can block.
_NOT_REFUSED: Final = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
    signal.SIGKILL,
    signal.SIGSTOP,
}
_REFUSED: Final = frozenset(signal.valid_signals() - _NOT_REFUSED)
#: What the threads block that have started ours.
_outside: Set[int] = frozenset()


def refusing(run: Callable[..., object]) -> Callable[..., None]:
    """*run*, for a thread that the caller starts next: without the signals of the process, as are threads of its own.

    A green thread runs with those of the thread that it shares.
    """
    starter = threading.get_native_id()

    def refuse(*args: object) -> None:
        global _outside
        if threading.get_native_id() != starter:
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _REFUSED)
            if not blocked >= _REFUSED:
                _outside = blocked
        run(*args)

    return refuse


def take_again() -> None:
    """Have the calling thread take signals, though it was started by one that does not.

    For functions of the user's: a program that such a function starts inherits what is blocked.
    """
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= _REFUSED:
        signal.pthread_sigmask(signal.SIG_SETMASK, _outside)

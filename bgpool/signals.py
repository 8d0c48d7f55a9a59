"""Block signals in bgpool's threads: signals are for the threads of the application.

A server's handler, such as uWSGI's, expects to run in the thread that serves requests, and ends the thread that it runs
in. While the main thread handles another signal, the kernel selects any thread that does not block the signal.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Set
from typing import Final

__all__ = ["refusing", "take_again"]

#: The signals that are not blocked: those that a thread's own fault causes, and those that cannot be blocked.
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
#: The signal mask of the threads that started bgpool's threads.
_outside: Set[int] = frozenset()


def refusing(run: Callable[..., object]) -> Callable[..., None]:
    """Return *run* for a new thread, so that the thread, and threads that it starts, block the signals of the process.

    A green thread keeps the mask of the thread that it shares.
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
    """Restore the application's signal mask in the calling thread, which bgpool started with signals blocked.

    For the user's functions: a program that such a function starts inherits the mask.
    """
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= _REFUSED:
        signal.pthread_sigmask(signal.SIG_SETMASK, _outside)

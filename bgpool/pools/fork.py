"""The effects of a fork: threads are gone, locks stay as they were, and the sockets are the parent's.

The child does not touch anything that it inherited, and keeps it alive for its whole life. If it closed or collected a
connection, the driver would end the session on the parent's socket.

A fork without Python (by uWSGI or a C library) runs none of Python's hooks. It is noticed nevertheless: in every child
the kernel wipes the word that keeps a pool's fast path open, and the slow path compares process ids.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Final, Protocol

from bgpool.logs import log_fields
from bgpool.segment import locks
from bgpool.segment.kernel_features import wiped_page

__all__ = ["PidWord", "call_in_child", "keep_forever", "notice", "parents_word"]

_WORD_BYTES: Final = 8


class _Forkable(Protocol):
    def after_fork_in_child(self) -> None: ...


_logger: Final = logging.getLogger("bgpool.pool")
_members: Final[weakref.WeakSet[_Forkable]] = weakref.WeakSet()
_noticing: Final[dict[int, threading.Lock]] = {}
_pid = os.getpid()


def call_in_child(member: _Forkable) -> None:
    """Notify *member* in every child forked from now on, before any other code of bgpool runs there."""
    _members.add(member)


def notice() -> None:
    """Notice a fork without hooks. Every way into a pool except the fast path must call this."""
    if os.getpid() == _pid:
        return
    # A lock of this process alone: any other lock may have been held at the time of the fork.
    with _noticing.setdefault(os.getpid(), threading.Lock()):
        if os.getpid() == _pid:
            return
        _keep_parents_threads()
        _after_fork_in_child()
    if _lists_parents_threads():
        _logger.warning(
            "this process was forked without Python's fork hooks: it shares no connection with its parent, but a lock "
            "that a thread of the parent held may block it forever; under uWSGI set py-call-uwsgi-fork-hooks or "
            "lazy-apps",
            extra=log_fields("fork_without_hooks"),
        )


class PidWord:
    """The substitute for a word of parents_word() if the kernel wipes no page; each read queries the process id."""

    __slots__ = ("_pid", "_value")

    def __init__(self, value: int) -> None:
        self._value, self._pid = value, os.getpid()

    def __getitem__(self, index: int) -> int:
        return self._value if os.getpid() == self._pid else 0

    def __setitem__(self, index: int, value: int) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, memoryview) and bool(other[0] == self[0])

    __hash__ = None  # type: ignore[assignment]  # compared by its value, which changes


def parents_word(value: int) -> memoryview | PidWord:
    """Return a word of memory with *value* in this process, and with 0 in every child, however it was forked."""
    page = wiped_page()
    if page is None:
        return PidWord(value)
    word = memoryview(page)[:_WORD_BYTES].cast("Q")
    word[0] = value
    return word


def keep_forever(thing: object) -> None:
    """Never let *thing* be collected, not even when the interpreter exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _keep_parents_threads() -> None:
    """Keep the objects of the parent's threads, in a child that was forked without Python's hooks.

    From Python 3.13 on, a threading.Thread that is collected detaches its thread, unless that was joined. Python's fork
    hooks prevent this in a child. Without them, glibc would read the memory of a thread that does not exist in this
    process, and the child could end with SIGSEGV.
    """
    # Every Thread object that exists, also those whose threads have ended. Iteration takes no lock.
    for thread in [*getattr(threading, "_dangling", ())]:
        keep_forever(thread)


def _lists_parents_threads() -> bool:
    """Return whether the parent's threads are still in Python's list, from which its fork hooks remove them.

    If the parent had no other threads, none of them can have held a lock.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return True
    # Not threading.enumerate(): it takes a lock that such a thread may have held.
    listed: dict[int, threading.Thread] = getattr(threading, "_active", {})
    main = threading.main_thread()
    ids = [thread.native_id for thread in [*listed.values()] if thread is not main]
    return any(not (tasks / str(number)).exists() for number in ids if number is not None)


def _after_fork_in_child() -> None:
    global _pid
    # Repeated here for a fork without Python's hooks.
    locks.leave_to_parent()
    for member in list(_members):
        member.after_fork_in_child()
    # Set last: a thread that finds the right process id relies on the state that was reset before.
    _pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork_in_child)

"""What a fork does to us: threads are gone, locks are as they were, and the sockets are the parent's.

Whatever the child inherited it leaves alone, alive and untouched for as long as it lives; closing or collecting a
connection would say goodbye to the server on the parent's socket.

A fork that Python did not make (uWSGI's, a C library's) runs none of Python's hooks. It is noticed all the same: the
word that keeps a pool's quick way open is wiped by the kernel in every child, and the long way compares process ids.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import logging
import mmap
import os
import sys
import threading
import weakref
from typing import Final, Protocol

from bgpool.logs import log_fields
from bgpool.segment import locks

__all__ = ["call_in_child", "keep_forever", "notice", "parents_word"]

#: Since Linux 4.14. Source: linux/mman.h; the mmap module names it from Python 3.13 on only.
_MADV_WIPEONFORK: Final = 18
_WORD_BYTES: Final = 8


class _Forkable(Protocol):
    def after_fork_in_child(self) -> None: ...


_logger: Final = logging.getLogger("bgpool.pool")
_members: Final[weakref.WeakSet[_Forkable]] = weakref.WeakSet()
_noticing: Final[dict[int, threading.Lock]] = {}
_pid = os.getpid()


def call_in_child(member: _Forkable) -> None:
    """Have *member* told in every child forked from now on, before anything else of ours runs there."""
    _members.add(member)


def notice() -> None:
    """Notice a fork of which no hook has told. To be called on every way into a pool but the quick one."""
    if os.getpid() == _pid:
        return
    # A lock of this process alone: any other may have been held when it was forked.
    with _noticing.setdefault(os.getpid(), threading.Lock()):
        if os.getpid() == _pid:
            return
        _after_fork_in_child()
    _logger.warning(
        "this process was forked without Python's fork hooks; connections are not shared with its parent, but "
        "under uWSGI set py-call-uwsgi-fork-hooks or lazy-apps, or a thread of the parent may stop it for ever",
        extra=log_fields("fork_without_hooks"),
    )


def parents_word(value: int) -> memoryview:
    """A word of memory that says *value* in this process, and 0 in every child that it forks, in whatever way.

    Where the kernel cannot wipe it, children are told of by Python's hooks alone.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            word = memoryview(page)[:_WORD_BYTES].cast("Q")
            word[0] = value
            return word
    return memoryview(array.array("Q", [value]))


def keep_forever(thing: object) -> None:
    """Never let *thing* be collected, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork_in_child() -> None:
    global _pid
    # Again, for a fork without Python's hooks.
    locks.leave_to_parent()
    for member in list(_members):
        member.after_fork_in_child()
    # Last: whoever finds it right goes on with what was put right before.
    _pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork_in_child)

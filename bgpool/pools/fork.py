"""What a fork does to us: threads are gone, locks are as they were, and the sockets are the parent's.

Whatever the child inherited it leaves alone, alive and untouched for as long as it lives; closing or collecting a
connection would say goodbye to the server on the parent's socket.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Final, Protocol

__all__ = ["call_in_child", "keep_forever"]


class _Forkable(Protocol):
    def after_fork_in_child(self) -> None: ...


_members: Final[weakref.WeakSet[_Forkable]] = weakref.WeakSet()


def call_in_child(member: _Forkable) -> None:
    """Have *member* told in every child forked from now on, before anything else runs there."""
    _members.add(member)


def keep_forever(thing: object) -> None:
    """Never let *thing* be collected, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork_in_child() -> None:
    for member in list(_members):
        member.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

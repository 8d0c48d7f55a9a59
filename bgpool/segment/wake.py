"""Sleeping in the kernel until a word of the mapping changes, and waking all who do, in every process of the host.

Where the kernel cannot help (no futex, or a sandbox that refuses it, or threads are gevent's, which a sleeping kernel
call would stop), waiting is a loop of short sleeps with the ``time.sleep`` in force, which gevent has made its own.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import sys
import time
from collections.abc import Callable
from typing import Final

from bgpool.core.limits import FUTEX_SLEEP_S, POLL_INTERVAL_S
from bgpool.green import sleeps_are_green

__all__ = ["address_of", "has_futex", "kernel_wakes", "wait_changed", "wake_all"]

#: The futex system call by machine. Source: asm/unistd.h of the kernel; elsewhere waiting polls.
_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
_EVERYBODY: Final = 2**31 - 1
_MASK: Final = 0xFFFFFFFF
#: How a futex call ends that was neither refused nor woken: the word has changed, a signal has come, time is up.
_ORDINARY: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})
#: The futex sees 32 bits: the half of the word that counts.
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 4


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer: the one way to the address of a mapping that is mapped for reading alone."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _find_futex() -> Callable[..., int] | None:
    if sys.platform != "linux" or _SYS_FUTEX is None:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    return syscall


_FUTEX: Final = _find_futex()


def has_futex() -> bool:
    """Whether waiters of this process sleep in the kernel; if not, they poll."""
    return kernel_wakes() and not sleeps_are_green()


def kernel_wakes() -> bool:
    """Whether the kernel has futex and lets this process use it. Found by trying, on a word that nobody knows."""
    word = ctypes.c_uint32(0)
    address = ctypes.addressof(word)
    # It does not wait: the word is not 1.
    return _futex(address, _FUTEX_WAIT, 1, _Timespec(0, 0)) and _futex(address, _FUTEX_WAKE, _EVERYBODY)


def address_of(mapping: mmap.mmap, offset: int) -> int:
    """The address of *offset* in *mapping*; good for as long as the mapping lives."""
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(view), 0)
    address = int(view.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address + offset


def wait_changed(
    word: memoryview, address: int, seen: int, timeout_s: float, over: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until ``word[0]`` is no longer *seen*, or *over*.

    Args:
        word: The mapped word as a view of one unsigned 64-bit integer.
        address: Where it is, see address_of; 0 polls.
        seen: The value last seen.
        timeout_s: Longest wait in seconds, >= 0.
        over: Asked whenever the wait is woken, see wake_all: whether to wait no more.

    Returns:
        Whether the word has changed.
    """
    deadline = time.monotonic() + timeout_s
    while word[0] == seen and not over():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        sleep_s = min(left, FUTEX_SLEEP_S)
        limit = _Timespec(int(sleep_s), int(sleep_s % 1 * 1e9))
        # Whatever ends the call (woken, changed, interrupted, time is up), the word and the clock tell.
        slept = address and not sleeps_are_green() and _futex(address + _LOW_HALF, _FUTEX_WAIT, seen & _MASK, limit)
        if not slept:
            time.sleep(min(left, POLL_INTERVAL_S))
    return bool(word[0] != seen)


def wake_all(address: int) -> None:
    """Wake every thread of every process that waits on the word at *address*."""
    _futex(address + _LOW_HALF, _FUTEX_WAKE, _EVERYBODY)


def _futex(address: int, operation: int, value: int, limit: _Timespec | None = None) -> bool:
    """Make the system call; False where there is none, or it is refused."""
    if _FUTEX is None:
        return False
    result = _FUTEX(
        ctypes.c_long(_SYS_FUTEX or 0),
        ctypes.c_void_p(address),
        ctypes.c_long(operation),
        ctypes.c_uint32(value),
        ctypes.byref(limit) if limit is not None else None,
        None,
        ctypes.c_long(0),
    )
    return result >= 0 or ctypes.get_errno() in _ORDINARY

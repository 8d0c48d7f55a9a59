"""Sleeping in the kernel until a word of the mapping changes, and waking all who do, in every process of the host.

Where the kernel cannot help (no futex, or a sandbox that refuses it, or threads are gevent's, which a sleeping kernel
call would stop), waiting is a loop of short sleeps with the ``time.sleep`` in force, which gevent has made its own.

A monitor to which a sandbox refuses futex changes the word and wakes nobody. Whoever finds such a change by its own
clock wakes the others.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bgpool.core.limits import FUTEX_SLEEP_S, POLL_INTERVAL_S
from bgpool.green_threads import sleeps_are_green

__all__ = [
    "OwnWord",
    "Word",
    "address_of",
    "has_futex",
    "kernel_wakes",
    "wait_any",
    "wait_changed",
    "wake_all",
    "wake_in_line",
    "wake_others",
    "words_at_once",
]

#: The futex system call by machine. Source: asm/unistd.h of the kernel; elsewhere waiting polls.
_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
#: Waiting for several words, since Linux 5.16: the same number on both machines, and the most words in one call.
_SYS_FUTEX_WAITV: Final = 449
_FUTEX_WAITV_MAX: Final = 128
_FUTEX2_SIZE_U32: Final = 2
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
#: The same for those alone whose set of bits has one in common. Who waits without a set is woken by any.
_FUTEX_WAIT_BITSET: Final = 9
_FUTEX_WAKE_BITSET: Final = 10
_IN_LINE: Final = 1
_OTHERS: Final = 2
_EVERYBODY: Final = 2**31 - 1
_MASK: Final = 0xFFFFFFFF
#: How a futex call ends that was not refused: woken, the word has changed, a signal has come, time is up.
_ORDINARY: Final = frozenset({0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})
#: The futex sees 32 bits: the half of the word that counts.
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 4


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Waiter(ctypes.Structure):
    """The kernel's struct futex_waitv. Not private: the words are those of other processes, too."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Word(NamedTuple):
    """A word, and what it said.

    Attributes:
        view: The mapped word as a view of one unsigned 64-bit integer.
        address: Where it is, see address_of.
        seen: The value last seen.
    """

    view: memoryview
    address: int
    seen: int


class OwnWord:
    """A word of this process's own, by which its threads wake each other."""

    def __init__(self) -> None:
        self._cell: Final = ctypes.c_uint64(0)
        self._view: Final = memoryview(self._cell).cast("B").cast("Q")
        self._address: Final = ctypes.addressof(self._cell)

    def word(self) -> Word:
        """It, and what it says now."""
        return Word(self._view, self._address, self._view[0])

    def change(self) -> None:
        """Wake whoever waits for it; not from several threads at a time."""
        self._view[0] += 1
        wake_all(self._address)


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
    waits = _futex(address, _FUTEX_WAIT, 1, _Timespec(0, 0))
    return _was_done(waits) and _was_done(_futex(address, _FUTEX_WAKE, _EVERYBODY))


def words_at_once() -> int:
    """For how many words a thread can wait with wait_any so that a change of each wakes it; found by trying.

    One where the kernel knows no more, and any number where waiters poll.
    """
    if not has_futex():
        return sys.maxsize
    own = OwnWord().word()
    changed = own._replace(seen=own.seen + 1)
    return _FUTEX_WAITV_MAX if _was_done(_futex_waitv([changed, changed])(0.0)) else 1


def address_of(mapping: mmap.mmap, offset: int) -> int:
    """The address of *offset* in *mapping*; good for as long as the mapping lives."""
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(view), 0)
    address = int(view.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address + offset


def wait_changed(
    word: memoryview,
    address: int,
    seen: int,
    timeout_s: float,
    over: Callable[[], bool] = lambda: False,
    *,
    in_line: bool = False,
) -> bool:
    """Wait until ``word[0]`` is no longer *seen*, or *over*.

    Args:
        word: The mapped word as a view of one unsigned 64-bit integer.
        address: Where it is, see address_of; 0 polls.
        seen: The value last seen.
        timeout_s: Longest wait in seconds, >= 0.
        over: Asked whenever the wait is woken, see wake_all: whether to wait no more.
        in_line: Wait among those whom wake_in_line wakes, the one that has waited longest first.

    Returns:
        Whether the word has changed.
    """
    deadline = time.monotonic() + timeout_s
    code = 0
    while word[0] == seen and not over():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        # Whatever ends the call (woken, changed, interrupted, time is up), the word and the clock tell.
        code = _sleep(address, seen, min(left, FUTEX_SLEEP_S), in_line=in_line)
        if not _was_done(code):
            time.sleep(min(left, POLL_INTERVAL_S))
    changed = bool(word[0] != seen)
    # In line its turn may just not have come.
    if changed and code == errno.ETIMEDOUT and not in_line:
        wake_all(address)
    return changed


def wait_any(words: Sequence[Word], until: Callable[[float], float]) -> None:
    """Wait until one of *words* has changed, or until it is time.

    A change of those beyond the first words_at_once() is seen at the end of the wait only.

    Args:
        words: Which, one at least.
        until: Asked at the beginning, and whenever the wait is over, how long to wait: told what the monotonic clock
            says, in seconds, it says when to wake. So a wait that is found to be for longer costs next to nothing.
    """
    sleep = _sleep_for(words)
    code = 0
    # A thread that wakes only to find that all is well runs through this and nothing else, so that little is called.
    while True:
        changed = [address for view, address, seen in words if view[0] != seen]
        if changed:
            break
        now = time.monotonic()
        at = min(until(now), now + FUTEX_SLEEP_S)
        if at <= now:
            return
        code = sleep(at)
        if code not in _ORDINARY:
            time.sleep(min(at - now, POLL_INTERVAL_S))
    if code == errno.ETIMEDOUT:
        for address in changed:
            wake_all(address)


def wake_all(address: int) -> None:
    """Wake every thread of every process that waits on the word at *address*."""
    _futex(address + _LOW_HALF, _FUTEX_WAKE, _EVERYBODY)


def wake_in_line(address: int, count: int) -> int:
    """Wake *count* of those who wait in line on the word at *address*; how many were woken, others among them.

    0 where nobody sleeps in the kernel.
    """
    return max(0, _call(address + _LOW_HALF, _FUTEX_WAKE_BITSET, count, None, _IN_LINE))


def wake_others(address: int) -> None:
    """Wake everybody who waits on the word at *address* and not in line."""
    _call(address + _LOW_HALF, _FUTEX_WAKE_BITSET, _EVERYBODY, None, _OTHERS)


def _sleep(address: int, seen: int, seconds: float, *, in_line: bool = False) -> int:
    """Sleep in the kernel while the word at *address* is *seen*; how that ended, as _futex says."""
    if not address or sleeps_are_green():
        return errno.ENOSYS
    if not in_line:
        return _futex(address + _LOW_HALF, _FUTEX_WAIT, seen & _MASK, _Timespec(int(seconds), int(seconds % 1 * 1e9)))
    # With bits it is until when, on the monotonic clock, and not how long.
    until = _Timespec(*divmod(time.monotonic_ns() + int(seconds * 1e9), 10**9))
    return _futex(address + _LOW_HALF, _FUTEX_WAIT_BITSET, seen & _MASK, until, _IN_LINE)


def _was_done(code: int) -> bool:
    """Whether the kernel has done what a call that ended with *code* asks for, and not refused it."""
    return code in _ORDINARY


def _futex(address: int, operation: int, value: int, limit: _Timespec | None = None, bits: int = 0) -> int:
    """Make the system call: 0, or the number of its error, ENOSYS where there is none."""
    if _FUTEX is None:
        return errno.ENOSYS
    return 0 if _call(address, operation, value, limit, bits) >= 0 else ctypes.get_errno()


def _call(address: int, operation: int, value: int, limit: _Timespec | None, bits: int) -> int:
    """What the system call returns; below 0 for an error, and where there is none."""
    if _FUTEX is None:
        return -1
    return _FUTEX(
        ctypes.c_long(_SYS_FUTEX or 0),
        ctypes.c_void_p(address),
        ctypes.c_long(operation),
        ctypes.c_uint32(value),
        ctypes.byref(limit) if limit is not None else None,
        None,
        ctypes.c_long(bits),
    )


def _sleep_for(words: Sequence[Word]) -> Callable[[float], int]:
    """What sleeps until one of *words* has changed, or until a time on the monotonic clock, and says how that ended."""
    if sleeps_are_green():
        return lambda _at: errno.ENOSYS
    several, first = _futex_waitv(words[:_FUTEX_WAITV_MAX]), words[0]

    def sleep(at: float) -> int:
        code = several(at)
        if code in _ORDINARY:
            return code
        return _sleep(first.address, first.seen, max(0.0, at - time.monotonic()))

    return sleep


def _futex_waitv(words: Sequence[Word]) -> Callable[[float], int]:
    """What makes the system call for *words*, until a time on the monotonic clock; how that ended, as _futex says."""
    syscall = _FUTEX
    if syscall is None:
        return lambda _at: errno.ENOSYS
    filled = [_Waiter(word.seen & _MASK, word.address + _LOW_HALF, _FUTEX2_SIZE_U32, 0) for word in words]
    waiters, limit = (_Waiter * len(words))(*filled), _Timespec()
    arguments = (
        ctypes.c_long(_SYS_FUTEX_WAITV),
        ctypes.byref(waiters),
        ctypes.c_long(len(words)),
        ctypes.c_long(0),
        ctypes.byref(limit),
        ctypes.c_long(time.CLOCK_MONOTONIC),
    )

    def call(at: float) -> int:
        limit.seconds, limit.nanoseconds = int(at), int(at % 1 * 1e9)
        return 0 if syscall(*arguments) >= 0 else ctypes.get_errno()

    return call

"""Sleep in the kernel until a word of the mapping changes, and wake its waiters in every process of the host.

If the kernel cannot do that (no futex, a sandbox that refuses it, or gevent's threads, which a blocking kernel call
would all stop), a wait is a loop of short sleeps with ``time.sleep``, which gevent replaces.

A monitor in a sandbox that refuses futex changes the word without waking any waiter. A waiter that finds such a change
by its own clock wakes the others.
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

#: The futex system call by machine. Source: asm/unistd.h of the kernel. On other machines waiters poll.
_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
#: The system call that waits for several words, since Linux 5.16, with the same number on both machines; and the
#: maximum of words in one call.
_SYS_FUTEX_WAITV: Final = 449
_FUTEX_WAITV_MAX: Final = 128
_FUTEX2_SIZE_U32: Final = 2
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
#: The same for waiters whose bit set has a common bit. A waiter without a bit set is woken by any call.
_FUTEX_WAIT_BITSET: Final = 9
_FUTEX_WAKE_BITSET: Final = 10
_IN_LINE: Final = 1
_OTHERS: Final = 2
_EVERYBODY: Final = 2**31 - 1
_MASK: Final = 0xFFFFFFFF
#: The results of a futex call that was not refused: woken, the word has changed, a signal, the timeout.
_ORDINARY: Final = frozenset({0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})
#: The futex reads 32 bits: the lower half of the word.
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 4


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Waiter(ctypes.Structure):
    """The kernel's struct futex_waitv. Not private, because the words are shared between processes."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Word(NamedTuple):
    """A word and its last known value.

    Attributes:
        view: The mapped word as a view of one unsigned 64-bit integer.
        address: Its address, see address_of.
        seen: The last known value.
    """

    view: memoryview
    address: int
    seen: int


class OwnWord:
    """A word of this process, with which its threads wake each other."""

    def __init__(self) -> None:
        self._cell: Final = ctypes.c_uint64(0)
        self._view: Final = memoryview(self._cell).cast("B").cast("Q")
        self._address: Final = ctypes.addressof(self._cell)

    def word(self) -> Word:
        """Return the word with its current value."""
        return Word(self._view, self._address, self._view[0])

    def change(self) -> None:
        """Change the word, which wakes its waiters; not for concurrent use by several threads."""
        self._view[0] += 1
        wake_all(self._address)


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer: the only way to get the address of a read-only mapping."""

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
    """Return whether waiters of this process sleep in the kernel; if not, they poll."""
    return kernel_wakes() and not sleeps_are_green()


def kernel_wakes() -> bool:
    """Return whether the kernel has futex and lets this process use it. Tested with a private word."""
    word = ctypes.c_uint32(0)
    address = ctypes.addressof(word)
    # This returns immediately, because the word is not 1.
    waits = _futex(address, _FUTEX_WAIT, 1, _Timespec(0, 0))
    return _was_done(waits) and _was_done(_futex(address, _FUTEX_WAKE, _EVERYBODY))


def words_at_once() -> int:
    """Return the number of words that a thread can wait for with wait_any and be woken by each; found by testing.

    It is 1 if the kernel supports only one, and unlimited if waiters poll.
    """
    if not has_futex():
        return sys.maxsize
    own = OwnWord().word()
    changed = own._replace(seen=own.seen + 1)
    return _FUTEX_WAITV_MAX if _was_done(_futex_waitv([changed, changed])(0.0)) else 1


def address_of(mapping: mmap.mmap, offset: int) -> int:
    """Return the address of *offset* in *mapping*; valid while the mapping exists."""
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
    """Wait until ``word[0]`` differs from *seen*, or *over* returns true.

    Args:
        word: The mapped word as a view of one unsigned 64-bit integer.
        address: Its address, see address_of; 0 polls.
        seen: The last known value.
        timeout_s: The longest wait in seconds, >= 0.
        over: Called whenever the wait is woken, see wake_all; returns whether to stop waiting.
        in_line: True to wait in the queue of wake_in_line, which wakes the longest waiter first.

    Returns:
        True if the word has changed.
    """
    deadline = time.monotonic() + timeout_s
    code = 0
    while word[0] == seen and not over():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        # Ignore the reason for which the call ended (woken, changed, interrupted, timeout): the word and the clock
        # decide.
        code = _sleep(address, seen, min(left, FUTEX_SLEEP_S), in_line=in_line)
        if not _was_done(code):
            time.sleep(min(left, POLL_INTERVAL_S))
    changed = bool(word[0] != seen)
    # A waiter in line may simply not have had its turn yet.
    if changed and code == errno.ETIMEDOUT and not in_line:
        wake_all(address)
    return changed


def wait_any(words: Sequence[Word], until: Callable[[float], float]) -> None:
    """Wait until one of *words* has changed, or until the time that *until* returns.

    A change of words beyond words_at_once() is detected only at the end of the wait.

    Args:
        words: The words, at least one.
        until: Called at the beginning, and whenever the wait is over, with the monotonic clock in seconds; returns the
            time at which to wake. So a wait that is extended costs almost nothing.
    """
    sleep = _sleep_for(words)
    code = 0
    # A thread that wakes only to find nothing to do runs just this loop, so it makes few calls.
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
    """Wake all threads of all processes that wait on the word at *address*."""
    _futex(address + _LOW_HALF, _FUTEX_WAKE, _EVERYBODY)


def wake_in_line(address: int, count: int) -> int:
    """Wake *count* of the waiters in line on the word at *address*. Return how many were woken, including others.

    Returns 0 if no thread sleeps in the kernel.
    """
    return max(0, _call(address + _LOW_HALF, _FUTEX_WAKE_BITSET, count, None, _IN_LINE))


def wake_others(address: int) -> None:
    """Wake all waiters on the word at *address* that are not in line."""
    _call(address + _LOW_HALF, _FUTEX_WAKE_BITSET, _EVERYBODY, None, _OTHERS)


def _sleep(address: int, seen: int, seconds: float, *, in_line: bool = False) -> int:
    """Sleep in the kernel while the word at *address* equals *seen*; return the result like _futex."""
    if not address or sleeps_are_green():
        return errno.ENOSYS
    if not in_line:
        return _futex(address + _LOW_HALF, _FUTEX_WAIT, seen & _MASK, _Timespec(int(seconds), int(seconds % 1 * 1e9)))
    # With a bit set the timeout is an absolute time on the monotonic clock, not a duration.
    until = _Timespec(*divmod(time.monotonic_ns() + int(seconds * 1e9), 10**9))
    return _futex(address + _LOW_HALF, _FUTEX_WAIT_BITSET, seen & _MASK, until, _IN_LINE)


def _was_done(code: int) -> bool:
    """Return whether the kernel executed a call that ended with *code*, and did not refuse it."""
    return code in _ORDINARY


def _futex(address: int, operation: int, value: int, limit: _Timespec | None = None, bits: int = 0) -> int:
    """Make the system call: return 0 or the error number, ENOSYS if there is no such call."""
    if _FUTEX is None:
        return errno.ENOSYS
    return 0 if _call(address, operation, value, limit, bits) >= 0 else ctypes.get_errno()


def _call(address: int, operation: int, value: int, limit: _Timespec | None, bits: int) -> int:
    """Return the result of the system call; below 0 for an error, and if there is no such call."""
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
    """Return a function that sleeps until one of *words* changes, or until a monotonic time, and returns the result."""
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
    """Return a function that makes the system call for *words*, until a monotonic time, with the result of _futex."""
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

"""A seccomp filter that refuses what some kernels and sandboxes refuse, to this process and to all that it starts.

Run as a program, it plays a whole switchover behind the filter: ``python -m tests.processes.sandbox NAME…``. The filter
is installed with a system call, so that no compiler is needed. It also applies to the monitor and the database servers.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from bgpool.lab import Pair


class Refusal(NamedTuple):
    """One system call that fails with an error.

    Attributes:
        calls: The call's number, by machine. Source: asm/unistd.h of the kernel.
        error: The errno.
        when: Arguments, counted from 0, with values: a call is refused if all values of one tuple match.
    """

    calls: dict[str, int]
    error: int
    when: tuple[tuple[tuple[int, int], ...], ...] = ((),)


_EVERYBODY: Final = 0x7FFFFFFF
#: The refusals, by the name in kernel_features if there is one. Of futex, only the calls that bgpool uses are refused:
#: PostgreSQL's semaphores wake one process at a time.
REFUSALS: Final = {
    "F_OFD_SETLK": Refusal({"x86_64": 72, "aarch64": 25}, errno.EINVAL, (((1, 36),), ((1, 37),), ((1, 38),))),
    "futex": Refusal({"x86_64": 202, "aarch64": 98}, errno.ENOSYS, (((1, 0),), ((1, 1), (2, _EVERYBODY)))),
    "futex_waitv": Refusal({"x86_64": 449, "aarch64": 449}, errno.EPERM),
    "memfd_create": Refusal({"x86_64": 319, "aarch64": 279}, errno.ENOSYS),
    "MADV_WIPEONFORK": Refusal({"x86_64": 28, "aarch64": 233}, errno.EINVAL, (((2, 18),),)),
    "fallocate": Refusal({"x86_64": 285, "aarch64": 47}, errno.EOPNOTSUPP),
}

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def refuse(names: Iterable[str]) -> None:
    """Refuse the calls of REFUSALS under *names*, from now on and permanently.

    Raises:
        OSError: The kernel accepts no filter.
    """
    program = b"".join(_rule(REFUSALS[name]) for name in names) + _step(_RETURN, 0, 0, _ALLOW)
    steps = ctypes.create_string_buffer(program, len(program))
    whole = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, None), (_PR_SET_SECCOMP, _MODE_FILTER, whole)):
        if prctl(arguments[0], ctypes.c_ulong(arguments[1]), arguments[2], 0, 0):
            raise OSError(ctypes.get_errno(), f"no seccomp filter: {os.strerror(ctypes.get_errno())}")


def _rule(refusal: Refusal) -> bytes:
    """Load the number, skip the rest if it differs, and return the error if the arguments match."""
    body = b"".join(_condition(arguments, refusal.error) for arguments in refusal.when)
    number = refusal.calls[platform.machine()]
    return _step(_LOAD, 0, 0, 0) + _step(_JUMP_EQUAL, 0, len(body) // 8, number) + body


def _condition(arguments: tuple[tuple[int, int], ...], error: int) -> bytes:
    program = _step(_RETURN, 0, 0, _ERRNO | error)
    for argument, value in reversed(arguments):
        # The lower half of the argument, on a little-endian machine.
        load = _step(_LOAD, 0, 0, 16 + 8 * argument)
        program = load + _step(_JUMP_EQUAL, 0, len(program) // 8, value) + program
    return program


def _step(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return struct.pack("@HBBI", code, if_true, if_false, operand)


def check(name: str) -> None:
    """Make sure that *name* is refused: a filter without effect would prove nothing."""
    refused = REFUSALS[name]
    arguments: dict[str, tuple[object, ...]] = {
        "F_OFD_SETLK": (0, 37, None),
        "futex": (ctypes.byref(ctypes.c_uint32()), 1, _EVERYBODY, None),
        "futex_waitv": (None, 0, 0, None, 0),
        "memfd_create": (b"x", 0),
        "MADV_WIPEONFORK": (None, mmap.PAGESIZE, 18),
        "fallocate": (-1, 0, 0, 1),
    }
    result = ctypes.CDLL(None, use_errno=True).syscall(refused.calls[platform.machine()], *arguments[name])
    assert (result, ctypes.get_errno()) == (-1, refused.error), name


def main(names: list[str]) -> None:
    """Play a switchover behind the filter and print the result, as JSON."""
    refuse(names)
    for name in names:
        check(name)
    print(json.dumps(play("postgresql")))


def play(engine: str, then: Callable[[Pair], dict[str, object]] = lambda _: {}) -> dict[str, object]:
    """Play a switchover and return the result.

    Args:
        engine: The servers' engine.
        then: Called at the end with the servers, which still run. Its result is added.
    """
    from bgpool.core.engine import Engine
    from bgpool.doctor import Case
    from bgpool.doctor.kernel_checks import kernel_checks
    from bgpool.lab import Event
    from bgpool.lab.scenarios.scenario import FAST
    from bgpool.lab.trial import Trial
    from bgpool.report import Status, status

    seen: list[Status] = []

    def look(_event: Event) -> None:
        seen.append(status("demo", trial.run_dir))

    with Trial(engine=Engine(engine), workers=2, schedule=FAST, settle_s=0.5) as trial:
        trial.on_ready = lambda: trial.director.on_event.append(look)
        report = trial.run()
        findings = kernel_checks.run(Case(trial.pair.dsn), "this host")
        more = then(trial.pair)
    assert report.snapshot is not None
    return more | {
        "clean": report.verdict.clean,
        "acknowledged": report.verdict.acknowledged,
        "errors": report.error_examples,
        "excess_s": report.excess_s,
        "phase": report.snapshot.phase.name,
        "monitors": sorted({(one.monitor.state, one.monitor.term) for one in seen}),
        "workers": min(len(one.workers) for one in seen),
        "lacks": sorted({name for one in seen for worker in one.workers for name in worker.lacks}),
        "notes": sorted({text.split(",")[0] for one in seen for text in one.notes}),
        "doctor": {one.check: [one.result.value, one.text] for one in findings},
    }


if __name__ == "__main__":
    main(sys.argv[1:])

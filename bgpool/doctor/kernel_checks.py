"""Checks of this host's kernel, made on temporary files next to the run directory."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bgpool.doctor.case import Case
from bgpool.doctor.findings import Checks, EarlyVerdict, Verdict, failed, not_checked, ok, warning
from bgpool.doctor.host_checks import existing
from bgpool.errors import SegmentError
from bgpool.segment import kernel_features, table
from bgpool.segment.locks import try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import Presence, anybody_present, workers
from bgpool.segment.wake import has_futex

__all__ = ["kernel_checks"]

kernel_checks: Final[Checks[Case]] = Checks()

#: The longest time of a wake-up, in seconds; it takes microseconds, but the machine may be busy.
WAKE_S: Final = 1.0
_CLOCKS_S: Final = 0.1
#: The maximum drift of the two clocks within _CLOCKS_S, in seconds.
_CLOCKS_APART_S: Final = 0.05
_YEAR_2025: Final = 1_735_689_600
#: The initial time namespace of Linux. Source: PROC_TIME_INIT_INO of the kernel's proc_ns.h.
_FIRST_TIME_NAMESPACE: Final = 0xEFFFFFFA


@kernel_checks.check("wake", "Does the kernel wake who waits for the monitor?")
def _wake(case: Case) -> Verdict:
    how = "futex" if has_futex() else "polling, there is no futex here"
    with _scratch(case) as files:
        waiter, ringer = table.Table(files), table.Table(files)  # two mappings, as in two processes
        rung_at = woken_at = 0.0

        def wait() -> None:
            nonlocal woken_at
            if waiter.wait_rung(0, WAKE_S + 1.0):
                woken_at = time.monotonic()

        thread = threading.Thread(target=wait, name="bgpool-doctor-wake", daemon=True)
        thread.start()
        time.sleep(0.05)
        rung_at = time.monotonic()
        ringer.ring(1)
        thread.join(WAKE_S + 2.0)
    took_s = woken_at - rung_at
    if not woken_at or took_s > WAKE_S:
        return failed(f"{how}: not woken within {WAKE_S:.0f} s", "report this with the output of uname -a")
    text = f"{how}, woken after {max(0.0, took_s) * 1000:.2f} ms"
    return ok(text) if has_futex() else warning(text, "no action: waiters poll every 10 ms, which costs some CPU time")


@kernel_checks.check("locks", "Do the kernel's locks tell who is there?")
def _locks(case: Case) -> Verdict:
    with _scratch(case) as files:
        presence = Presence(files)
        seen, lock = workers(files), try_lock(files.spawning)
        second = try_lock(files.spawning)
        presence.close()
        left = anybody_present(files)
        for held in (lock, second):
            if held is not None:
                held.release()
    if [row.pid for row in seen] == [os.getpid()] and lock is not None and second is None and not left:
        return ok("rows are locked, seen to be, and free again")
    return failed(
        f"{len(seen)} rows seen of 1, {'gone' if not left else 'still there'} at the end; "
        f"election lock {'given' if lock else 'not given'}, {'and again' if second else 'once'}",
        "use a run directory on a file system with locks, such as /dev/shm",
    )


@kernel_checks.check("kernel", "Does the kernel allow what bgpool makes use of?")
def _kernel(_case: Case) -> Verdict:
    refused_to = kernel_features.lacks()
    lacking = [lack for bit, lack in kernel_features.LACKS.items() if refused_to & bit]
    if not lacking:
        return ok(", ".join(lack.name for lack in kernel_features.LACKS.values()))
    return warning(
        "; ".join(f"{lack.name}: {lack.text}" for lack in lacking), "; ".join(lack.remedy for lack in lacking)
    )


@kernel_checks.check("clock", "Do the clocks go, and which boot is this?")
def _clock(_case: Case) -> Verdict:
    mono, wall = time.monotonic(), time.time()
    time.sleep(_CLOCKS_S)
    mono_s, wall_s = time.monotonic() - mono, time.time() - wall
    if mono_s < _CLOCKS_S / 2:
        return failed(
            f"CLOCK_MONOTONIC went {mono_s:.3f} s in {_CLOCKS_S} s",
            "every deadline depends on it: check this host's kernel",
        )
    if wall < _YEAR_2025 or abs(mono_s - wall_s) > _CLOCKS_APART_S:
        return warning(
            f"wall clock {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(wall))}, "
            f"{wall_s - mono_s:+.3f} s against the monotonic one in {_CLOCKS_S} s",
            "have it set (chrony, ntpd); times in the timeline and certificates depend on it, deadlines do not",
        )
    if sys.platform != "linux":
        return ok("both go; this system does not tell its boots apart")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/time").stat().st_ino
    except OSError:
        return ok("both run; the boot cannot be identified, see kernel")
    if namespace != _FIRST_TIME_NAMESPACE:
        return warning(
            f"boot {boot}, in a time namespace of its own ({namespace})",
            "share the run directory with processes of the same time namespace alone",
        )
    return ok(f"both go; boot {boot}, the host's time namespace")


@contextlib.contextmanager
def _scratch(case: Case) -> Iterator[RunFiles]:
    """Yield temporary files like those of the run directory, next to it if possible, to test the same file system."""
    parent = existing(case.run_dir.parent)
    beside = parent if os.access(parent, os.W_OK | os.X_OK) else None
    try:
        with tempfile.TemporaryDirectory(prefix="bgpool-doctor-", dir=beside) as directory:
            yield RunFiles.of(Path(directory), "doctor")
    except (OSError, SegmentError) as error:
        raise EarlyVerdict(not_checked(f"no file to try it on in {beside or tempfile.gettempdir()}: {error}")) from None

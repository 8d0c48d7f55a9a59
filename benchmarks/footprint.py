"""CPU time and memory of processes by process id, measured from outside."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Memory", "cpu_ms_per_s", "cpu_s", "memory_of", "parent_of", "threads_of"]

_FIELD: Final = re.compile(r"^(Rss|Pss): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one process or of several, in MB (10^6 bytes).

    Attributes:
        pss_mb: The private memory, and a share of the memory that several processes have in common. The sum over
            processes is exact.
        rss_mb: All resident memory. Shared memory is counted for each process.
    """

    pss_mb: float
    rss_mb: float


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that the process *pid* has used in all its threads.

    Raises:
        OSError: There is no such process.
    """
    # The CPU clock of another process, with its id as in clock_getcpuclockid(3). /proc has a resolution of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def cpu_ms_per_s(pids: Iterable[int], window_s: float) -> float:
    """Return the CPU that *pids* use together over the next *window_s* seconds, in ms per second. Sleeps that long.

    Raises:
        OSError: A process has exited.
    """
    watched = tuple(pids)
    before, began_s = sum(map(cpu_s, watched)), time.monotonic()
    time.sleep(window_s)
    return 1000 * (sum(map(cpu_s, watched)) - before) / (time.monotonic() - began_s)


def memory_of(pids: Iterable[int]) -> Memory:
    """Return the memory of *pids* together.

    Raises:
        OSError: A process has exited.
    """
    pss_kb = rss_kb = 0
    for pid in pids:
        found = dict(_FIELD.findall(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")))
        pss_kb, rss_kb = pss_kb + int(found["Pss"]), rss_kb + int(found["Rss"])
    return Memory(pss_kb * 1024 / 1e6, rss_kb * 1024 / 1e6)


def parent_of(pid: int) -> int:
    """Return the process id of the parent of *pid*.

    Raises:
        OSError: There is no such process.
    """
    # The name in parentheses may contain any character.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def threads_of(pid: int) -> int:
    """Return the number of threads of the process *pid*.

    Raises:
        OSError: There is no such process.
    """
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())

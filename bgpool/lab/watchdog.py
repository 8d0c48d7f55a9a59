"""A small process that outlives the lab's own, and cleans up after it, however it ends.

It is run by its path (``python -I -S watchdog.py OWNER_PID``), so it must import only the standard library. Standard
input is a pipe that the lab holds open: first it receives the lab's directories, one a line, then nothing. At end of
file, or when the lab's process is gone, it ends the database programs that work below these directories, and removes
these.

Nothing is registered: the programs are found by their command lines. So none can be missed between its start and its
registration, and no other process that reuses a process id can be hit.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

POLL_S = 0.5
"""A forked child may hold the pipe open after the lab's death; hence regular checks of the parent."""

QUIT_TIMEOUT_S = 2.0
"""An immediate shutdown of PostgreSQL takes some 30 ms here, one of MariaDB 50 ms; after this, SIGKILL."""

KILL_TIMEOUT_S = 5.0
ENDED = frozenset(("postgres", "initdb", "pg_basebackup", "mariadbd", "mysqld", "redis-server", "valkey-server"))
FIRST_WORDS = 4
"""The number of a command line's words among which a program is, even if another runs it: ``ld.so --library-path DIRS
mysqld``."""


def arguments_of(pid: int) -> list[str]:
    """Return the command line of *pid*; empty for a process that is gone or a zombie."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def children_of(pid: int) -> list[int]:
    """Return the processes whose parent is *pid*.

    PostgreSQL's backends are each in a session of their own, so no signal to a process group reaches them all.
    """
    return [child for child in _pids() if _parent_of(child) == pid]


def programs_below(directories: Iterable[str]) -> list[int]:
    """Return the database programs that were started with a path below *directories*, also in ``--option=path``.

    A program's name need not come first: a dynamic linker or a shell may have been started with it.
    """
    prefixes = tuple(directory.rstrip("/") + "/" for directory in directories)
    found = []
    for pid in _pids():
        words = arguments_of(pid)
        names = {word.rpartition("/")[2] for word in words[:FIRST_WORDS]}
        places = (word.partition("=")[2] if word.startswith("--") else word for word in words[1:])
        if names & ENDED and any(place.startswith(prefixes) for place in places):
            found.append(pid)
    return found


def end_programs_below(directories: Iterable[str]) -> None:
    """End those programs: an immediate shutdown first, which frees shared memory, then SIGKILL."""
    places = list(directories)
    pids = programs_below(places)
    families = {pid: children_of(pid) for pid in pids}
    segments = [s for pid in pids for s in shared_memory_of(_data_dir(pid))]
    for pid in pids:
        send(pid, signal.SIGQUIT)
        for member in (pid, *families[pid]):
            send(member, signal.SIGCONT)  # a frozen server would not receive the first signal
    if _wait_gone(places, QUIT_TIMEOUT_S):
        return
    for pid in programs_below(places):
        for member in (pid, *children_of(pid), *families.get(pid, ())):
            send(member, signal.SIGKILL)
    _wait_gone(places, KILL_TIMEOUT_S)
    remove_shared_memory(segments)


def shared_memory_of(data_dir: Path) -> list[int]:
    """Return the System V segments of the server in *data_dir*: line 7 of postmaster.pid holds key and id."""
    try:
        return [int((data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1])]
    except (OSError, IndexError, ValueError):
        return []


def remove_shared_memory(segments: Iterable[int]) -> None:
    """Free *segments*, which a server that was ended by SIGKILL leaves; those already gone are ignored."""
    libc = ctypes.CDLL(None)
    for segment in segments:
        libc.shmctl(segment, 0, None)  # 0 is IPC_RMID


def send(pid: int, number: signal.Signals) -> None:
    """Send signal *number*; a process that is gone, or another user's, is ignored."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _wait_gone(directories: Iterable[str], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while programs_below(directories):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.02)
    return True


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command's name, in parentheses, may contain spaces: state and parent follow the last parenthesis.
    return int(stat.rpartition(b")")[2].split()[1])


def _data_dir(pid: int) -> Path:
    arguments = arguments_of(pid)
    place = arguments.index("-D") + 1 if "-D" in arguments else len(arguments)
    return Path(arguments[place] if place < len(arguments) else "/nonexistent")


def main(owner_pid: int) -> None:
    """Wait for the owner's end, then clean up."""
    received = b""
    while os.getppid() == owner_pid:
        if not select.select([0], [], [], POLL_S)[0]:
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            break
        received += chunk
    directories = [line for line in os.fsdecode(received).split("\n") if line.startswith("/")]
    end_programs_below(directories)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""An observer of the segments of all hosts, in a process that does nothing else.

It reads every segment every `LOOK_S` and writes a line for each change: a JSON list with the fields of `HostView`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from bgpool.core.snapshot import Snapshot
from bgpool.lab.waiting import wait_until
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader

__all__ = ["LOOK_S", "SegmentObserver", "HostView"]

LOOK_S: Final = 0.002
NICE: Final = 10
#: The interval of checks for replaced segments, and for the parent's end, in seconds.
_PATHS_S: Final = 0.1
_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 5.0
_CODE: Final = "from bgpool.lab.fleet import observer; observer.look()"


class HostView(NamedTuple):
    """One observed state of a host.

    Attributes:
        mono_ns: The time, on the monotonic clock.
        host: Its index in the list of directories.
        phase: The name of its phase.
        standing: Its role in the fleet; empty for a host that is in none.
        leader: The id of the leader from which it received the last message.
        hosts: The number of hosts that it received.
        fallbacks: The number of times it has fallen back to querying the database itself.
        reason: The reason for which it queries the database itself.
    """

    mono_ns: int
    host: int
    phase: str
    standing: str = ""
    leader: str = ""
    hosts: int = 0
    fallbacks: int = 0
    reason: str = ""


def view_of(host: int, mono_ns: int, snapshot: Snapshot) -> HostView:
    """Return the fields of *snapshot*."""
    view = snapshot.fleet
    if view is None:
        return HostView(mono_ns, host, snapshot.phase.name)
    return HostView(
        mono_ns, host, snapshot.phase.name, view.standing.value, view.leader, view.hosts, view.fallbacks, view.reason
    )


class SegmentObserver:
    """An observer of hosts' segments from its start to its end; a context manager."""

    def __init__(self, bg_id: str, directories: Sequence[Path], output: Path) -> None:
        """Observe the segments of *bg_id* in *directories*; *output* is a file that is made and read afterwards."""
        self._output: Final = output
        with output.open("wb") as file:
            self._process: Final = subprocess.Popen(
                [sys.executable, "-c", _CODE, bg_id, *map(str, directories)],
                stdin=subprocess.DEVNULL,
                stdout=file,
            )

    def __enter__(self) -> SegmentObserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_looking(self) -> None:
        """Wait until it observes a host that has a segment.

        Raises:
            LabError: It does not within `_START_TIMEOUT_S`.
        """
        wait_until(lambda: self._output.stat().st_size > 0, timeout_s=_START_TIMEOUT_S, what="hosts are looked at")

    def stop(self) -> None:
        """Stop observing; idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)

    def views(self) -> list[HostView]:
        """Return all observed states so far, in the order of time."""
        lines = self._output.read_text(encoding="utf-8").splitlines(keepends=True)
        # The last line may be incomplete.
        return [HostView(*json.loads(line)) for line in lines if line.endswith("\n")]


def look() -> None:
    """Run the process: observe the segments of the bg_id in the directories that its arguments name."""
    bg_id, *directories = sys.argv[1:]
    # A higher priority: it measures other processes, not the wait for its own CPU time. Only root may set it.
    with contextlib.suppress(PermissionError):
        os.nice(-NICE)
    readers = [Reader(RunFiles.of(Path(directory), bg_id)) for directory in directories]
    seen: list[tuple[object, ...]] = [()] * len(readers)
    words = [(-1, 0)] * len(readers)
    parent, paths_at = os.getppid(), 0.0
    while os.getppid() == parent:
        if time.monotonic() - paths_at > _PATHS_S:
            paths_at = time.monotonic()
            for reader in readers:
                reader.check_path()
        for host, reader in enumerate(readers):
            reading = reader.refresh()
            # The mapping, too: another monitor's numbers may be the same.
            word = (reading.sequence, id(reading.mapped))
            if reading.snapshot is None or word == words[host]:
                continue
            words[host] = word
            view = view_of(host, time.monotonic_ns(), reading.snapshot)
            if view[2:] != seen[host]:
                seen[host] = view[2:]
                os.write(1, f"{json.dumps(view)}\n".encode())
        time.sleep(LOOK_S)

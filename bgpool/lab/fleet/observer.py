"""What the segments of all hosts say, and when it can be seen, by a process that has nothing else on its mind.

It looks at every segment every `LOOK_S` and writes a line for each change: a JSON list with the fields of `HostView`.
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
#: How often it is looked whether a segment was replaced, and whether anybody is left to look for, in seconds.
_PATHS_S: Final = 0.1
_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 5.0
_CODE: Final = "from bgpool.lab.fleet import observer; observer.look()"


class HostView(NamedTuple):
    """What was seen of a host.

    Attributes:
        mono_ns: When, on the monotonic clock.
        host: Its place in the list of directories.
        phase: The name of its phase.
        standing: Its place in the fleet; empty for a host that is in none.
        leader: The id of the leader that it heard last.
        hosts: How many hosts there are, as it was told.
        fallbacks: How often it has fallen back to asking the database itself.
        reason: Why it asks the database itself.
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
    """What *snapshot* says."""
    view = snapshot.fleet
    if view is None:
        return HostView(mono_ns, host, snapshot.phase.name)
    return HostView(
        mono_ns, host, snapshot.phase.name, view.standing.value, view.leader, view.hosts, view.fallbacks, view.reason
    )


class SegmentObserver:
    """Looks at the segments of hosts from its start to its end; a context manager."""

    def __init__(self, bg_id: str, directories: Sequence[Path], output: Path) -> None:
        """Look at those of *bg_id* in *directories*; *output* is a file that is made, and is read afterwards."""
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
        """Wait until it looks, at a host that has a segment.

        Raises:
            LabError: It does not within `_START_TIMEOUT_S`.
        """
        wait_until(lambda: self._output.stat().st_size > 0, timeout_s=_START_TIMEOUT_S, what="hosts are looked at")

    def stop(self) -> None:
        """Look no more; idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)

    def views(self) -> list[HostView]:
        """What was seen so far, in the order of time."""
        lines = self._output.read_text(encoding="utf-8").splitlines(keepends=True)
        # The last one may be half written.
        return [HostView(*json.loads(line)) for line in lines if line.endswith("\n")]


def look() -> None:
    """What the process does: look at the segments of the bg_id and in the directories that its arguments name."""
    bg_id, *directories = sys.argv[1:]
    # What it measures is when others are done, and not when it gets a turn itself; root alone may ask for that.
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
            # The mapping too: another monitor's numbers may be the same.
            word = (reading.sequence, id(reading.mapped))
            if reading.snapshot is None or word == words[host]:
                continue
            words[host] = word
            view = view_of(host, time.monotonic_ns(), reading.snapshot)
            if view[2:] != seen[host]:
                seen[host] = view[2:]
                os.write(1, f"{json.dumps(view)}\n".encode())
        time.sleep(LOOK_S)

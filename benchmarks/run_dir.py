"""A run directory for a benchmark: the monitors that its workers start there, and their snapshots."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

import bgpool
from benchmarks.builds import is_current, statuses
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.lab import LabError
from bgpool.lab.waiting import wait_until
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader, SegmentMap

__all__ = ["RunDir"]

_END_TIMEOUT_S = 5.0


class RunDir:
    """A context manager. Exit it when the workers are gone: it ends the monitors, which would stay for a while.

    Attributes:
        path: The value for ``bg_run_dir``.
    """

    path: Path

    def __init__(self, build: Path | None = None) -> None:
        """Describe a run directory for the bgpool of the directory *build*; None for this one."""
        self._other_build: Final = build if build is not None and not is_current(build) else None

    def __enter__(self) -> RunDir:
        self.path = Path(tempfile.mkdtemp(prefix="bgpool-bench-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pids = self.monitors()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(LabError):
            wait_until(lambda: not any(map(_is_there, pids)), timeout_s=_END_TIMEOUT_S, what="monitors to end")
        shutil.rmtree(self.path, ignore_errors=True)

    def files(self, bg_id: str) -> RunFiles:
        """Return the files of *bg_id* in this directory."""
        return RunFiles.of(self.path, bg_id)

    def snapshot(self, bg_id: str) -> Snapshot | None:
        """Return the last snapshot of *bg_id*'s monitor, of this build."""
        return Reader(self.files(bg_id)).refresh().snapshot

    def states(self, *bg_ids: str) -> dict[str, tuple[Phase | None, bool]]:
        """Return the phase of each of *bg_ids* that is known, and whether it is ready for a switchover."""
        if self._other_build is not None:
            # The segment's format may differ between builds.
            return {
                status["bg_id"]: (Phase[status["phase"]] if status["phase"] else None, bool(status["ready"]))
                for status in statuses(self._other_build, self.path)
            }
        snapshots = {bg_id: self.snapshot(bg_id) for bg_id in bg_ids}
        return {bg_id: (found.phase, found.ready) for bg_id, found in snapshots.items() if found is not None}

    def monitors(self) -> tuple[int, ...]:
        """Return the process ids of the running monitors. One process may run several monitors."""
        if self._other_build is not None:
            found = [status["monitor"] for status in statuses(self._other_build, self.path)]
            return tuple(pid for pid in dict.fromkeys(each["pid"] for each in found if each) if _is_there(pid))
        pids = []
        for files in RunFiles.all_in(self.path):
            with contextlib.suppress(FileNotFoundError, bgpool.SegmentError):
                pids.append(SegmentMap(files).header.pid)
        return tuple(pid for pid in dict.fromkeys(pids) if _is_there(pid))

    def wait_ready(self, *bg_ids: str, timeout_s: float) -> None:
        """Wait until each of *bg_ids* is ready for a switchover.

        Raises:
            LabError: A deployment was not ready within *timeout_s* seconds.
        """

        def all_ready() -> bool:
            states = self.states(*bg_ids)
            return all(states.get(bg_id, (None, False))[1] for bg_id in bg_ids)

        wait_until(all_ready, timeout_s=timeout_s, what=f"{len(bg_ids)} deployments to be ready")


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

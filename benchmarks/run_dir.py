"""A run directory for a benchmark: the monitors that its workers start there, and their snapshots."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType

import bgpool
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
        """Return the last snapshot of *bg_id*'s monitor."""
        return Reader(self.files(bg_id)).refresh().snapshot

    def monitors(self) -> tuple[int, ...]:
        """Return the process ids of the running monitors. One process may run several monitors."""
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
            found = [self.snapshot(bg_id) for bg_id in bg_ids]
            return all(snapshot is not None and snapshot.ready for snapshot in found)

        wait_until(all_ready, timeout_s=timeout_s, what=f"{len(bg_ids)} deployments to be ready")


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

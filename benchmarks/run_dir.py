"""A run directory of a benchmark's own: the monitors that its workers start there, and what these publish."""

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
    """A context manager, to be left when the workers are gone: monitors, which would stay a while, are ended.

    Attributes:
        path: For ``bg_run_dir``.
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
        """The files of *bg_id* in here."""
        return RunFiles.of(self.path, bg_id)

    def snapshot(self, bg_id: str) -> Snapshot | None:
        """What the monitor of *bg_id* has published last."""
        return Reader(self.files(bg_id)).refresh().snapshot

    def monitors(self) -> tuple[int, ...]:
        """The process ids of those that live; one process may run several monitors."""
        pids = []
        for files in RunFiles.all_in(self.path):
            with contextlib.suppress(FileNotFoundError, bgpool.SegmentError):
                pids.append(SegmentMap(files).header.pid)
        return tuple(pid for pid in dict.fromkeys(pids) if _is_there(pid))

    def wait_ready(self, *bg_ids: str, timeout_s: float) -> None:
        """Wait until each of *bg_ids* is ready for a switchover.

        Raises:
            LabError: One was not within *timeout_s* seconds.
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

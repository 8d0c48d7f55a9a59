"""The state of a deployment at one time, read from the files of the run directory."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

from bgpool.core.fleet import FleetView
from bgpool.core.snapshot import Snapshot
from bgpool.errors import SegmentError
from bgpool.segment import history
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import WorkerRow, workers
from bgpool.segment.reader import Reader

__all__ = ["Deployment"]


class Deployment:
    """One reading of the files. Unreadable values are missing, so that no scrape fails because of them.

    Attributes:
        snapshot: The snapshot; None if there was none.
        sequence: Its number; 0 without a segment.
        term: The monitor's term; None without a segment.
        monitor_age_s: The time since its last heartbeat; None if there is none.
        bus_age_s: The time since its last message of the fleet; None if there was none.
    """

    def __init__(self, files: RunFiles, reader: Reader) -> None:
        """Read *files*, whose segment *reader* reads."""
        self._files: Final = files
        reader.check_path()
        reading = reader.refresh()
        self.snapshot: Final[Snapshot | None] = reading.snapshot
        self.sequence: Final = reading.sequence
        mapped = reading.mapped
        self.term: Final = mapped.header.term if mapped is not None else None
        age_s = mapped.heartbeat_age_s() if mapped is not None else math.inf
        self.monitor_age_s: Final = age_s if math.isfinite(age_s) else None
        self.bus_age_s: Final = mapped.bus_age_s() if mapped is not None else None
        self.workers: Final = cache(self._workers)
        self.totals: Final = cache(self._totals)

    @property
    def fleet(self) -> FleetView | None:
        """The host's role in its fleet; None without bg_fleet."""
        return self.snapshot.fleet if self.snapshot is not None else None

    def _workers(self) -> tuple[WorkerRow, ...]:
        """Return every process of the host that uses the deployment."""
        try:
            return workers(self._files)
        except SegmentError:
            return ()

    def _totals(self) -> dict[str, int]:
        """Return the number of switchovers by outcome."""
        return history.totals(history.read(self._files))

"""A deployment as the files of the run directory tell of it, at one moment."""

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
    """One look. What cannot be read is missing: nobody's scrape fails for it.

    Attributes:
        snapshot: None where none was ever seen.
        sequence: Its number; 0 while there is no segment.
        term: The monitor's; None while there is no segment.
        monitor_age_s: Since its last sign of life; None while there is none.
        bus_age_s: Since it last heard of its fleet; None where it has not.
    """

    def __init__(self, files: RunFiles, reader: Reader) -> None:
        """Look at *files*, of which *reader* knows the segment."""
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
        """The host's place in its fleet; None without bg_fleet."""
        return self.snapshot.fleet if self.snapshot is not None else None

    def _workers(self) -> tuple[WorkerRow, ...]:
        """Every process of the host that uses it."""
        try:
            return workers(self._files)
        except SegmentError:
            return ()

    def _totals(self) -> dict[str, int]:
        """Switchovers by outcome."""
        return history.totals(history.read(self._files))

"""The status of this host's deployments, read from the run directory, for commands and for an application's checks.

Reading the status opens no connection, starts no monitor and writes nothing. It detects living workers with shared
locks, held for microseconds, which block no other process. It keeps no state between calls, and costs about a
millisecond.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bgpool.report.model import ByHand, Endpoint, Event, Fleet, LastSwitchover, Monitor, Status, Totals, Worker
from bgpool.report.reading import read_status
from bgpool.report.reasons import switched_off
from bgpool.segment.paths import RunFiles, look_in
from bgpool.settings import Settings

__all__ = [
    "ByHand",
    "Deployment",
    "Endpoint",
    "Event",
    "Fleet",
    "LastSwitchover",
    "Monitor",
    "Status",
    "Totals",
    "Worker",
    "find",
    "status",
    "switched_off",
]


class Deployment(NamedTuple):
    """A deployment in a run directory.

    Attributes:
        files: Its files in the run directory, whether they exist or not.
        bg_id: The bg_id; empty if only the files can tell it, because their names may be digests.
    """

    files: RunFiles
    bg_id: str = ""

    def is_known(self) -> bool:
        """True if it has files in the run directory: a process has used it."""
        return self.files in RunFiles.all_in(self.files.directory)

    def status(self) -> Status:
        """Return the status from its files. Never raises: unreadable data are missing, and the status says why."""
        return read_status(self.files, self.bg_id)


def status(bg_id: str | int = "1", run_dir: Path | str | None = None) -> Status:
    """Return this host's status of *bg_id*, for an application's own health checks. Opens no connection.

    Args:
        bg_id: See get_pool.
        run_dir: The parameter bg_run_dir; None for the default.

    Raises:
        ConfigurationError: A value is invalid.
        SegmentError: The run directory cannot be trusted.
    """
    return find(bg_id, run_dir)[0].status()


def find(bg_id: str | int | None = None, run_dir: Path | str | None = None) -> tuple[Deployment, ...]:
    """Return the deployment called *bg_id*, whether it has files or not; with None, all that have files.

    Raises:
        ConfigurationError, SegmentError: See status().
    """
    given: dict[str, object] = {"bg_run_dir": run_dir}
    settings = Settings.from_mapping(given if bg_id is None else {**given, "bg_id": bg_id})
    directory = look_in(settings.bg_run_dir)
    there = RunFiles.all_in(directory)
    if bg_id is None:
        return tuple(map(Deployment, there))
    return (Deployment(RunFiles.of(directory, settings.bg_id), settings.bg_id),)

"""What this host knows of its deployments: read from the run directory, for commands and for an application's checks.

To look opens no connection, starts no monitor and writes nothing. Which workers live is asked with shared locks, held
for microseconds, that keep nobody from anything. A call remembers nothing either, and costs about a millisecond.
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
    """Where to look.

    Attributes:
        files: Its files in the run directory, there or not.
        bg_id: Empty where the files alone can tell: their names may hide it.
    """

    files: RunFiles
    bg_id: str = ""

    def is_known(self) -> bool:
        """Whether it has left anything in the run directory: a process has used it."""
        return self.files in RunFiles.all_in(self.files.directory)

    def status(self) -> Status:
        """What its files say now. Never raises: what cannot be read is missing, and why is in the status."""
        return read_status(self.files, self.bg_id)


def status(bg_id: str | int = "1", run_dir: Path | str | None = None) -> Status:
    """What this host knows of *bg_id*, for an application's own health checks. Connects to nothing.

    Args:
        bg_id: As for get_pool.
        run_dir: As the parameter bg_run_dir; None for the default.

    Raises:
        ConfigurationError: A value that cannot be used.
        SegmentError: The run directory is not to be trusted.
    """
    return find(bg_id, run_dir)[0].status()


def find(bg_id: str | int | None = None, run_dir: Path | str | None = None) -> tuple[Deployment, ...]:
    """The deployment called *bg_id*, whether or not it has left anything; with None, every one that has.

    Raises:
        ConfigurationError, SegmentError: As status().
    """
    given: dict[str, object] = {"bg_run_dir": run_dir}
    settings = Settings.from_mapping(given if bg_id is None else {**given, "bg_id": bg_id})
    directory = look_in(settings.bg_run_dir)
    there = RunFiles.all_in(directory)
    if bg_id is None:
        return tuple(map(Deployment, there))
    return (Deployment(RunFiles.of(directory, settings.bg_id), settings.bg_id),)

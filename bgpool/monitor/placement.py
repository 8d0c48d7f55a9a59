"""Start a monitor in a process that already runs compatible monitors, or in a new process, which accepts others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from bgpool.core.limits import MONITOR_START_S
from bgpool.errors import SegmentError
from bgpool.monitor.compatibility import compatibility_key
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.launch import launch
from bgpool.monitor.rendezvous import Rendezvous, ask
from bgpool.segment.locks import Lock, try_lock

__all__ = ["bring_up"]

#: The interval at which a process that another thread or worker starts is checked for readiness, in seconds.
_POLL_S: Final = 0.02


def bring_up(config: MonitorConfig, *, alone: bool) -> str:
    """Start a monitor for *config*, and wait until it watches.

    Args:
        config: The configuration.
        alone: True for a new process that accepts no other monitors.

    Returns:
        The reported reason of a failure; empty if it watches.

    Raises:
        OSError: No process can be started.
    """
    alike = compatibility_key(config) if not alone else None
    if alike is None:
        return launch(config, None)
    place = Rendezvous(Path(config.run_dir), alike)
    deadline = time.monotonic() + MONITOR_START_S
    met = 0
    while True:
        # A process that did not accept it is not asked again.
        inode = place.inode()
        if inode != met:
            met = inode
            said = ask(place, config) if inode else None
            if said is not None:
                return said
        lock = _try(place.lock)
        if lock is not None:
            try:
                # The last holder of the lock may have started a process.
                if place.inode() == met:
                    return launch(config, place)
            finally:
                lock.release()
        elif time.monotonic() > deadline:
            return launch(config, None)
        else:
            time.sleep(_POLL_S)


def _try(path: Path) -> Lock | None:
    try:
        return try_lock(path)
    except SegmentError:
        # An untrusted lock file is treated like a lock that another process holds.
        return None

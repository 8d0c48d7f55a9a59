"""Having a monitor run: by a process that runs others like it, or by a new one, which takes others in turn."""

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

#: How often it is looked whether the process that another thread or worker starts takes others by now, in seconds.
_POLL_S: Final = 0.02


def bring_up(config: MonitorConfig, *, alone: bool) -> str:
    """Have *config* watched, and wait until it is.

    Args:
        config: What to watch.
        alone: Whether it has to be a new process, which takes no others.

    Returns:
        Why it is not, as far as that was said.

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
        # One that did not take it is not asked again.
        inode = place.inode()
        if inode != met:
            met = inode
            said = ask(place, config) if inode else None
            if said is not None:
                return said
        lock = _try(place.lock)
        if lock is not None:
            try:
                # Whoever had the lock until now may have started one.
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
        # Not to be trusted. It ends as if another had it.
        return None

"""Optional hooks for application servers: pools connect before a worker's first request instead of during it."""

from __future__ import annotations

import logging

from bgpool.core.timeouts import hold_misfit
from bgpool.logs import log_fields
from bgpool.pools.worker_timeout import note_busy_limit
from bgpool.registry import open_pools, pools

__all__ = ["begin_worker", "open_pools"]

_logger = logging.getLogger("bgpool.pool")


def begin_worker(busy_limit_s: float | None) -> None:
    """Open the connections of this process's pools, and log a warning if its server may end it while a caller is held.

    Args:
        busy_limit_s: The time in seconds after which the server ends a process that is busy with one request or task;
            None or 0 if it never does. ``bgpool status`` shows it, too.
    """
    note_busy_limit(busy_limit_s)
    open_pools()
    # Only one process of the host logs it: the others would log the same.
    for pool in [pool for pool in pools() if pool.participant.speaks_for_host()]:
        usage = pool.usage()
        misfit = hold_misfit(usage.hold_limit_ms, usage.busy_limit_ms)
        if misfit:
            extra = log_fields("time_limit_too_short", bg_id=pool.bg_id, host=pool.name)
            _logger.warning("[bg_id: %r] %s", pool.bg_id, misfit, extra=extra)

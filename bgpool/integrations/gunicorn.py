"""Gunicorn: pools connect before a worker's first request. In ``gunicorn.conf.py``::

from bgpool.integrations.gunicorn import post_worker_init
"""

from __future__ import annotations

import sys
from typing import Any

from bgpool.integrations import begin_worker

__all__ = ["post_worker_init"]


def post_worker_init(worker: Any) -> None:
    """Open the worker's pools before its first request. Does not wait; errors are logged, not raised.

    Logs a warning if gunicorn's ``timeout`` may end a sync worker while a caller is held.

    This is not ``post_fork``: without preload_app the application, and with it the pool, does not exist at that point.
    """
    begin_worker(_busy_limit_s(worker))


def _busy_limit_s(worker: Any) -> float | None:
    """Return the time after which gunicorn kills a busy worker; None if it does not.

    A worker with threads or green threads sends its heartbeat independently of requests. A sync worker sends none
    during a request. With one listener it sends one just before a request; with several, its last one may be half of
    the timeout old. ``worker.timeout`` is that half.
    """
    sync = getattr(sys.modules.get("gunicorn.workers.sync"), "SyncWorker", None)
    if sync is None or not isinstance(worker, sync):
        return None
    timeout_s = float(worker.cfg.timeout)
    return timeout_s / 2 if len(worker.sockets) > 1 else timeout_s

"""In ``gunicorn.conf.py``::

from bgpool.integrations.gunicorn import post_worker_init
"""

from __future__ import annotations

import sys
from typing import Any

from bgpool.integrations import begin_worker

__all__ = ["post_worker_init"]


def post_worker_init(worker: Any) -> None:
    """Have the worker's pools connect before its first request. Waits for nothing; errors are logged, not raised.

    Logs a warning if gunicorn's ``timeout`` may end a sync worker while a caller is held.

    Not ``post_fork``: without preload_app the application, and with it the pool, is not there yet.
    """
    begin_worker(_busy_limit_s(worker))


def _busy_limit_s(worker: Any) -> float | None:
    """After how long gunicorn kills the worker for being busy; None if it does not.

    A worker with threads or green threads gives its signs of life beside the requests. A sync worker gives none during
    a request; with one listener it gives one just before, with several its last one may be half of the timeout old.
    ``worker.timeout`` is that half.
    """
    sync = getattr(sys.modules.get("gunicorn.workers.sync"), "SyncWorker", None)
    if sync is None or not isinstance(worker, sync):
        return None
    timeout_s = float(worker.cfg.timeout)
    return timeout_s / 2 if len(worker.sockets) > 1 else timeout_s

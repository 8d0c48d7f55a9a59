"""In ``gunicorn.conf.py``::

from bgpool.integrations.gunicorn import post_worker_init
"""

from __future__ import annotations

from bgpool.integrations import open_pools

__all__ = ["post_worker_init"]


def post_worker_init(_worker: object) -> None:
    """Have the worker's pools connect before its first request. Waits for nothing; errors are logged, not raised.

    Not ``post_fork``: without preload_app the application, and with it the pool, is not there yet.
    """
    open_pools()

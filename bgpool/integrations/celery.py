"""In the module of the Celery application::

from bgpool.integrations import celery

celery.install()
"""

from __future__ import annotations

from celery.signals import worker_process_init

from bgpool.integrations import open_pools

__all__ = ["install"]


def install() -> None:
    """Have the pools of every child of the prefork pool connect when it starts instead of in its first task.

    Waits for nothing, because a child that took longer than four seconds to start would be killed; errors are
    logged, not raised.
    """
    # Not a weak reference: nobody else has one to it.
    worker_process_init.connect(_open_pools, weak=False)


def _open_pools(**_: object) -> None:
    open_pools()

"""Celery: pools connect when a worker's child starts. In the module of the Celery application::

from bgpool.integrations import celery

celery.install()
"""

from __future__ import annotations

from typing import Any

from celery import current_app
from celery.signals import worker_process_init

from bgpool.integrations import begin_worker

__all__ = ["install"]


def install() -> None:
    """Open the pools of every child of the prefork pool when it starts, instead of in its first task.

    Does not wait, because a child that takes longer than four seconds to start would be killed. Errors are logged, not
    raised. A warning is logged if the application's ``task_time_limit`` or ``task_soft_time_limit`` may end a task
    while it is held.
    """
    # Not a weak reference: no other object refers to the function.
    worker_process_init.connect(_open_pools, weak=False)


def _open_pools(**_: object) -> None:
    conf: Any = current_app.conf
    begin_worker(min((limit for limit in (conf.task_soft_time_limit, conf.task_time_limit) if limit), default=None))

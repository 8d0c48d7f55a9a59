"""Tasks whose worker process is killed right after the COMMIT, and that Celery starts again: the id is the task's."""

from __future__ import annotations

import os
import signal
from typing import Any

from django.db import transaction

import bgpool
from bgpool.integrations.django import run, transactional
from tests.django.programs.tasks import celery
from tests.servers import rows

__all__ = ["celery", "send"]


def write(key: str) -> str:
    """Write the row, and have this process killed as soon as that is committed."""
    from ledger.views import write

    write(key)
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    note(key, "called")
    return "done"


@transactional(receipt_id=lambda key, *, task_id: f"{task_id}.{key}")
def write_decorated(key: str, *, task_id: str) -> str:
    """The same, decorated."""
    assert task_id
    return write(key)


def note(key: str, what: object) -> None:
    """Record the outcome of a run of the task for the row *key*."""
    with (rows.directory() / f"of {key}").open("a", encoding="utf-8") as notes:
        notes.write(f"{what}\n")


@celery.task(bind=True, acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]  # no types
def by_run(self: Any, key: str) -> None:
    """Write the row of *key* in a unit of work."""
    outcome = run(write, key, receipt_id=self.request.id)
    note(key, isinstance(outcome, bgpool.AlreadyApplied))


@celery.task(bind=True, acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]  # no types
def by_decorator(self: Any, key: str) -> None:
    """The same, decorated."""
    outcome = write_decorated(key, task_id=self.request.id)
    note(key, isinstance(outcome, bgpool.AlreadyApplied))


def send(number: int) -> None:
    """Send one of each."""
    for slot, task in enumerate((by_run, by_decorator)):
        task.apply_async((f"{number}.{slot}.1",), queue="queue")

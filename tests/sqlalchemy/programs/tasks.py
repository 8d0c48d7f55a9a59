"""A Celery application that keeps its results in the database. Each task writes a few rows, and returns its number."""

from __future__ import annotations

from celery import Celery
from celery.exceptions import TimeoutError as NotYet
from sqlalchemy import create_engine

from bgpool.integrations.sqlalchemy import run
from tests.servers import rows
from tests.servers.broker import on_files
from tests.sqlalchemy.programs.common import ROWS, insert, task_id, url

#: More than a worker gets done in a switchover. All are sent before: the broker is not made for busy threads.
TASKS = 300

engine = create_engine(url(), pool_size=1)
celery = Celery("tasks", broker="filesystem://", backend="db+" + url())
celery.conf.update(on_files())


@celery.task  # type: ignore[untyped-decorator]  # Celery has no types
def write(number: int, slot: int) -> int:
    """Write the rows of one slot."""
    rows.wait_begun(slot)
    rows.write_with(lambda *key: run(engine, insert, *key), number, slot, 1, ROWS)
    return slot


def send(number: int) -> None:
    """Send all tasks."""
    for slot in range(TASKS):
        write.apply_async((number, slot), queue="queue", task_id=task_id(slot))


def wait_for_results() -> None:
    """A client of the tasks: waits for one result after another, until stopped."""
    for slot in range(TASKS):
        while True:
            try:
                assert write.AsyncResult(task_id(slot)).get(timeout=1.0, interval=0.1) == slot
            except NotYet:
                if rows.is_stopped():
                    return
            else:
                break
        (rows.directory() / "seen").write_text(str(slot + 1))

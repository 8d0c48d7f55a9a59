"""A Celery application on a broker of files. Each task writes a few rows."""

from __future__ import annotations

import os

from celery import Celery

from bgpool.integrations import celery as integration
from tests.servers import app as application
from tests.servers import rows
from tests.servers.broker import on_files

if os.environ.get("APP_HOOK"):
    integration.install()

celery = Celery("tasks", broker="filesystem://")
celery.conf.update(on_files())

ROWS = 5
#: More tasks than any worker completes in a switchover. All are sent in advance: the broker is not made for busy
#: threads.
TASKS = 300
pool = application.pool


@celery.task  # type: ignore[untyped-decorator]  # Celery has no types
def write(number: int, slot: int) -> None:
    """Write the rows of one slot."""
    rows.wait_begun(slot)
    rows.write(number, slot, 1, ROWS)


def send(number: int) -> None:
    """Send all tasks."""
    for slot in range(TASKS):
        write.apply_async((number, slot), queue="queue")

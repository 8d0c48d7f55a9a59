"""A Celery application on a broker of files. A task writes a few rows and sends the next one after it."""

from __future__ import annotations

import os

from celery import Celery

from tests.servers import app as application
from tests.servers import rows

celery = Celery("tasks", broker="filesystem://")
celery.conf.update(
    broker_transport_options={
        "data_folder_in": os.environ["APP_BROKER"],
        "data_folder_out": os.environ["APP_BROKER"],
        "control_folder": os.environ["APP_BROKER"],
        "polling_interval": 0.01,
    },
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
)

ROWS = 5
pool = application.pool


@celery.task
def write(queue: str, number: int, slot: int, first: int) -> None:
    """Write ROWS rows, and go on in another task."""
    rows.write(number, slot, first, ROWS)
    if not rows.is_stopped():
        write.apply_async((queue, number, slot, first + ROWS), queue=queue)


def begin(queue: str, number: int, slots: int) -> None:
    """Send the first tasks."""
    for slot in range(slots):
        write.apply_async((queue, number, slot, 1), queue=queue)

"""Tasks for the example's Celery application, on a broker of files. Each task writes a few rows."""

from __future__ import annotations

import django
from django.db import transaction
from shop.celery import app as celery

from bgpool.integrations.django import transactional
from tests.servers import rows
from tests.servers.broker import on_files

__all__ = ["celery", "send", "write_rows"]

django.setup()
celery.conf.update(on_files(), broker_url="filesystem://")

ROWS = 5
#: More than any worker gets done in a switchover. All are sent before: the broker is not made for busy threads.
TASKS = 300


@celery.task  # type: ignore[untyped-decorator]  # Celery has no types
def write_rows(number: int, slot: int) -> None:
    """Write the rows of one slot, in units of work where its number is odd."""
    from ledger.views import write

    rows.wait_begun(slot)

    how = transactional(write) if slot % 2 else transaction.atomic(write)
    rows.write_with(lambda *key: how(".".join(map(str, key))), number, slot, 1, ROWS)


def send(number: int) -> None:
    """Send all tasks."""
    for slot in range(TASKS):
        write_rows.apply_async((number, slot), queue="queue")

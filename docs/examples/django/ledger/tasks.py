"""A Celery task that writes a row."""

from celery import shared_task

from bgpool.integrations.django import transactional
from ledger.views import write


@shared_task
@transactional
def write_entry(key: str) -> None:
    """Write the row for *key*."""
    write(key)

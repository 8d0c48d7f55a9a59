"""Three views that write a row, and one that counts the rows. ``?key=WORKER.THREAD.N`` identifies the row."""

import os

from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from bgpool.integrations.django import transactional
from ledger.models import Entry


def write(key: str) -> None:
    """Write the row for *key*, such as ``1.2.3``."""
    worker, thread, n = map(int, key.split("."))
    Entry.objects.create(worker=worker, thread=thread, n=n)


def key_of(request: HttpRequest) -> str:
    """Return the key that a request contains."""
    return request.GET.get("key", "0.0.0")


def answer() -> HttpResponse:
    """Answer with the pid of the process."""
    return HttpResponse(str(os.getpid()), content_type="text/plain")


def count(request: HttpRequest) -> HttpResponse:
    """Count the rows."""
    return HttpResponse(str(Entry.objects.count()), content_type="text/plain")


@transaction.atomic
def plain(request: HttpRequest) -> HttpResponse:
    """Write a row. If a switchover cuts the transaction, the client gets an error."""
    write(key_of(request))
    return answer()


@transactional
def unit(request: HttpRequest) -> HttpResponse:
    """Write a row. The view is called again if a switchover cuts its transaction."""
    write(key_of(request))
    return answer()


async def in_async(request: HttpRequest) -> HttpResponse:
    """Write a row from an asynchronous view. The unit of work runs in a thread and does not block the event loop."""
    await sync_to_async(transactional(write))(key_of(request))
    return answer()

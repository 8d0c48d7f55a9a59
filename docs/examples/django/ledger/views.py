"""Three ways to write a row, and one to count them. ``?key=WORKER.THREAD.N`` says which row."""

import os

from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from bgpool.integrations.django import transactional
from ledger.models import Entry


def write(key: str) -> None:
    """Write the row of *key*, such as ``1.2.3``."""
    worker, thread, n = map(int, key.split("."))
    Entry.objects.create(worker=worker, thread=thread, n=n)


def key_of(request: HttpRequest) -> str:
    """The row that a request asks for."""
    return request.GET.get("key", "0.0.0")


def answer() -> HttpResponse:
    """Which process has answered."""
    return HttpResponse(str(os.getpid()), content_type="text/plain")


def count(request: HttpRequest) -> HttpResponse:
    """Count the rows."""
    return HttpResponse(str(Entry.objects.count()), content_type="text/plain")


@transaction.atomic
def plain(request: HttpRequest) -> HttpResponse:
    """Write a row. A switchover that cuts the transaction is an error to the client."""
    write(key_of(request))
    return answer()


@transactional
def unit(request: HttpRequest) -> HttpResponse:
    """Write a row. The view is called again if a switchover cuts its transaction."""
    write(key_of(request))
    return answer()


async def in_async(request: HttpRequest) -> HttpResponse:
    """Write a row from an asynchronous view: the unit of work runs in a thread, and nothing else waits for it."""
    await sync_to_async(transactional(write))(key_of(request))
    return answer()

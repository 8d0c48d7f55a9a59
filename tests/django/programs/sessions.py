"""A task that tells on which connection to the database it ran, for the example's Celery application."""

from __future__ import annotations

import os
from pathlib import Path

import django
from django.db import connection
from shop.celery import app as celery

from tests.servers.broker import on_files

__all__ = ["celery", "send", "tell_session"]

django.setup()
celery.conf.update(on_files(), broker_url="filesystem://")

TASKS = 4


@celery.task  # type: ignore[untyped-decorator]  # Celery has no types
def tell_session() -> None:
    """Write a line with the server's number of the connection."""
    function = "connection_id()" if connection.vendor == "mysql" else "pg_backend_pid()"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}")
        (session,) = cursor.fetchone()
    with Path(os.environ["APP_SESSIONS"]).open("a", encoding="ascii") as file:
        file.write(f"{session}\n")


def send() -> None:
    """Send all tasks."""
    for _ in range(TASKS):
        tell_session.apply_async(queue="queue")

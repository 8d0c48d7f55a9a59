"""Code of all programs in this directory: the database URL, as in an application's settings, and a row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import make_url

__all__ = ["ROWS", "insert", "task_id", "url"]

#: The number of rows of each task.
ROWS = 5

_INSERT = text("INSERT INTO ledger (worker, thread, n) VALUES (:worker, :thread, :n)")


def url(environment: Mapping[str, str] = os.environ) -> str:
    """The URL, with its password."""
    dsn = make_url(environment["APP_DSN"])
    options = {
        "bg_id": "servers",
        "bg_resolver": environment["APP_RESOLVER"],
        "bg_interval_baseline_ms": "500",
        "bg_interval_increased_ms": "500",
    }
    whole = dsn.set(drivername=f"{dsn.drivername}+bgpool").update_query_dict(options)
    return str(whole.render_as_string(hide_password=False))


def insert(connection: Any, worker: int, thread: int, n: int) -> None:
    """Write a row of the ledger."""
    connection.execute(_INSERT, {"worker": worker, "thread": thread, "n": n})


def task_id(slot: int) -> str:
    """Return the id of the task of a slot."""
    return f"slot-{slot}"

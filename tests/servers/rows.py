"""Rows that are written without a request: by tasks and child processes, which note in a file what was acknowledged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def directory() -> Path:
    """Where notes are kept, and the file ``stop`` that ends the writing."""
    return Path(os.environ["APP_NOTES"])


def is_stopped() -> bool:
    """Whether no more rows are to be written."""
    return (directory() / "stop").exists()


def write(number: int, slot: int, first: int, count: int) -> None:
    """Write rows *first* to *first* + *count* - 1 of a slot with the application's pool, until stopped."""
    from tests.servers.app import insert, pool

    write_with(lambda *key: pool.run(insert, *key), number, slot, first, count)


def write_with(insert: Callable[[int, int, int], None], number: int, slot: int, first: int, count: int) -> None:
    """The same with *insert*, which writes one row."""
    with (directory() / f"{number}.{slot}").open("a", buffering=1, encoding="utf-8") as notes:
        for n in range(first, first + count):
            if is_stopped():
                return
            try:
                insert(number, slot, n)
            except Exception as error:
                notes.write(f"! {n} {error!r}\n")
            else:
                notes.write(f"{n} {time.monotonic()} {os.getpid()}\n")
            time.sleep(0.02)

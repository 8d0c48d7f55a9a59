"""Rows written without a request, by tasks and child processes, which note acknowledged rows in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: Tasks of slots below this number do not wait for the load.
FREE_SLOTS: Final = 4


def directory() -> Path:
    """Return the directory of the notes and of the file ``stop``, which ends the writing."""
    return Path(os.environ["APP_NOTES"])


def is_stopped() -> bool:
    """Return whether the writing has been stopped."""
    return (directory() / "stop").exists()


def wait_begun(slot: int) -> None:
    """Wait until the load has begun; return at once for one of the first slots, which show that the worker serves.

    Tasks are sent before the worker starts. Without this wait, all tasks would be done before the switchover on a busy
    machine, where servers start slowly.
    """
    while slot >= FREE_SLOTS and not is_stopped() and not (directory() / "begin").exists():
        time.sleep(0.02)


def write(number: int, slot: int, first: int, count: int) -> None:
    """Write rows *first* to *first* + *count* - 1 of a slot with the application's pool, until stopped."""
    from tests.servers.app import insert, pool

    write_with(lambda *key: pool.run(insert, *key), number, slot, first, count)


def write_with(insert: Callable[[int, int, int], None], number: int, slot: int, first: int, count: int) -> None:
    """Like write(), with *insert* to write one row."""
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

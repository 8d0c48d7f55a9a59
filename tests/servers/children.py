"""``python -m tests.servers.children METHOD NUMBER``: child processes that share a module's pool with their parent."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import warnings
from typing import Any

from tests.servers import rows

PROCESSES, THREADS = 2, 2


def work(number: int, first_slot: int) -> None:
    """Run in a child: two threads write until stopped."""
    crew = [threading.Thread(target=rows.write, args=(number, first_slot + n, 1, 100_000)) for n in range(THREADS)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


def main(method: str, number: int) -> None:
    """Run as the parent, which uses the pool before it starts its children, and again afterwards."""
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    rows.write(number, 9998, 1, 1)
    context: Any = multiprocessing.get_context(method)
    children = [context.Process(target=work, args=(number, n * THREADS)) for n in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * PROCESSES
    (rows.directory() / "stop").unlink()
    rows.write(number, 9999, 1, 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

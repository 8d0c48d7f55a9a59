"""A rehearsed application: a row per request, on either engine. As a program, it exits by itself after a switchover."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import bgpool

pool = bgpool.get_pool(os.environ["DATABASE_URL"], bg_id="shop", bg_interval_increased_ms=500, min_size=1, max_size=2)


def insert(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (item) VALUES ('tea')")


def wsgi(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    pool.run(insert)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"thanks"]


def main(status: int) -> int:
    """Write until a switchover is over."""
    while bgpool.status("shop").last_switchover is None:
        pool.run(insert)
        time.sleep(0.02)
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

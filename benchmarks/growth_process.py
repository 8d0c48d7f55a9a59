"""A worker with an idle pool in each of many deployments, in its own process, with any build of bgpool."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

import bgpool

__all__ = ["Orders"]


class Orders(NamedTuple):
    """The orders of the worker. All its deployments have the same servers."""

    dsn: str
    resolver: str
    run_dir: str
    bg_ids: tuple[str, ...]
    timer_ms: int = 180_000

    def as_line(self) -> str:
        """Return the orders as a line for the worker's standard input."""
        return json.dumps(self) + "\n"


def main() -> None:
    """Make the pools, report it, and wait for another line or the end of standard input."""
    orders = Orders(*json.loads(sys.stdin.readline()))
    pools = [
        bgpool.get_pool(
            orders.dsn,
            bg_id=bg_id,
            bg_resolver=orders.resolver,
            bg_run_dir=orders.run_dir,
            bg_interval_baseline_ms=1000,
            bg_switchover_timeout_ms=orders.timer_ms,
            min_size=1,
        )
        for bg_id in orders.bg_ids
    ]
    for pool in pools:
        with pool.connection():
            pass
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()

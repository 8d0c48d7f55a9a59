"""What a checkout costs in quiet times, over the bare pool underneath: a pair in one run.

Both pools talk to the same server, take a connection out and put it back, and send nothing. Rounds alternate, so
that a change of the machine's speed meets both; the medians and their difference are what to read.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import psycopg_pool

import bgpool
from benchmarks.rounds import compare, show
from bgpool.lab import Director, Pair


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as run_dir, Pair() as pair:
        Director(pair).create_deployment()
        bare = psycopg_pool.ConnectionPool(pair.direct_dsn(pair.blue), min_size=1, open=True)
        ours = bgpool.get_pool(pair.dsn, bg_resolver=pair.resolver, bg_run_dir=Path(run_dir) / "run", min_size=1)

        def with_ours() -> None:
            with ours.connection():
                pass

        def with_bare() -> None:
            with bare.connection():
                pass

        def get_put_ours() -> None:
            ours.putconn(ours.getconn())

        def get_put_bare() -> None:
            bare.putconn(bare.getconn())

        pairs: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "with pool.connection()": (with_ours, with_bare),
            "getconn + putconn": (get_put_ours, get_put_bare),
        }
        # Until the deployment is inventoried every publish shuts the quick way for a moment.
        began = time.monotonic()
        while ours.stats().phase is not bgpool.Phase.CREATED and time.monotonic() - began < 10:
            with_ours()
            time.sleep(0.05)
        time.sleep(1.5)
        figures = {
            name: compare(theirs, mine, "psycopg_pool", rounds=arguments.rounds, calls=arguments.calls)
            for name, (mine, theirs) in pairs.items()
        }
        phase = ours.stats().phase
        ours.close()
        bare.close()
    result = {
        "rounds": arguments.rounds,
        "calls_per_round": arguments.calls,
        "phase": phase.name if phase is not None else None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "psycopg": psycopg.__version__,
        "psycopg_pool": psycopg_pool.__version__,
        "figures": figures,
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"phase {result['phase']}, {arguments.rounds} rounds of {arguments.calls} calls each, medians in µs")
    show(figures, "psycopg_pool")


if __name__ == "__main__":
    main()

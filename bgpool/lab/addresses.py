"""Loopback addresses for a pair's servers, and one port that is free on all of them."""

from __future__ import annotations

import itertools
import random
import socket

from bgpool.lab.errors import LabError

__all__ = ["free_addresses"]

PORTS = range(20000, 32000)
"""Below the kernel's ephemeral ports (32768 and up): no outgoing connection can take a chosen port away."""

ADDRESS_TRIES = 50


def free_addresses(count: int) -> tuple[list[str], int]:
    """Return *count* loopback addresses of one block, and a port that is free, like the next one, on all of them.

    Raises:
        LabError: None was found; on systems other than Linux, loopback has only 127.0.0.1 by default.
    """
    source = random.SystemRandom()
    reason: OSError | None = None
    for _ in range(ADDRESS_TRIES):
        block, port = source.randrange(1, 255), source.choice(PORTS)
        addresses = [f"127.0.{block}.{n}" for n in range(1, count + 1)]
        try:
            for place in itertools.product(addresses, (port, port + 1)):
                with socket.socket() as probe:
                    probe.bind(place)
        except OSError as error:
            reason = error
            continue
        return addresses, port
    raise LabError(f"no free port on {count} loopback addresses (127.0.x.1 and up): {reason}")

"""The capacity of a server for all pools, as a pure function of its limits and the required connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bgpool.doctor.findings import Verdict, failed, ok, warning

__all__ = ["MONITORING", "Room", "judge_room", "wanted"]

#: The monitor has one connection to each role, and after a switchover both may lead to the same server.
MONITORING: Final = 2


@dataclass(frozen=True, slots=True)
class Room:
    """A server's capacity for clients.

    Attributes:
        most: max_connections.
        reserved: The connections of these that are reserved for administrators.
        of_user: The limit of the user or the database; None for no limit.
        in_use: The current connections of all users.
    """

    most: int
    reserved: int
    of_user: int | None
    in_use: int

    @property
    def available(self) -> int:
        """The maximum for applications."""
        free = max(0, self.most - self.reserved)
        return free if self.of_user is None else min(free, self.of_user)


def wanted(workers: int, max_size: int) -> int:
    """Return the maximum that *workers* processes need, each with a pool of *max_size*, and their monitor."""
    return workers * max_size + MONITORING


def judge_room(room: Room, *, workers: int, max_size: int, ours: int) -> Verdict:
    """Judge whether *workers* pools of *max_size* fit.

    Args:
        room: The server's capacity.
        workers: The number of processes, on all hosts together.
        max_size: The size of each one's pool.
        ours: The current connections of this host's pools.
    """
    want, others = wanted(workers, max_size), max(0, room.in_use - ours)
    processes = "1 process" if workers == 1 else f"{workers} processes"
    limit = "" if room.of_user is None else f", {room.of_user} for this user or database"
    text = (
        f"{processes} x max_size {max_size} + {MONITORING} for the monitor = {want} of {room.available} "
        f"(max_connections {room.most}, {room.reserved} of them reserved{limit}); {room.in_use} in use now"
    )
    fits = max(0, room.available - MONITORING) // workers
    if want > room.available:
        return failed(text, f"{_at_most(fits, processes)}, or a larger max_connections")
    if want + others > room.available:
        left = max(0, room.available - others - MONITORING) // workers
        return warning(
            f"{text}, {others} of them not by pools on this host",
            f"together more than there are: {_at_most(left, processes)}, or find out who has the others",
        )
    return ok(text)


def _at_most(max_size: int, processes: str) -> str:
    return f"max_size={max_size} at most with {processes}" if max_size else f"fewer than {processes}"

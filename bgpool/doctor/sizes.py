"""Whether a server has room for everybody's pools, as a pure function of what it allows and what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bgpool.doctor.findings import Verdict, failed, ok, warning

__all__ = ["MONITORING", "Room", "judge_room", "wanted"]

#: The monitor asks each role over one connection, and after a switchover both may lead to the same server.
MONITORING: Final = 2


@dataclass(frozen=True, slots=True)
class Room:
    """What a server has for clients.

    Attributes:
        most: max_connections.
        reserved: Those of them that are kept for administrators.
        of_user: What the user, or the database, is limited to; None for no such limit.
        in_use: Connections now, everybody's.
    """

    most: int
    reserved: int
    of_user: int | None
    in_use: int

    @property
    def available(self) -> int:
        """What applications can have at most."""
        free = max(0, self.most - self.reserved)
        return free if self.of_user is None else min(free, self.of_user)


def wanted(workers: int, max_size: int) -> int:
    """What *workers* processes want at most, each with a pool of *max_size*, and their monitor."""
    return workers * max_size + MONITORING


def judge_room(room: Room, *, workers: int, max_size: int, ours: int) -> Verdict:
    """Whether *workers* pools of *max_size* fit.

    Args:
        room: What the server has.
        workers: Processes, on all hosts together.
        max_size: Of each one's pool.
        ours: Connections that this host's pools have now, of those in use.
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

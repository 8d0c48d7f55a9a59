"""Phases, roles, and the mapping from the metadata's status and role strings."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final

__all__ = ["PHASE_OF_STATUS", "SWITCHING", "Phase", "Role"]


class Phase(IntEnum):
    """The phases of a Blue/Green Deployment, in the order of a switchover.

    Source: the names are those of the AWS wrappers; docs/phases.md has a section for each.
    """

    NOT_CREATED = 0
    CREATED = 1
    PREPARATION = 2
    IN_PROGRESS = 3
    POST = 4
    COMPLETED = 5


class Role(Enum):
    """The side of a deployment that a host belongs to. The value is the metadata's role string."""

    SOURCE = "BLUE_GREEN_DEPLOYMENT_SOURCE"
    TARGET = "BLUE_GREEN_DEPLOYMENT_TARGET"

    @property
    def colour(self) -> str:
        """``blue`` for the source, ``green`` for the target."""
        return "blue" if self is Role.SOURCE else "green"


#: The metadata's status strings. An unknown status is logged once and changes nothing.
PHASE_OF_STATUS: Final[dict[str, Phase]] = {
    "AVAILABLE": Phase.CREATED,
    "SWITCHOVER_INITIATED": Phase.PREPARATION,
    "SWITCHOVER_IN_PROGRESS": Phase.IN_PROGRESS,
    "SWITCHOVER_IN_POST_PROCESSING": Phase.POST,
    "SWITCHOVER_COMPLETED": Phase.COMPLETED,
}

#: The phases of a switchover in progress: the timer runs, and the poll interval is the shortest.
SWITCHING: Final = frozenset({Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST})

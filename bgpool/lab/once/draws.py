"""The events of one switchover or failover, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from bgpool.core.engine import Engine

__all__ = ["Draw", "Failure", "Held", "Story", "draw"]

Story = Literal["healthy", "frozen metadata", "rollback", "rollback under way", "black hole"]
"""The kind of switchover. ``rollback under way``: blue cuts no client but the pools do, and blue continues with their
COMMITs while the switchover is rolled back and the units are run again there."""

Failure = Literal["killed", "cut off", "restarted", "network lost", "asynchronous"]
"""The kind of a primary's failure without a deployment: killed (SIGKILL) or cut off, and its replica promoted; killed
and started again; or clients lose the network, and it continues with their COMMITs. ``asynchronous``: killed while
replication was behind and no COMMIT waited for it: rows are lost whatever a client does."""

Held = Literal["", "standby", "trigger", "lock", "delay", "unanswered", "frozen replica"]
"""The reason for which COMMITs wait when they are cut; see `bgpool.lab.once.holds`."""

_HOLDS: Final[dict[Engine, tuple[Held, ...]]] = {
    Engine.POSTGRESQL: ("standby", "trigger"),
    Engine.MYSQL: ("delay", "lock"),
}
#: The holds that involve a replica.
_REPLICATED: Final[dict[Engine, tuple[Held, ...]]] = {
    Engine.POSTGRESQL: ("standby", "frozen replica", "trigger"),
    Engine.MYSQL: ("unanswered", "frozen replica", "lock", "delay"),
}


@dataclass(frozen=True, slots=True)
class Draw:
    """One switchover or failover. Times are in seconds from SWITCHOVER_IN_PROGRESS, or from the failure.

    Attributes:
        story: The course of events.
        hold: The kind of hold that keeps COMMITs open when they are cut; empty for none.
        held_s: The beginning of the hold.
        longer_s: The time for which the hold continues after the rollback or failure, in stories in which blue
            continues.
        worker_kills: The times at which the worker that runs tasks gets SIGKILL and another one is started.
        monitor_kill: The time at which the monitor gets SIGKILL; None for never.
    """

    seed: int
    story: Story | Failure
    hold: Held
    held_s: float = -0.1
    longer_s: float = 0.3
    worker_kills: tuple[float, ...] = ()
    monitor_kill: float | None = None

    @property
    def is_failover(self) -> bool:
        """True if there is no deployment."""
        return self.story in get_args(Failure)


def draw(seed: int, engine: Engine, *, failover: bool = False) -> Draw:
    """Return the events of *seed* on the servers of *engine*."""
    dice = random.Random(seed)
    story: Story | Failure
    holds: Sequence[Held]
    if failover:
        stories: tuple[Failure, ...] = get_args(Failure)
        story = dice.choices(stories, (8, 4, 3, 4, 1))[0]
        holds = _HOLDS[engine] if story == "network lost" else _REPLICATED[engine]
        if story == "asynchronous":
            holds = ("frozen replica",)
    else:
        kinds: tuple[Story, ...] = get_args(Story)
        story = dice.choices(kinds, (6, 5, 3, 3, 3))[0]
        holds = _HOLDS[engine]
    # One in ten without a hold: a COMMIT is then cut only by chance.
    hold: Held = dice.choice(holds) if dice.random() < 0.9 or story == "asynchronous" else ""
    return Draw(
        seed,
        story,
        hold,
        held_s=dice.uniform(-0.25, 0.0),
        longer_s=dice.uniform(0.1, 0.6),
        worker_kills=tuple(sorted(dice.uniform(-0.3, 1.5) for _ in range(dice.choice((1, 1, 2))))),
        monitor_kill=dice.uniform(0.1, 1.2) if dice.random() < 0.4 else None,
    )

"""The plan of a rehearsal, and its switchovers."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bgpool.core.engine import Engine
from bgpool.lab.pair import Pair
from bgpool.lab.rehearsal.application import MARK
from bgpool.lab.scenarios.evidence import metadata_frozen
from bgpool.lab.scenarios.hosts import black_hole_blue
from bgpool.lab.scenarios.scenario import Stage
from bgpool.lab.server import Flavour, Upgrade

__all__ = [
    "FLAVOURS",
    "KEPT",
    "SCENARIOS",
    "UPGRADES",
    "NotRehearsedError",
    "Plan",
    "Play",
    "UnusablePlanError",
    "check",
    "environment",
]

FLAVOURS: Final[Mapping[str, Flavour]] = {"rds": "rds", "aurora": "aurora"}
UPGRADES: Final[Mapping[str, Upgrade]] = {"minor": "minor", "major": "major"}

KEPT: Final = ".json"
"""The ending of files that are left in a run directory of the caller's: records of the switchover."""


OWN: Final = ("BGPOOL_RESOLVER", "BGPOOL_RUN_DIR", MARK)
"""The environment variables that a rehearsal itself sets."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


class UnusablePlanError(ValueError):
    """The plan cannot be carried out, whatever the application does; the text contains the reason."""


class NotRehearsedError(Exception):
    """The application never reached a switchover; the text names the missing condition."""


@dataclass(frozen=True)
class Play:
    """A switchover.

    Attributes:
        story: The course of events, in one line.
        stage: A callable that alters the director's steps.
        rolled_back: True if it is rolled back in IN_PROGRESS.
    """

    story: str
    stage: Callable[[Stage], None] | None = None
    rolled_back: bool = False


SCENARIOS: Final[Mapping[str, Play]] = {
    "healthy": Play("metadata, DNS and green itself all tell"),
    "rollback": Play("rolled back after connections were cut: the application continues on blue", rolled_back=True),
    "frozen": Play("RDS: blue's metadata stay at IN_PROGRESS, green's are deleted", metadata_frozen),
    "black-hole": Play("blue and its metadata stop answering: no answer, no RST", black_hole_blue),
}


@dataclass(frozen=True)
class Plan:
    """The plan of a rehearsal.

    Attributes:
        command: The application, with its arguments.
        programs: The directory of the servers' programs, the same as for `Pair`.
        upgrade: One of UPGRADES; the same as for `Pair`.
        scenario: One of SCENARIOS.
        scale: A factor for all times of SCHEDULE.
        variables: The environment variables that get the DSN: NAME, or NAME=SCHEME for another scheme than the pair's,
            such as postgresql+bgpool.
        sql: A file that is executed on blue first.
        url: The URL to GET during the rehearsal; None for no load.
        every_s: The shortest interval between two requests of a client, in seconds.
        warm_up_s, cool_down_s: The time for which the application runs before and after the switchover.
        run_dir: Its run directory, in which the records stay; None for one that is removed with the servers.
    """

    command: tuple[str, ...]
    engine: Engine = Engine.POSTGRESQL
    programs: str | None = None
    upgrade: str = "minor"
    flavour: str = "rds"
    scenario: str = "healthy"
    scale: float = 1.0
    variables: tuple[str, ...] = ("DATABASE_URL",)
    sql: Path | None = None
    url: str | None = None
    every_s: float = 0.05
    warm_up_s: float = 2.0
    cool_down_s: float = 3.0
    run_dir: Path | None = None


def check(plan: Plan) -> None:
    """Check everything that can be checked without servers.

    Raises:
        UnusablePlanError: The plan cannot be carried out.
    """
    if plan.scenario not in SCENARIOS:
        raise UnusablePlanError(f"no scenario {plan.scenario!r}: there are {', '.join(SCENARIOS)}")
    if plan.flavour not in FLAVOURS:
        raise UnusablePlanError(f"no flavour {plan.flavour!r}: there are {', '.join(FLAVOURS)}")
    if plan.upgrade not in UPGRADES:
        raise UnusablePlanError(f"no pair {plan.upgrade!r}: there are {', '.join(UPGRADES)}")
    try:
        Pair(FLAVOURS[plan.flavour], engine=plan.engine, upgrade=UPGRADES[plan.upgrade])
    except ValueError as error:
        raise UnusablePlanError(str(error)) from None
    for name, scheme in _variables(plan):
        if not _NAME.fullmatch(name) or name in OWN:
            raise UnusablePlanError(
                f"--env {name!r}: a name of letters, digits, _, . and - is allowed, but none of {', '.join(OWN)}"
            )
        if scheme is not None and not _SCHEME.fullmatch(scheme):
            raise UnusablePlanError(
                f"--env {name}={scheme}: a URL's scheme is allowed after =, such as {plan.engine.value}+bgpool"
            )
    if not plan.command or shutil.which(plan.command[0]) is None:
        raise UnusablePlanError(f"no such program: {plan.command[0] if plan.command else '(nothing)'}")
    if plan.sql is not None and not os.access(plan.sql, os.R_OK):
        raise UnusablePlanError(f"{plan.sql} cannot be read")
    if plan.run_dir is not None and plan.run_dir.is_dir():
        others = sorted(path.name for path in plan.run_dir.iterdir() if not path.name.endswith(KEPT))
        if others:
            raise UnusablePlanError(f"{plan.run_dir} is in use, or has other files: {others[0]}")


def environment(plan: Plan, dsn: str) -> dict[str, str]:
    """Return the variables of *plan*, each with *dsn* and the scheme that the plan has for it."""
    rest = dsn[dsn.index("://") :]
    return {name: dsn if scheme is None else scheme + rest for name, scheme in _variables(plan)}


def _variables(plan: Plan) -> list[tuple[str, str | None]]:
    split = (variable.partition("=") for variable in plan.variables)
    return [(name, scheme if sign else None) for name, sign, scheme in split]

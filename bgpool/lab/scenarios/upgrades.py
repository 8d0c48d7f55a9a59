"""Scenarios of COMMITs during the cut, and of steps of a major upgrade that are incomplete or in an unusual order."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import faults
from bgpool.lab.scenarios.evidence import metadata_frozen
from bgpool.lab.scenarios.scenario import FAST, Scenario
from bgpool.lab.trial import Trial

__all__ = ["SCENARIOS"]

IN_FLIGHT_S: Final = 0.4
"""The time before the cut at which COMMITs begin to hang."""

SLOW_S: Final = 1.0
"""The duration of a COMMIT that is cut before it has committed."""

#: Long enough in PREPARATION for every pool to have seen it: from then on, the outcome of a unit can be found later.
PREPARED: Final = replace(FAST, initiated_s=-1.5)

EARLY_S: Final = FAST.green_promoted_s - 0.5


def _unanswered(trial: Trial) -> None:
    """Make COMMITs wait for a standby that does not exist; the cut ends the wait, and they have committed."""
    blue, begin_s = trial.pair.blue, FAST.connections_dropped_s - IN_FLIGHT_S
    trial.director.add("commits hang", begin_s, lambda: faults.delay_answers(blue))
    trial.director.add("commits go on", FAST.caught_up_s, lambda: faults.answer_at_once(blue))


def _undone(trial: Trial) -> None:
    """Make COMMITs slow; they have not committed when they are cut."""
    faults.prepare_slow_commits(trial.pair, SLOW_S)
    blue, begin_s = trial.pair.blue, FAST.connections_dropped_s - IN_FLIGHT_S
    trial.director.add("commits slow", begin_s, lambda: faults.commit_slowly(blue))
    trial.director.add("commits fast", FAST.caught_up_s, lambda: faults.commit_at_once(blue))


def _post_early(trial: Trial) -> None:
    """Let green accept clients and the metadata report POST before green accepts writes."""
    trial.director.change("green_open", at_s=EARLY_S)
    trial.director.change("post", at_s=EARLY_S)


def _sequences_late(trial: Trial) -> None:
    """Let green accept writes before its sequences are set."""
    trial.director.change("sequences_set", at_s=FAST.green_promoted_s + 0.5)


def _read_only_by_role(trial: Trial) -> None:
    """Make green read-only for the applications' roles but not for the monitor's; blue's metadata stop changing."""
    metadata_frozen(trial)
    director = trial.director
    for server in trial.pair.logical:
        server.set_read_only_by_role(True)

    def promote() -> None:
        director.promote_green()
        for server in trial.pair.logical:
            server.set_read_only_by_role(False)

    director.change("green_promoted", action=promote)


SCENARIOS: Final = (
    Scenario(
        "commits-unanswered",
        "COMMITs hang on a standby from 0.4 s before the cut: they have committed, but were not answered",
        trial={"schedule": PREPARED},
        stage=_unanswered,
        engines=(Engine.POSTGRESQL,),
    ),
    Scenario(
        "commits-undone",
        "COMMITs take a second from 0.4 s before the cut: they are cut, and have not committed",
        trial={"schedule": PREPARED},
        stage=_undone,
        engines=(Engine.POSTGRESQL,),
    ),
    Scenario(
        "post-early",
        "the metadata report POST half a second before green takes writes: plain blocks stay held",
        evidence_event="green_promoted",
        trial={"job": "write"},
        stage=_post_early,
        engines=(Engine.POSTGRESQL,),
    ),
    Scenario(
        "sequences-late",
        "green takes writes half a second before its sequences are set",
        excused=("UniqueViolation",),
        stage=_sequences_late,
        engines=(Engine.POSTGRESQL,),
        upgrades=("major",),
    ),
    Scenario(
        "read-only-by-role",
        "green is read-only only for the application's role, not for the monitor's, and the metadata stay unchanged",
        evidence=("green promoted",),
        last_phases=(Phase.COMPLETED, Phase.NOT_CREATED),
        trial={"own_monitor": True},
        stage=_read_only_by_role,
        engines=(Engine.POSTGRESQL,),
        upgrades=("major",),
    ),
)

"""Scenarios in which the monitor has a single source of evidence, and with the metadata in every observed state."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import faults, metadata
from bgpool.lab.pair import MONITOR_ROLE, ROLE
from bgpool.lab.scenarios.scenario import FAST, Scenario, Stage
from bgpool.lab.trial import Trial

__all__ = ["SCENARIOS", "metadata_frozen", "silence_metadata"]

PROMOTED: Final = ("green promoted",)
#: Once blue's name leads to green, missing metadata there mean that the deployment is gone.
OVER: Final = (Phase.COMPLETED, Phase.NOT_CREATED)


def silence_metadata(stage: Stage) -> None:
    """Keep the metadata permanently in their state at IN_PROGRESS."""
    stage.director.drop("post", "names_changed", "completed")


def _metadata_alone(trial: Trial) -> None:
    # Blue still reports the status. Green, which would show that it was promoted, rejects the monitor.
    trial.director.add("locked", -0.1, lambda: faults.lock_out_monitor(trial.pair, "green"))


def _dns_alone(trial: Trial) -> None:
    silence_metadata(trial)
    trial.director.add("locked", -0.1, lambda: faults.lock_out_monitor(trial.pair, "green"))


def metadata_frozen(stage: Stage) -> None:
    """Keep blue's rows at IN_PROGRESS and delete green's."""
    silence_metadata(stage)
    stage.director.add("frozen", 0.3, lambda: faults.freeze_metadata(stage.director))


def _deleted(trial: Trial) -> None:
    silence_metadata(trial)
    trial.director.add("deleted", 0.3, lambda: faults.delete_metadata(trial.director))


def _absent(trial: Trial) -> None:
    silence_metadata(trial)
    # On PostgreSQL through replication, so before green has caught up: both sides lose it.
    trial.director.add("absent", 0.3, lambda: faults.drop_metadata(trial.pair))


def _error(trial: Trial) -> None:
    silence_metadata(trial)

    trial.director.add("broken", 0.1, lambda: faults.break_metadata(trial.director))


def _late(trial: Trial) -> None:
    time.sleep(2.0)
    trial.switch_over()


def _unknown_words(trial: Trial) -> None:
    director = trial.director
    director.add("odd status", -0.2, lambda: director.publish("SWITCHOVER_BEING_CONSIDERED"))
    director.add("odd version", 0.1, lambda: faults.publish_version(director, metadata.IN_PROGRESS, "2.0"))
    director.add("odd status again", 0.6, lambda: director.publish("SWITCHOVER_ALMOST_DONE"))


def _locked_out_of_blue(trial: Trial) -> None:
    trial.director.add("locked", -0.35, lambda: faults.lock_out_monitor(trial.pair, "blue"))


def _grant_lost(trial: Trial) -> None:
    silence_metadata(trial)

    def revoke() -> None:
        for server in trial.pair.servers:
            for role in (ROLE, MONITOR_ROLE):
                server.revoke_metadata(role)

    trial.director.add("revoked", 0.1, revoke)


def _emptied_and_dropped(trial: Trial) -> None:
    trial.director.add("dropped", 3.2, lambda: faults.drop_metadata(trial.pair))


SCENARIOS: Final = (
    Scenario(
        "evidence-metadata-alone",
        "only blue's metadata report the release: the monitor is locked out of green",
        evidence=("metadata",),
        evidence_event="old_blue_open",
        trial={"own_monitor": True},
        stage=_metadata_alone,
    ),
    Scenario(
        "evidence-dns-alone",
        "the metadata stay at IN_PROGRESS and the monitor is locked out of green: only DNS shows the release",
        evidence=("blue DNS updated",),
        evidence_event="blue_dns_moved",
        trial={"own_monitor": True},
        stage=_dns_alone,
    ),
    Scenario(
        "evidence-promotion-alone",
        "the metadata stay at IN_PROGRESS on both sides and DNS changes late: only green itself shows the release",
        evidence=PROMOTED,
        trial={"schedule": replace(FAST, blue_dns_moved_s=3.5, green_dns_gone_s=3.7)},
        stage=silence_metadata,
    ),
    Scenario(
        "metadata-frozen",
        "RDS: blue's rows stay at IN_PROGRESS, green's are deleted",
        evidence=PROMOTED,
        last_phases=OVER,
        stage=metadata_frozen,
    ),
    Scenario(
        "metadata-deleted",
        "the rows of both sides are deleted in IN_PROGRESS",
        evidence=PROMOTED,
        last_phases=OVER,
        stage=_deleted,
    ),
    Scenario(
        "metadata-absent",
        "the function or table with the status is dropped in IN_PROGRESS",
        evidence=PROMOTED,
        last_phases=OVER,
        stage=_absent,
    ),
    Scenario(
        "metadata-error",
        "every query for the status fails from IN_PROGRESS on",
        evidence=PROMOTED,
        stage=_error,
    ),
    Scenario(
        "metadata-late",
        "the deployment appears in the metadata long after the workers started",
        play=_late,
    ),
    Scenario(
        "metadata-unknown-words",
        "the metadata have unknown statuses and an unknown version in between",
        stage=_unknown_words,
    ),
    Scenario(
        "monitor-locked-out-of-blue",
        "blue rejects the monitor once the switchover is prepared: green shows the release",
        trial={"own_monitor": True},
        stage=_locked_out_of_blue,
    ),
    Scenario(
        "grant-lost",
        "SELECT on mysql.rds_topology is revoked on every server in IN_PROGRESS",
        evidence=PROMOTED,
        last_phases=OVER,
        stage=_grant_lost,
        engines=(Engine.MYSQL,),
    ),
    Scenario(
        "table-emptied-and-dropped",
        "mysql.rds_topology loses its SOURCE row at COMPLETED, is emptied later, and is dropped in the end",
        last_phases=(Phase.NOT_CREATED,),
        trial={"flavour": "aurora", "schedule": replace(FAST, emptied_s=2.7), "settle_s": 1.5},
        stage=_emptied_and_dropped,
        engines=(Engine.MYSQL,),
    ),
)

"""Scenarios of switchovers that are rolled back, repeated or run in parallel, and of the time after them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Final

from bgpool.core.phase import Phase
from bgpool.lab import ledger, metadata
from bgpool.lab.director import Director
from bgpool.lab.errors import LabError
from bgpool.lab.report import Report
from bgpool.lab.scenarios.scenario import FAST, Scenario
from bgpool.lab.trial import Trial
from bgpool.lab.waiting import wait_until

__all__ = ["SCENARIOS"]


def _from_preparation(trial: Trial) -> None:
    trial.director.create_deployment()
    trial.wait_ready()
    trial.direct(lambda: trial.director.rollback_from("PREPARATION"))


def _from_in_progress(trial: Trial) -> None:
    trial.director.create_deployment()
    trial.wait_ready()
    trial.direct(lambda: trial.director.rollback_from("IN_PROGRESS"))


def _second_after_rollback(trial: Trial) -> None:
    _from_in_progress(trial)
    wait_until(lambda: _phase(trial) is Phase.CREATED, timeout_s=5.0, what="the rollback is seen")
    trial.direct(trial.director.run)


def _two_in_one_life(trial: Trial) -> None:
    trial.switch_over()
    _wait_completed(trial)
    # The rows of old blue, before they are replaced: no client may have written there after the cut.
    split = ledger.judge(trial.pair, ()).split
    if split:
        raise LabError(f"{split} rows on old blue that green does not have")
    trial.pair.renew()
    wait_until(lambda: _phase(trial) is Phase.NOT_CREATED, timeout_s=5.0, what="the first deployment is forgotten")
    trial.director = Director(trial.pair, FAST)
    trial.switch_over()


def _two_at_once(trial: Trial) -> None:
    """Roll back another deployment, with workers of its own in the same run directory, at the same time."""
    options = {**trial.pool_options, "bg_id": "other", "bg_run_dir": trial.run_dir}
    other = Trial(
        engine=trial.engine,
        pair_options=trial.pair_options,
        workers=1,
        job="write unit",
        schedule=FAST,
        pool_options=options,
        settle_s=0.5,
    )
    with other:
        done = threading.Thread(
            target=lambda: reports.append(other.run(_from_in_progress, rolled_back=True)), name="bgpool-other-trial"
        )
        reports: list[Report] = []
        done.start()
        trial.switch_over()
        done.join(60.0)
    if not reports:
        raise LabError("the other deployment's trial did not end")
    (report,) = reports
    if not report.verdict.clean or report.errors or report.evidence:
        raise LabError(f"the other deployment's trial failed: {report}")


def _deleted_afterwards(trial: Trial) -> None:
    trial.switch_over()
    _wait_completed(trial)
    trial.director.empty()
    time.sleep(0.3)
    for server in trial.pair.servers:
        metadata.withdraw(server)
    wait_until(lambda: _phase(trial) is Phase.NOT_CREATED, timeout_s=5.0, what="the deployment is forgotten")
    time.sleep(1.0)


def _left_on(trial: Trial) -> None:
    trial.switch_over()
    _wait_completed(trial)
    # Old blue is deleted, the usual last step of an upgrade, and bgpool stays in use.
    trial.pair.blue.set_read_only(True)
    trial.pair.blue.refuse_clients()
    trial.pair.blue.cut_clients()
    time.sleep(1.5)


def _phase(trial: Trial) -> Phase | None:
    snapshot = trial.snapshot()
    return snapshot.phase if snapshot is not None else None


def _wait_completed(trial: Trial) -> None:
    wait_until(lambda: _phase(trial) is Phase.COMPLETED, timeout_s=5.0, what="the switchover is completed")


SCENARIOS: Final = (
    Scenario(
        "rollback-from-preparation",
        "rolled back before IN_PROGRESS: no caller is held",
        evidence=(),
        last_phases=(Phase.CREATED,),
        rolled_back=True,
        # Long enough in PREPARATION for a monitor that still polls at its slower interval.
        trial={"schedule": replace(FAST, initiated_s=-3.0)},
        play=_from_preparation,
    ),
    Scenario(
        "rollback-from-in-progress",
        "rolled back after connections were cut: the application continues on blue",
        evidence=(),
        last_phases=(Phase.CREATED,),
        rolled_back=True,
        play=_from_in_progress,
    ),
    Scenario(
        "second-after-rollback",
        "rolled back in IN_PROGRESS, tried again, and completed",
        play=_second_after_rollback,
    ),
    Scenario(
        "two-in-one-life",
        "two switchovers in sequence with the same processes",
        play=_two_in_one_life,
    ),
    Scenario(
        "two-deployments-at-once",
        "two bg_ids in one run directory: one is switched over, the other is rolled back at the same time",
        play=_two_at_once,
    ),
    Scenario(
        "deleted-afterwards",
        "the deployment is deleted after the switchover: the table is emptied, then dropped",
        last_phases=(Phase.NOT_CREATED,),
        play=_deleted_afterwards,
    ),
    Scenario(
        "left-on",
        "bgpool stays in use after the switchover, and old blue is deleted",
        play=_left_on,
    ),
)

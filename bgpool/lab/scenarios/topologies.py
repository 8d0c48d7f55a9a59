"""Scenarios with deployments of every shape, pools on every kind of endpoint, and a host outside of the deployment."""

from __future__ import annotations

from typing import Final

from bgpool.core.engine import Engine
from bgpool.lab import ledger
from bgpool.lab.pair import Pair
from bgpool.lab.scenarios.scenario import Scenario
from bgpool.lab.trial import Trial

__all__ = ["SCENARIOS"]

NOT_HELD_S: Final = 0.5
"""Half of the time for which a held caller waits."""


def _read_everywhere(trial: Trial) -> None:
    """Add one reading worker on every other endpoint of blue."""
    names = trial.pair.names.blue
    for endpoint in names.all:
        if endpoint != names.primary:
            pool = trial.make_pool(trial.pair.dsn_of(endpoint))
            trial.add_worker(pool=pool, job="read unit", threads=1, endpoint=endpoint)


def _outsider(trial: Trial) -> None:
    """Add a worker on a server that belongs to no deployment, in a pool of the same bg_id."""
    alike = {name: value for name, value in trial.pair_options.items() if name in ("programs", "upgrade")}
    other = trial.keep(Pair(engine=trial.engine, **alike))
    ledger.create(other)
    pool = trial.make_pool(other.direct_dsn(other.blue))
    trial.add_worker(pool=pool, job="read unit", threads=1, endpoint=other.blue.address)


def _was_never_held(trial: Trial) -> list[str]:
    longest_s = trial.crew[-1].longest_call_s
    return [] if longest_s < NOT_HELD_S else [f"a host that takes no part was held for {longest_s:.3f} s"]


def _target_session_attrs(trial: Trial) -> None:
    """Add a pool that makes libpq require a writable server."""
    pool = trial.make_pool(f"{trial.pair.dsn}&target_session_attrs=read-write")
    trial.add_worker(pool=pool)


SCENARIOS: Final = (
    Scenario("rds", "an RDS instance; metadata, DNS and green itself all show the release"),
    Scenario(
        "rds-replicas",
        "an RDS instance with two read replicas, and pools on each",
        trial={"pair_options": {"readers": 2}, "workers": 2},
        stage=_read_everywhere,
        upgrades=("minor",),
    ),
    Scenario(
        "aurora",
        "an Aurora cluster of a writer and two readers; pools on writer, reader, custom and instance endpoints",
        trial={"flavour": "aurora", "pair_options": {"readers": 2, "custom": True}, "workers": 2},
        stage=_read_everywhere,
        upgrades=("minor",),
    ),
    Scenario(
        "aurora-writer-alone",
        "an Aurora cluster of only a writer; pools on each of its endpoints",
        trial={"flavour": "aurora", "pair_options": {"custom": True}, "workers": 2},
        stage=_read_everywhere,
    ),
    Scenario(
        "aurora-fewer-green-readers",
        "two readers on blue, one on green, which replaces both",
        trial={"flavour": "aurora", "pair_options": {"readers": (2, 1)}, "workers": 2},
        stage=_read_everywhere,
        upgrades=("minor",),
    ),
    Scenario(
        "aurora-no-green-readers",
        "one reader on blue, none on green: the writer replaces it",
        trial={"flavour": "aurora", "pair_options": {"readers": (1, 0)}, "workers": 2},
        stage=_read_everywhere,
        upgrades=("minor",),
    ),
    Scenario(
        "outsider",
        "a pool of the same bg_id on a host that takes no part: it is not affected",
        trial={"workers": 2},
        stage=_outsider,
        check=_was_never_held,
    ),
    Scenario(
        "target-session-attrs",
        "target_session_attrs=read-write in the DSN: the pools keep it, the monitor does not",
        stage=_target_session_attrs,
        engines=(Engine.POSTGRESQL,),
    ),
)

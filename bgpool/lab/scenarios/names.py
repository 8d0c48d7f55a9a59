"""Scenarios of names: slow, failing or stale DNS, certificates and tokens that are renewed late, and aliases."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bgpool.lab.dns import DnsServer
from bgpool.lab.errors import LabError
from bgpool.lab.pair import Pair
from bgpool.lab.scenarios.evidence import silence_metadata
from bgpool.lab.scenarios.scenario import FAST, Scenario
from bgpool.lab.trial import Trial

__all__ = ["SCENARIOS"]

ALIAS: Final = "db.shop.example"
#: A second and a half after green's first write: as long as DNS was stale in the measured switchovers, scaled.
LATE: Final = replace(FAST, certificates_renewed_s=2.6, tokens_renamed_s=2.6)
UNEVEN: Final = replace(FAST, certificates_renewed_s=0.9, tokens_renamed_s=2.6)


def dns_of(pair: Pair) -> DnsServer:
    """Return the DNS server of *pair*."""
    if pair.dns is None:
        raise LabError("this pair has no DNS server")
    return pair.dns


def _slow(trial: Trial) -> None:
    dns_of(trial.pair).delay_s = 0.4


def _failing(trial: Trial) -> None:
    dns = dns_of(trial.pair)

    def fail() -> None:
        dns.failing = True

    def recover() -> None:
        dns.failing = False

    trial.director.add("dns fails", -0.3, fail)
    trial.director.add("dns works again", 2.5, recover)


def _silent(trial: Trial) -> None:
    """Silence the metadata and DNS: only green shows the switchover."""
    silence_metadata(trial)
    dns = dns_of(trial.pair)

    def fall_silent() -> None:
        dns.silent = True

    def speak() -> None:
        dns.silent = False

    trial.director.add("dns silent", 0.1, fall_silent)
    trial.director.add("dns speaks", 2.5, speak)


def _stale(trial: Trial) -> None:
    dns = dns_of(trial.pair)
    trial.director.add("dns stale", 0.1, dns.freeze)
    trial.director.add("dns fresh", 4.0, dns.thaw)


def _alias(trial: Trial) -> None:
    dns_of(trial.pair).alias("db.internal.example", trial.pair.names.blue.primary)
    dns_of(trial.pair).alias(ALIAS, "db.internal.example")
    trial.add_worker(pool=trial.make_pool(trial.pair.dsn_of(ALIAS)), endpoint=ALIAS)


def _stated_endpoint(trial: Trial) -> None:
    """Add an alias that no CNAME reveals: the same address under a name of the user's own."""
    trial.pair.hosts.set(ALIAS, trial.pair.blue.address)
    trial.director.add("alias moved", FAST.blue_dns_moved_s, lambda: _move_alias(trial.pair))
    pool = trial.make_pool(trial.pair.dsn_of(ALIAS), endpoint=trial.pair.names.blue.primary)
    trial.add_worker(pool=pool, endpoint=ALIAS)


def _move_alias(pair: Pair) -> None:
    pair.hosts.set(ALIAS, pair.green.address)


def _renewal_was_noticed(trial: Trial) -> list[str]:
    """Return a finding unless the timeline has the new certificates, and not before they existed."""
    snapshot = trial.snapshot()
    renewed_s = trial.director.event("tokens_renamed").monotonic_s
    events = {entry.event: entry.mono_ns / 1e9 for entry in (snapshot.timeline if snapshot is not None else ())}
    noticed_s = events.get("Green host certificates changed")
    if noticed_s is None:
        return [f"the timeline has no event of new certificates: {list(events)}"]
    return [] if noticed_s > renewed_s - 0.1 else ["new certificates were reported before they existed"]


SCENARIOS: Final = (
    Scenario(
        "dns-slow",
        "every look-up takes 0.4 s",
        # The loss of a name is seen by the look-up after the one that is under way at that time: up to 0.8 s later.
        trial={"pair_options": {"dns": True}, "settle_s": 1.0},
        stage=_slow,
    ),
    Scenario(
        "dns-failing",
        "DNS answers SERVFAIL from before PREPARATION until after the switchover",
        trial={"pair_options": {"dns": True}, "settle_s": 1.0},
        stage=_failing,
    ),
    Scenario(
        "dns-silent",
        "DNS does not answer, and the metadata stay at IN_PROGRESS",
        evidence=("green promoted",),
        trial={"pair_options": {"dns": True}, "settle_s": 5.0},
        stage=_silent,
    ),
    Scenario(
        "dns-stale",
        "DNS returns blue's old addresses long after the metadata report COMPLETED",
        trial={"pair_options": {"dns": True}, "settle_s": 1.0},
        stage=_stale,
    ),
    Scenario(
        "tls-renewed-late",
        "certificates are verified with the name; green's has only the green name long after the renaming",
        trial={"pair_options": {"tls": True}, "schedule": LATE, "settle_s": 1.5},
        # A third one briefly tries green under its new name.
        connections=3,
        check=_renewal_was_noticed,
    ),
    Scenario(
        "iam-renamed-late",
        "tokens instead of a password, each valid for one name; green's change late, its certificates before",
        trial={"pair_options": {"iam": True}, "schedule": UNEVEN, "settle_s": 1.5},
        # A third one briefly tries green under its new name.
        connections=3,
        check=_renewal_was_noticed,
    ),
    Scenario(
        "alias",
        "a CNAME of a CNAME of the endpoint: bgpool follows it, and the pool takes part",
        trial={"pair_options": {"dns": True}, "workers": 2},
        stage=_alias,
    ),
    Scenario(
        "stated-endpoint",
        "a name that resolves to blue without a CNAME: endpoint= names its endpoint",
        trial={"workers": 2},
        stage=_stated_endpoint,
    ),
)

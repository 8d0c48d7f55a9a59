"""Checks of a fleet's bus. Nothing is written: the permission to write is tested without leaving anything."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import Final, TypeVar

from bgpool.core.fleet import Message, Report
from bgpool.core.limits import (
    FLEET_BLOCK_S,
    FLEET_CLOCK_ERROR_S,
    FLEET_FRESH_S,
    FLEET_REPORT_LIFE_S,
    FLEET_SILENCE_S,
    FLEET_TERM_AHEAD_S,
)
from bgpool.doctor.case import Case
from bgpool.doctor.findings import Checks, EarlyVerdict, Finding, Verdict, failed, not_checked, ok, warning
from bgpool.errors import Error
from bgpool.fleet.bus import BusError, Entry, ReportEntry
from bgpool.fleet.config import FleetConfig, KeyMaker
from bgpool.fleet.messages import BadMessage, unseal, unseal_report
from bgpool.fleet.streams import RIGHTS, StreamBus, stream_keys
from bgpool.fleet.url import parse_bus_url

__all__ = ["Fleet", "fleet_checks", "of_fleet"]

#: The maximum of reports to check; with more hosts, these are a sample.
_REPORTS: Final = 200
#: Both halves of the last id of a stream.
_END: Final = 2**64 - 1
#: The errors of a server that accepts the connection, and refuses only one command or one key.
_OF_OTHERS: Final = frozenset({"NOPERM", "WRONGTYPE"})
_KEEPING: Final = frozenset({"noeviction", "allkeys-lru", "allkeys-lfu"})
_ALSO: Final = "the same bg_fleet_key on all hosts of the bg_id"

T = TypeVar("T")

fleet_checks: Final[Checks[Fleet]] = Checks()


@dataclass(frozen=True, slots=True)
class _Received:
    """A received message, and the time of receipt on this host's wall clock in seconds."""

    message: Message
    at_s: float


class Fleet:
    """A fleet's bus, seen from this host over one connection. Every query is made once."""

    def __init__(self, config: FleetConfig, bg_id: str) -> None:
        """Create it without opening a connection."""
        self.config: Final = config
        self.bg_id: Final = bg_id
        self.key, self.hosts_key = stream_keys(bg_id)
        self._bus: StreamBus | None = None
        self._failure: BusError | None = None

    @property
    def bus(self) -> StreamBus:
        """The bus.

        Raises:
            EarlyVerdict: It cannot be queried, as the check *reachable* reports.
        """
        if self._failure is not None:
            raise EarlyVerdict(not_checked("the bus cannot be asked"))
        if self._bus is None:
            if importlib.util.find_spec("redis") is None:
                raise EarlyVerdict(not_checked("redis-py is not installed"))
            self._bus = StreamBus(self.config, self.bg_id)
        return self._bus

    def greet(self) -> float:
        """Make a query; return the duration of the answer on the open connection, in seconds.

        Raises:
            BusError: There is no answer, or the user is refused; then no further query is made.
        """
        try:
            for _ in range(2):
                began = time.monotonic()
                try:
                    self.bus.top()
                except BusError as error:
                    if error.code not in _OF_OTHERS:
                        raise
            return time.monotonic() - began
        except BusError as error:
            self._failure = error
            raise

    @cached_property
    def top(self) -> Entry | None:
        """The newest entry of the leaders' stream."""
        return self._read(self.bus.top)

    @cached_property
    def reports(self) -> list[ReportEntry]:
        """The newest entries of the hosts' stream, the newest first."""
        return self._read(partial(self.bus.reports, _REPORTS))

    @cached_property
    def keys(self) -> tuple[bytes, ...]:
        """The keys with which this host verifies.

        Raises:
            EarlyVerdict: The key callable failed.
        """
        try:
            return KeyMaker(self.config).make()
        except Error as error:
            raise EarlyVerdict(
                failed(str(error), "mend the callable; until then this host asks the database itself")
            ) from None

    @cached_property
    def heard(self) -> _Received | None:
        """A message received now, signed with this host's key; None if none arrives within FLEET_SILENCE_S."""
        # Query the newest entry again: entries since the first query would seem to arrive now.
        top = self._read(self.bus.top)
        if top is None:
            return None
        after = (top.term, top.seq)
        deadline = time.monotonic() + FLEET_SILENCE_S
        while time.monotonic() < deadline:
            entries = self._read(partial(self.bus.read, after, FLEET_BLOCK_S)).entries
            at_s = time.time()
            for entry in reversed(entries):
                try:
                    return _Received(unseal(entry, self.bg_id, self.keys), at_s)
                except BadMessage:
                    after = max(after, (entry.term, entry.seq))
        return None

    def _read(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except BusError:
            raise EarlyVerdict(not_checked("a stream cannot be read, as another check says")) from None

    def close(self) -> None:
        """Close the connection."""
        if self._bus is not None:
            self._bus.close()


def of_fleet(case: Case) -> list[Finding]:
    """Return the findings about the bus of *case*; none without a bus."""
    if case.config.fleet is None:
        return []
    fleet = Fleet(case.config.fleet, case.settings.bg_id)
    try:
        return fleet_checks.run(fleet, "fleet")
    finally:
        fleet.close()


@fleet_checks.check("client", "Is the client of the bus installed?")
def _client(_fleet: Fleet) -> Verdict:
    if importlib.util.find_spec("redis") is None:
        return failed(
            "redis-py is not installed: this host's monitor asks the database itself", "pip install 'bgpool[fleet]'"
        )
    return ok(f"redis-py {version('redis')}")


@fleet_checks.check("reachable", "Does the bus answer, and let this host in?")
def _reachable(fleet: Fleet) -> Verdict:
    try:
        took_s = fleet.greet()
    except BusError as error:
        return failed(str(error), "mend that; until then this host's monitor asks the database itself")
    who = f"as {fleet.config.user}" if fleet.config.user else "as the default user"
    return ok(f"{fleet.config.place} accepts the login {who}, and answers in {1000 * took_s:.1f} ms")


@fleet_checks.check("encrypted", "Is what goes over the bus encrypted, and does the bus prove its name?")
def _encrypted(fleet: Fleet) -> Verdict:
    url = parse_bus_url(fleet.config.url)
    if url.tls and url.verify and url.check_name:
        return ok("TLS, and its name is verified")
    if url.tls:
        return warning(
            f"TLS, but {'any certificate of an authority' if url.verify else 'any certificate'} is accepted: "
            "an attacker who redirects the name can impersonate the bus",
            f"leave {'ssl_check_hostname' if url.verify else 'ssl_cert_reqs'} out of bg_fleet",
        )
    if url.password or fleet.config.password_callable is not None:
        return warning("no TLS: the password goes over the network as it is", "rediss:// in bg_fleet")
    return ok("no TLS; no password is sent, and what is sent is no secret")


@fleet_checks.check("rights", "May this user read both streams, and add to them?")
def _rights(fleet: Fleet) -> Verdict:
    bus = fleet.bus
    try:
        bus.top()
        bus.reports(1)
        bus.read((0, 0), 0.0, "0")
    except BusError as error:
        if error.code != "WRONGTYPE":  # handled by the next check
            return _refused(fleet, error)
    try:
        bus.try_writing()
    except BusError as error:
        return _refused(fleet, error)
    return ok(f"XADD, XREAD and XREVRANGE on {fleet.key} and {fleet.hosts_key}; nothing was written")


def _refused(fleet: Fleet, error: BusError) -> Verdict:
    if error.code != "NOPERM":
        return failed(str(error), "mend that; until then every host asks the database itself")
    select = " +select" if parse_bus_url(fleet.config.url).db else ""
    return failed(str(error), f"ACL SETUSER {fleet.config.user or 'default'} {RIGHTS}{select}")


@fleet_checks.check("streams", "Can the streams be added to?")
def _streams(fleet: Fleet) -> Verdict:
    told = []
    for key, newest in ((fleet.key, _newest_message), (fleet.hosts_key, _newest_report)):
        try:
            text, ends = newest(fleet)
        except BusError as error:
            mend = f"delete {key} (DEL) as a user who may" if error.code == "WRONGTYPE" else "see the check rights"
            return failed(str(error), mend)
        if ends:
            return failed(
                f"{key}: {text}: no host can publish above it, and every host queries the database itself. "
                "A client that may write to the bus has written it",
                f"delete {key} (DEL); the monitors' own user cannot. Then prevent other clients from writing there",
            )
        told.append(text)
    return ok("; ".join(told))


def _newest_message(fleet: Fleet) -> tuple[str, bool]:
    """Return the kind of the newest entry of the leaders' stream, and whether its id is the highest possible."""
    top = fleet.bus.top()
    if top is None:
        return "there is no leader, and there was none", False
    if (top.term, top.seq) == (_END, _END):
        return "its newest entry has the last possible id", True
    ahead_s = top.term - time.time()
    if ahead_s > FLEET_TERM_AHEAD_S:
        return f"its newest entry has the term {top.term}, which is more than a day ahead", True
    return f"the newest message is {top.term}-{top.seq}", False


def _newest_report(fleet: Fleet) -> tuple[str, bool]:
    reports = fleet.bus.reports(_REPORTS)
    if not reports:
        return "no host has reported", False
    if reports[0].id == f"{_END}-{_END}":
        return "its newest entry has the last possible id", True
    more = "at least " if len(reports) == _REPORTS else ""
    return f"{more}{len(reports)} reports of hosts", False


@fleet_checks.check("key", "Do this host and the others have the same key?")
def _key(fleet: Fleet) -> Verdict:
    keys, top = fleet.keys, fleet.heard.message if fleet.heard is not None else fleet.top
    if top is None and not fleet.reports:
        return not_checked("the streams are empty: run this again when another host uses the bus")
    reports = Counter(_kind_of(fleet, entry) for entry in fleet.reports)
    message = _kind_of(fleet, top) if isinstance(top, Entry) else ""
    total, good = reports.total(), reports[""]
    # Without a signature a newer format cannot be distinguished from a signed one.
    if keys and "future" in (message, *reports):
        return warning("some of what is on the bus is of a newer version of bgpool", "upgrade bgpool on this host")
    if message or (total and not good):
        what = "the newest message" if message else f"none of the newest {total} reports"
        if not keys:
            return failed(
                f"{what} {'cannot' if message else 'can'} be read without a key: the others have one (bg_fleet_key), "
                "and this host trusts unsigned messages (bg_fleet_trust), or another client writes there",
                _ALSO,
            )
        return failed(
            f"{what} {'is not' if message else 'is'} signed with this host's key: the others have another one, or "
            "none, or another client writes there. This host ignores it and queries the database itself",
            _ALSO,
        )
    if good < total:
        return warning(
            f"{total - good} of the newest {total} reports are not signed with this host's key: some hosts have "
            "another one, or none, or another client writes there",
            _ALSO,
        )
    told = " and ".join(
        filter(None, ("the newest message" if top is not None else "", f"{total} reports" if total else ""))
    )
    if not keys:
        return ok(f"bg_fleet_trust: nothing is signed; {told} can be read")
    return ok(f"{told}, signed with {_which(fleet, keys)}")


def _kind_of(fleet: Fleet, entry: Entry | ReportEntry) -> str:
    """Return the kind of problem with *entry*; empty if there is none."""
    try:
        if isinstance(entry, Entry):
            unseal(entry, fleet.bg_id, fleet.keys)
        else:
            unseal_report(entry.payload, fleet.bg_id, fleet.keys)
    except BadMessage as error:
        return error.kind
    return ""


def _which(fleet: Fleet, keys: tuple[bytes, ...]) -> str:
    """Return which key signs the newest entry: a key change is complete when it is the first key of all hosts."""
    if len(keys) == 1:
        return "this host's key"
    newest = fleet.top if fleet.top is not None else fleet.reports[0]
    for number, key in enumerate(keys, 1):
        if _is_signed(fleet, newest, key):
            return f"key {number} of this host's {len(keys)}"
    return f"one of this host's {len(keys)} keys"


def _is_signed(fleet: Fleet, entry: Entry | ReportEntry, key: bytes) -> bool:
    try:
        if isinstance(entry, Entry):
            unseal(entry, fleet.bg_id, (key,))
        else:
            unseal_report(entry.payload, fleet.bg_id, (key,))
    except BadMessage:
        return False
    return True


@fleet_checks.check("clock", "Does this host's clock go as the leader's does?")
def _clock(fleet: Fleet) -> Verdict:
    heard = fleet.heard
    if heard is None:
        return not_checked(f"no message that this host can use came within {FLEET_SILENCE_S:g} s")
    ahead_s = heard.at_s - heard.message.issued_ns / 1e9
    if abs(ahead_s) <= FLEET_CLOCK_ERROR_S:
        others = _others_off(fleet)
        if others:
            return warning(
                f"this host's clock goes as the leader's, within {abs(ahead_s):.1f} s; others differ: {others}",
                "chrony or ntpd there",
            )
        return ok(f"it differs from the leader's by {1000 * ahead_s:.0f} ms, the way over the bus included")
    text = f"it is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the leader's"
    remedy = "chrony or ntpd, here or on the leader's host"
    if not -FLEET_CLOCK_ERROR_S <= ahead_s <= FLEET_FRESH_S + FLEET_CLOCK_ERROR_S:
        return failed(f"{text}: this host believes no message and asks the database itself", remedy)
    return warning(f"{text}: messages seem that old, and more than 3 s are not believed", remedy)


def _others_off(fleet: Fleet) -> str:
    """Return a text about hosts that report a clock that differs from the leader's."""
    newest: dict[str, Report] = {}
    for entry in fleet.reports:
        try:
            report = unseal_report(entry.payload, fleet.bg_id, fleet.keys)
        except BadMessage:
            continue
        # By the bus's clock, because the check looks for hosts with wrong clocks.
        if isinstance(report, Report) and _added_s(fleet.reports[0]) - _added_s(entry) < FLEET_REPORT_LIFE_S:
            newest.setdefault(report.place, report)
    off = {
        report.host: report.clock_off_ms / 1000
        for report in newest.values()
        if report.clock_off_ms is not None and abs(report.clock_off_ms) > 1000 * FLEET_CLOCK_ERROR_S
    }
    return _listed(f"{host} by {off_s:.1f} s" for host, off_s in sorted(off.items()))


def _added_s(entry: ReportEntry) -> float:
    return int(entry.id.partition("-")[0]) / 1000


def _listed(texts: Iterable[str], most: int = 5) -> str:
    found = list(texts)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


@fleet_checks.check("eviction", "Does the bus keep the streams when its memory is full?")
def _eviction(fleet: Fleet) -> Verdict:
    try:
        policy, limit = fleet.bus.eviction()
    except BusError as error:
        why = "this user may not run INFO, and need not" if error.code == "NOPERM" else str(error)
        return not_checked(
            f"it could not be looked at: {why}. Look at maxmemory-policy yourself; anything but allkeys-random will do"
        )
    text = f"maxmemory-policy {policy}, maxmemory {limit} bytes" if limit else f"{policy}, and no limit of memory"
    if policy in _KEEPING or policy.startswith("volatile-"):
        return ok(f"{text}: streams that are in use and have no TTL stay")
    return warning(
        f"{text}: it throws the streams out when memory is full, and each time every host asks the database itself",
        "any other maxmemory-policy, or a server of its own",
    )

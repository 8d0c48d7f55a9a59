"""``bgpool fleet``: all hosts of a fleet, by their reports on its bus; uses no database and no run directory."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final
from urllib.parse import urlsplit

from rich.table import Table
from rich.text import Text

from bgpool.base_errors import ConfigurationError
from bgpool.cli.order import Answer, NotTaken
from bgpool.cli.view import LABEL_COLUMNS, make_console, plain
from bgpool.core.events import Order
from bgpool.core.fleet import FleetOrder, FleetRole
from bgpool.core.limits import (
    FLEET_CLAIM_PAUSE_S,
    FLEET_CLOCK_ERROR_S,
    FLEET_REPORT_LIFE_S,
    FLEET_REPORT_S,
    FLEET_SILENCE_S,
    ORDER_S,
    ORDER_WAIT_S,
)
from bgpool.core.phase import SWITCHING, Phase
from bgpool.dsn import parse
from bgpool.fleet.bus import BusError
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.messages import seal_report
from bgpool.fleet.streams import StreamBus
from bgpool.fleet.survey import Survey, SurveyedHost
from bgpool.settings import Settings

__all__ = ["Fleet", "give", "give_up_after_s", "show"]

_NS: Final = 1_000_000_000
_NUMBER_DIGITS: Final = 20
#: The maximum of names in one line.
_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet, and how to connect to its bus."""

    config: FleetConfig
    bg_id: str

    @classmethod
    def of(cls, dsn: str | None, bg_id: str | None, url: str | None) -> Fleet:
        """Return the fleet from the command line and the environment.

        Args:
            dsn: See get_pool; its ``bg_`` parameters are used.
            bg_id: Overrides the DSN's.
            url: The bus, without a password; overrides the DSN's and ``$BGPOOL_FLEET``.

        Raises:
            ConfigurationError: There is no bus or no key, or one of them is invalid. The text contains no secret.
        """
        if url is not None and urlsplit(url).password is not None:
            raise ConfigurationError(
                "--fleet has a password, which every user of this host can read (ps): set $BGPOOL_FLEET instead"
            )
        given = {name: value for name, value in (("bg_id", bg_id), ("bg_fleet", url)) if value is not None}
        settings = Settings.from_mapping(given) if dsn is None else parse(dsn, given)[1]
        config = FleetConfig.of(settings)
        if config is None:
            raise ConfigurationError(
                "no bus is known: set $BGPOOL_FLEET to what the hosts have as bg_fleet, and $BGPOOL_FLEET_KEY to their "
                "key; or give a DSN that has them, or --fleet URL"
            )
        return cls(config, settings.bg_id)

    @contextlib.contextmanager
    def survey(self) -> Iterator[tuple[StreamBus, Survey]]:
        """Return the bus, and a survey of it.

        Raises:
            BusError: The bus cannot be used.
        """
        bus = StreamBus(self.config, self.bg_id)
        try:
            yield bus, Survey(bus, self.bg_id, self.config.keys)
        finally:
            bus.close()


# -- status -------------------------------------------------------------------------------------------------------


def show(fleet: Fleet, *, ready: bool, least: int, as_json: bool) -> int:
    """Print the hosts' reports.

    Args:
        fleet: The fleet.
        ready: True to print only whether all of them may be switched over.
        least: The minimum number of hosts.
        as_json: True to print JSON.

    Returns:
        The exit status: 0; 1 if no host has reported, or with *ready* if the fleet may not be switched over.

    Raises:
        BusError: The bus cannot be used.
    """
    with fleet.survey() as (_, survey):
        survey.listen_for_leader(FLEET_SILENCE_S)
        names = _names(survey)
        missing = [*_missing_of_fleet(survey, least)]
        missing += [f"{names[seen]} is not ready: {why}" for seen in survey.hosts for why in _missing(seen)]
        if as_json:
            print(json.dumps(_as_dict(fleet, survey, missing), indent=1))
        elif ready:
            _say_ready(fleet, survey, missing)
        else:
            _draw(fleet, survey, names, least)
        return 1 if not survey.hosts or (ready and missing) else 0


def _missing(seen: SurveyedHost) -> tuple[str, ...]:
    """Return the obstacles to a switchover of a host."""
    report = seen.report
    if report.phase is not Phase.CREATED and not report.missing:
        return (f"its phase is {report.phase.name}",)
    return report.missing


def _missing_of_fleet(survey: Survey, least: int) -> Iterator[str]:
    count = len(survey.hosts)
    if count < max(1, least):
        expected = f"; {least} are expected" if least else ""
        yield f"{_hosts(count)} reported within {FLEET_REPORT_LIFE_S:.0f} s{expected}{_unread(survey)}"
    if count and survey.leader is None:
        yield f"there is no leader: no message arrived for {FLEET_SILENCE_S} s, so these reports may be old"


def _notes(survey: Survey) -> Iterator[str]:
    """Return findings that do not prevent a switchover."""
    hosts = survey.hosts
    names = _names(survey)
    if gone := survey.gone:
        since = min(survey.age_s(seen) for seen in gone)
        whose = _some([names[seen] for seen in gone])
        yield f"no report for {since:.0f} s or longer, and no farewell, from {_hosts(len(gone))}: {whose}"
    if direct := [names[seen] for seen in hosts if _is_left_alone(seen)]:
        yield f"direct, asking the database itself: {len(direct)} of {_hosts(len(hosts))}: {_some(direct)}"
    if wrong := [names[seen] for seen in hosts if _is_clock_wrong(seen)]:
        yield (
            f"the clocks of {len(wrong)} of {_hosts(len(hosts))} differ from the leader's by more than "
            f"{FLEET_CLOCK_ERROR_S:.0f} s: {_some(wrong)}"
        )
    versions = Counter(seen.report.version for seen in hosts)
    if len(versions) > 1:
        told = ", ".join(f"{version} ({count})" for version, count in sorted(versions.items()))
        yield f"the hosts have different versions: {told}; upgrade before a switchover, not during one"
    if hosts and survey.refused:
        yield _unread(survey).removeprefix("; ")


def _unread(survey: Survey) -> str:
    if not survey.refused:
        return ""
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(survey.refused.items()))
    text = f"; {survey.refused.total()} entries cannot be used: {told}"
    return f"{text} (is $BGPOOL_FLEET_KEY the hosts' key?)" if survey.refused["forged"] else text


def _is_left_alone(seen: SurveyedHost) -> bool:
    """Return whether a host queries the database although it should be a follower."""
    return seen.report.standing is FleetRole.DIRECT and seen.report.phase is not Phase.NOT_CREATED


def _is_clock_wrong(seen: SurveyedHost) -> bool:
    return abs(seen.report.clock_off_ms or 0) > FLEET_CLOCK_ERROR_S * 1000


def _say_ready(fleet: Fleet, survey: Survey, missing: Sequence[str]) -> None:
    name = f"fleet {fleet.bg_id!r}"
    if not missing:
        workers = sum(seen.report.workers for seen in survey.hosts)
        print(f"{name} is ready for a switchover: {_hosts(len(survey.hosts))}, {workers} workers")
    for reason in missing:
        print(f"{name}: {reason}")
    for note in _notes(survey):
        print(f"{name}: note: {note}")


def _draw(fleet: Fleet, survey: Survey, names: dict[SurveyedHost, str], least: int) -> None:
    console, hosts = make_console(), survey.hosts
    missing = [*_missing_of_fleet(survey, least)]
    is_ready = not missing and not any(_missing(seen) for seen in hosts)
    title = Text(plain(fleet.bg_id), "bold")
    title.append("  ready for a switchover" if is_ready else "  not ready", "bold green" if is_ready else "bold yellow")
    console.print(title)
    facts = Table.grid(padding=(0, 2), pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("bus".ljust(LABEL_COLUMNS), Text(plain(fleet.config.place)))
    if survey.leader is not None:
        leader, age_s = survey.leader, (survey.now_ns - survey.leader.issued_ns) / _NS
        by_leader = f"counts {_hosts(leader.hosts)}, term {leader.term}, heard {max(0.0, age_s):.1f} s ago"
        facts.add_row("leader".ljust(LABEL_COLUMNS), Text(plain(f"{_leader_name(survey, names)}, {by_leader}")))
    told = [("missing", text, "yellow") for text in missing]
    told += [("missing", f"{names[seen]}: {why}", "yellow") for seen in hosts for why in _missing(seen)]
    if (order := _standing_order(survey)) is not None:
        taken = sum(seen.report.order == order.number for seen in hosts)
        text = f"{order.order.value} until {_utc(order.until_ns)}, taken by {taken} of {_hosts(len(hosts))}"
        told.append(("by hand", text, "bold yellow"))
    told += [("note", text, "") for text in _notes(survey)]
    before = ""
    for label, text, style in told:
        facts.add_row("" if label == before else label.ljust(LABEL_COLUMNS), Text(plain(text), style))
        before = label
    console.print(facts)
    if hosts:
        console.print()
        console.print(_table(survey, names))


def _table(survey: Survey, names: dict[SurveyedHost, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("host", overflow="fold")
    for name in ("version", "phase", "ready", "place"):
        table.add_column(name, overflow="fold")
    for name in ("workers", "held", "clock", "fallbacks", "refused", "age"):
        table.add_column(name, justify="right")
    for seen in survey.hosts:
        report = seen.report
        is_ready = not _missing(seen)
        off_ms = report.clock_off_ms
        table.add_row(
            plain(names[seen]),
            plain(report.version),
            report.phase.name,
            Text("yes" if is_ready else "no", "green" if is_ready else "yellow"),
            Text(report.standing.value, "yellow" if _is_left_alone(seen) else ""),
            str(report.workers),
            Text(str(report.held), "bold yellow" if report.held else ""),
            Text(f"{off_ms / 1000:+.1f} s" if off_ms is not None else "", "bold red" if _is_clock_wrong(seen) else ""),
            str(report.fallbacks or ""),
            Text(str(report.refused or ""), "yellow"),
            f"{survey.age_s(seen):.1f} s",
        )
    return table


def _as_dict(fleet: Fleet, survey: Survey, missing: Sequence[str]) -> dict[str, Any]:
    leader, order = survey.leader, _standing_order(survey)
    return {
        "bg_id": fleet.bg_id,
        "bus": fleet.config.place,
        "ready": not missing,
        "missing": missing,
        "notes": [*_notes(survey)],
        "leader": None
        if leader is None
        else {
            "member": leader.leader,
            "host": next((seen.report.host for seen in survey.hosts if seen.report.member == leader.leader), None),
            "term": leader.term,
            "hosts": leader.hosts,
            "age_s": round(max(0.0, (survey.now_ns - leader.issued_ns) / _NS), 3),
        },
        "by_hand": None if order is None else {"order": order.order.value, "until": _utc(order.until_ns)},
        "refused": dict(survey.refused),
        "hosts": [
            {
                "host": seen.report.host,
                "place": seen.report.place,
                "member": seen.report.member,
                "version": seen.report.version,
                "phase": seen.report.phase.name,
                "ready": not _missing(seen),
                "missing": [*_missing(seen)],
                "workers": seen.report.workers,
                "held": seen.report.held,
                "standing": seen.report.standing.value,
                "clock_off_ms": seen.report.clock_off_ms,
                "fallbacks": seen.report.fallbacks,
                "refused": seen.report.refused,
                "has_order": order is not None and seen.report.order == order.number,
                "age_s": round(survey.age_s(seen), 3),
            }
            for seen in survey.hosts
        ],
    }


def _standing_order(survey: Survey) -> FleetOrder | None:
    order = survey.order
    return order if order is not None and order.until_ns > survey.now_ns else None


# -- orders -------------------------------------------------------------------------------------------------------


def give_up_after_s() -> float:
    """Return the time for which `give` waits for the hosts, in seconds."""
    return ORDER_WAIT_S + FLEET_REPORT_S


def give(fleet: Fleet, order: Order, seconds: int = 0) -> Answer:
    """Send *order* to all hosts, and wait until they have accepted it.

    Args:
        fleet: The fleet.
        order: The order.
        seconds: The duration of a hold.

    Raises:
        NotTaken: There is no host to accept it; nothing was written.
        BusError: The bus cannot be used.
    """
    name = f"fleet {fleet.bg_id!r}"
    with fleet.survey() as (bus, survey):
        survey.listen_for_leader(FLEET_SILENCE_S)
        if not survey.hosts:
            raise NotTaken(f"{name}: {next(_missing_of_fleet(survey, 0))}")
        # A leader that has just died soon has a successor.
        survey.listen_for_leader(ORDER_WAIT_S - FLEET_SILENCE_S)
        if survey.leader is None:
            raise NotTaken(
                f"{name}: there is no leader, which must pass on an order: no message arrived for "
                f"{ORDER_WAIT_S:.0f} s. Use bgpool {order.value} on each host"
            )
        switching = [seen for seen in survey.hosts if seen.report.phase in SWITCHING]
        if order is Order.HOLD and switching:
            phases = ", ".join(sorted({seen.report.phase.name for seen in switching}))
            return Answer(
                False,
                f"{name}: a switchover is under way ({phases} on {len(switching)} of "
                f"{_hosts(len(survey.hosts))}), which decides itself who waits; nothing was changed",
            )
        given = _order(survey, order, seconds)
        bus.report(seal_report(given, fleet.bg_id, fleet.config.keys))
        return _await(name, survey, given)


def _order(survey: Survey, order: Order, seconds: int) -> FleetOrder:
    """Return an order that is newer than any earlier one, independent of this host's clock."""
    now_ns = survey.now_ns
    last = survey.order.number[:_NUMBER_DIGITS] if survey.order is not None else ""
    at_ns = max(now_ns, int(last) + 1 if last.isascii() and last.isdigit() else 0)
    until_ns = now_ns + (seconds or ORDER_S) * _NS
    return FleetOrder(f"{at_ns:0{_NUMBER_DIGITS}d}-{secrets.token_hex(4)}", order, until_ns)


def _await(name: str, survey: Survey, given: FleetOrder) -> Answer:
    """Wait until every host has accepted *given*: those that were known, and those that appear."""
    deadline = time.monotonic() + give_up_after_s()
    asked = {seen.report.place: seen for seen in survey.hosts}
    trouble = ""
    while True:
        try:
            survey.listen(deadline - time.monotonic())
            trouble = ""
        except BusError as error:
            # The order is written; only its acceptance is unknown.
            trouble = f"; {error}"
            time.sleep(FLEET_CLAIM_PAUSE_S)
        asked |= {seen.report.place: seen for seen in survey.hosts}
        asked = {place: seen for place, seen in asked.items() if place not in survey.left}
        late = [seen for seen in asked.values() if seen.report.order < given.number]
        if not late or time.monotonic() > deadline:
            break
    if any(seen.report.order > given.number for seen in asked.values()):
        return Answer(False, f"{name}: a newer order was given, which replaces this one")
    until = _utc(given.until_ns)
    if not late:
        return Answer(True, f"{name}: {_result(given, len(asked), until)}")
    names = _names(survey)
    lines = [
        f"{name}: {len(late)} of {_hosts(len(asked))} have not taken the order within "
        f"{give_up_after_s():.0f} s; it stays in force until {until} for hosts that receive it later{trouble}"
    ]
    lines += [f"{names.get(seen, seen.report.host)} has not: {_why_late(survey, seen)}" for seen in late]
    return Answer(False, "\n".join(lines))


def _result(given: FleetOrder, count: int, until: str) -> str:
    if given.order is Order.HOLD:
        return f"every checkout on {_hosts(count)} waits until {until}; bgpool fleet release ends it"
    return f"{_hosts(count)} accepted the release; no operator holds callers there any longer"


def _why_late(survey: Survey, seen: SurveyedHost) -> str:
    if survey.age_s(seen) > FLEET_REPORT_S + FLEET_CLOCK_ERROR_S:
        return f"its last report came {survey.age_s(seen):.0f} s ago"
    if seen.report.standing is FleetRole.DIRECT:
        return "it asks the database itself (direct), and hears no leader; bgpool status says why there"
    return f"it is a {seen.report.standing.value}, and has reported since"


# -- texts --------------------------------------------------------------------------------------------------------


def _names(survey: Survey) -> dict[SurveyedHost, str]:
    """Return a label of each host: its name, and a suffix if the name is not unique."""
    there = [*survey.hosts, *survey.gone]
    often = Counter(seen.report.host for seen in there)
    return {
        seen: f"{seen.report.host} ({seen.report.place[:6]})" if often[seen.report.host] > 1 else seen.report.host
        for seen in there
    }


def _leader_name(survey: Survey, names: dict[SurveyedHost, str]) -> str:
    leader = survey.leader.leader if survey.leader is not None else ""
    found = next((name for seen, name in names.items() if seen.report.member == leader), None)
    return f"{found} ({leader})" if found is not None else leader


def _hosts(count: int) -> str:
    return f"{count or 'no'} {'host' if count < 2 else 'hosts'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _utc(at_ns: int) -> str:
    """Return a time as text; another client's order may contain any number."""
    try:
        return f"{datetime.fromtimestamp(at_ns / _NS, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return "for ever"

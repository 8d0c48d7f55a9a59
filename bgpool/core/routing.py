"""What a snapshot means for one endpoint: go on, wait, go to a recorded address, or be refused.

The whole of docs/phases.md's table is the dictionary below. Two of its rules look alike and are opposites. A pool
without bgpool's help is a plain pool: no segment, no monitor, no metadata, everything passes. A green endpoint after
a switchover is refused unless it is known to be right.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from bgpool.core.endpoints import name_after
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot

__all__ = ["PASS", "Action", "Decision", "Names", "Purpose", "decide", "names_now", "names_to_try"]


class Purpose(Enum):
    """What is asked for: a connection from the pool, or a new connection for it."""

    CHECKOUT = "checkout"
    CONNECT = "connect"


class Action(Enum):
    """What a caller is to do."""

    PASS = "pass"
    HOLD = "hold"
    ROUTE = "route"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Decision:
    """What holds for one endpoint under one snapshot.

    Attributes:
        action: PASS goes by name, ROUTE to *addresses*, HOLD waits and asks again, REJECT gives up.
        epoch: What a connection opened now is stamped with; None where the endpoint takes no part.
        addresses: For ROUTE, the recorded IP addresses in order of preference; never empty.
        names: For ROUTE, the names that the host there may go by now (certificates and tokens are for names), in
            the order to be tried. Else empty: the endpoint's own.
    """

    action: Action
    epoch: int | None = None
    addresses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


#: The decision of a pool that takes no part.
PASS: Final = Decision(Action.PASS)


class _Rule(Enum):
    """A cell of the table: where it leads depends on what the inventory has to offer."""

    PASS = "pass"
    HOLD = "hold"
    REJECT = "reject"
    TO_BLUE = "recorded address of the blue host itself, by name if there is none"
    TO_GREEN = "recorded address of the green counterpart, held while it is not known"
    FOLLOW = "recorded address of the green counterpart until DNS has followed, by name if there is none"
    UNLESS_GONE = "refused while the green name still resolves"


_CHECKOUT, _CONNECT = Purpose.CHECKOUT, Purpose.CONNECT
_BLUE, _GREEN = Role.SOURCE, Role.TARGET

#: (phase, side) → rule per purpose. Phases that are not listed pass.
_TABLE: Final[Mapping[tuple[Phase, Role], Mapping[Purpose, _Rule]]] = {
    (Phase.PREPARATION, _BLUE): {_CHECKOUT: _Rule.PASS, _CONNECT: _Rule.TO_BLUE},
    (Phase.IN_PROGRESS, _BLUE): {_CHECKOUT: _Rule.HOLD, _CONNECT: _Rule.TO_BLUE},
    (Phase.IN_PROGRESS, _GREEN): {_CHECKOUT: _Rule.HOLD, _CONNECT: _Rule.HOLD},
    (Phase.POST, _BLUE): {_CHECKOUT: _Rule.TO_GREEN, _CONNECT: _Rule.TO_GREEN},
    (Phase.POST, _GREEN): {_CHECKOUT: _Rule.REJECT, _CONNECT: _Rule.REJECT},
    (Phase.COMPLETED, _BLUE): {_CHECKOUT: _Rule.FOLLOW, _CONNECT: _Rule.FOLLOW},
    (Phase.COMPLETED, _GREEN): {_CHECKOUT: _Rule.UNLESS_GONE, _CONNECT: _Rule.UNLESS_GONE},
}


def decide(snapshot: Snapshot, host: str, purpose: Purpose, *, suspend_new: bool = False) -> Decision:
    """What *purpose* may do now on a pool whose endpoint is *host*.

    Args:
        snapshot: What is true now. Whoever has waited decides again on a new one.
        host: The endpoint's name as normalise_host gives it.
        purpose: Checking out, or opening a connection.
        suspend_new: Hold new blue connections in IN_PROGRESS instead of routing them to blue's recorded address.

    Source:
        The phase table of docs/phases.md, row by row, and its section on orders by hand.
    """
    decision = _decide(snapshot, host, purpose, suspend_new=suspend_new)
    held = snapshot.hold_until_ns and purpose is Purpose.CHECKOUT and decision.action is not Action.REJECT
    # Of every pool: without a deployment nobody knows whose endpoint is blue's.
    return Decision(Action.HOLD, decision.epoch) if held else decision


def _decide(snapshot: Snapshot, host: str, purpose: Purpose, *, suspend_new: bool) -> Decision:
    mine = snapshot.host(host)
    if mine is None:
        return PASS
    rules = _TABLE.get((snapshot.phase, mine.role))
    if rules is None:
        return Decision(Action.PASS, snapshot.epoch)
    rule = rules[purpose]
    released = bool(snapshot.release_until_ns) and mine.role is _BLUE
    if released and snapshot.phase is not Phase.POST:
        rule = _Rule.PASS
    elif snapshot.suspected_until_ns and mine.role is _BLUE:
        # PREPARATION, and blue has begun to cut: what would be opened or used now would be cut, too.
        rule = _Rule.HOLD
    elif suspend_new and snapshot.phase is Phase.IN_PROGRESS and purpose is Purpose.CONNECT:
        rule = _Rule.HOLD
    if rule is _Rule.PASS or (rule is _Rule.UNLESS_GONE and snapshot.green_gone):
        return Decision(Action.PASS, snapshot.epoch)
    if rule is _Rule.HOLD:
        return Decision(Action.HOLD, snapshot.epoch)
    if rule in (_Rule.REJECT, _Rule.UNLESS_GONE):
        return Decision(Action.REJECT, snapshot.epoch)
    if not snapshot.pinned and rule is not _Rule.TO_BLUE:
        return Decision(Action.PASS, snapshot.epoch)
    target = mine if rule is _Rule.TO_BLUE else snapshot.twin(host)
    if target is not None and target.addresses:
        return Decision(Action.ROUTE, snapshot.epoch, target.addresses, names_now(snapshot, target, mine.name))
    return Decision(Action.HOLD if rule is _Rule.TO_GREEN and not released else Action.PASS, snapshot.epoch)


class Names(NamedTuple):
    """What a host is called to its certificate, and to whom its tokens are made out."""

    host: str
    token: str


def names_to_try(names: Sequence[str], *, tokens: bool) -> list[Names]:
    """*names* in the order to be tried.

    A certificate and the name that tokens are for may change at different moments. Then no one name is right, and with
    *tokens* each is tried for the one with another for the other, last.
    """
    alike = [Names(name, name) for name in names]
    return [*alike, *itertools.starmap(Names, itertools.permutations(names, 2))] if tokens else alike


def names_now(snapshot: Snapshot, host: Host, *others: str) -> tuple[str, ...]:
    """The names that *host* may go by after the release, the likeliest first, and *others* that it stands in for.

    A green host carries its green name until its certificate is regenerated, and blue's from there on.
    """
    before, after = host.name, name_after(host.name)
    order = (after, *others, before) if before in snapshot.certified else (before, after, *others)
    return tuple(dict.fromkeys(order))

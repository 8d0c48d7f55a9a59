"""The decision of a snapshot for one endpoint: pass, hold, route to a recorded address, or reject.

The dictionary below is the table of docs/phases.md. Two defaults are opposites on purpose. Without information (no
segment, no monitor, no metadata) everything passes and the pool is a plain pool. A green endpoint after a switchover is
rejected unless it is known to be right.
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
    """The purpose of a request: a connection from the pool, or a new connection for it."""

    CHECKOUT = "checkout"
    CONNECT = "connect"


class Action(Enum):
    """The action that a caller takes."""

    PASS = "pass"
    HOLD = "hold"
    ROUTE = "route"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one endpoint under one snapshot.

    Attributes:
        action: PASS connects by name, ROUTE to *addresses*, HOLD waits and decides again, REJECT fails.
        epoch: The epoch of a connection that is opened now; None if the endpoint is not part of the deployment.
        addresses: For ROUTE, the recorded IP addresses in order of preference; never empty.
        names: For ROUTE, the names that the host there may have now (certificates and tokens are issued for names), in
            the order in which to try them. Otherwise empty: the endpoint's own name.
    """

    action: Action
    epoch: int | None = None
    addresses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


#: The decision for a pool whose endpoint is not part of a deployment.
PASS: Final = Decision(Action.PASS)


class _Rule(Enum):
    """A cell of the table. The resulting decision depends on the inventory."""

    PASS = "pass"
    HOLD = "hold"
    REJECT = "reject"
    TO_BLUE = "recorded address of the blue host itself, by name if there is none"
    TO_GREEN = "recorded address of the green counterpart, held while it is not known"
    FOLLOW = "recorded address of the green counterpart until DNS has followed, by name if there is none"
    UNLESS_GONE = "refused while the green name still resolves"


_CHECKOUT, _CONNECT = Purpose.CHECKOUT, Purpose.CONNECT
_BLUE, _GREEN = Role.SOURCE, Role.TARGET

#: (phase, side) → rule per purpose. A phase that is not listed means PASS.
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
    """Return the decision for *purpose* on a pool whose endpoint is *host*.

    Args:
        snapshot: The current snapshot. After a wait the caller decides again with a new one.
        host: The endpoint's name as returned by normalise_host.
        purpose: A checkout, or a new connection.
        suspend_new: Hold new blue connections in IN_PROGRESS instead of routing them to blue's recorded address.

    Source:
        The phase table of docs/phases.md, row by row, and its section on orders by hand.
    """
    decision = _decide(snapshot, host, purpose, suspend_new=suspend_new)
    held = snapshot.hold_until_ns and purpose is Purpose.CHECKOUT and decision.action is not Action.REJECT
    # The operator's hold applies to every pool: without a deployment it is not known which endpoints are blue's.
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
        # PREPARATION, and blue has cut a connection: any connection opened or used now would be cut, too.
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
    """The name that a host's certificate is verified against, and the name that its IAM tokens are issued for."""

    host: str
    token: str


def names_to_try(names: Sequence[str], *, tokens: bool) -> list[Names]:
    """Return the combinations of *names* in the order in which to try them.

    The certificate and the name that tokens are issued for may change at different times. Then no single name is right.
    So with *tokens* the combinations of two different names follow last.
    """
    alike = [Names(name, name) for name in names]
    return [*alike, *itertools.starmap(Names, itertools.permutations(names, 2))] if tokens else alike


def names_now(snapshot: Snapshot, host: Host, *others: str) -> tuple[str, ...]:
    """Return the names that *host* may have after the release, likeliest first, including *others* that it replaces.

    A green host has its green name until its certificate is regenerated, and blue's name from then on.
    """
    before, after = host.name, name_after(host.name)
    order = (after, *others, before) if before in snapshot.certified else (before, after, *others)
    return tuple(dict.fromkeys(order))

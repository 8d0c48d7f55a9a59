"""Encode a snapshot as msgpack, and decode it. The decoder validates everything, because the data come from a file."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from bgpool.base_errors import SegmentError
from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.limits import (
    ADDRESSES_PER_NAME,
    ENDPOINTS,
    FLEET_TEXT_CHARS,
    NAME_CHARS,
    NOTICE_CHARS,
    NOTICES,
    OBSERVATIONS,
    TIMELINE_EVENTS,
)
from bgpool.core.observations import Observation, Parameters, Visibility
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Notice, Snapshot, TimelineEntry

__all__ = ["decode", "encode"]

_ROLES: Final = tuple(Role)
_STANDINGS: Final = tuple(FleetRole)
_KEYS: Final = (
    "bg_id", "phase", "epoch", "ready", "rolled_back", "pinned", "blue_moved", "green_gone", "renamed",
    "certified", "source_reading", "target_reading", "source_read_only", "target_read_only", "green_was_read_only",
    "green_was_replica", "blue_role_read_only", "target_subscribes", "target_max_connections",
    "hosts", "twins", "deadline_ns", "suspected_until_ns", "told_until_ns", "subscribed_until_ns", "hold_until_ns",
    "release_until_ns", "timeline", "notices", "observations", "fleet",
)  # fmt: skip
_MAX_ITEMS: Final = max(TIMELINE_EVENTS, ENDPOINTS, NOTICES, ADDRESSES_PER_NAME, OBSERVATIONS)


def encode(snapshot: Snapshot) -> bytes:
    """Return *snapshot* as a msgpack map, field by field."""
    fields = {key: getattr(snapshot, key) for key in _KEYS}
    fields["hosts"] = [(h.name, h.port, _ROLES.index(h.role), h.addresses) for h in snapshot.hosts]
    fields["timeline"] = [(e.mono_ns, e.wall_ns, e.event, e.evidence) for e in snapshot.timeline]
    fields["notices"] = [(n.number, n.level, n.logger, n.text, n.event) for n in snapshot.notices]
    fields["observations"] = [(*s.parameters, s.visibility.value, s.at_ns, s.tries) for s in snapshot.observations]
    fields["fleet"] = _packed_fleet(snapshot.fleet) if snapshot.fleet is not None else None
    packed: bytes = msgpack.packb(fields)
    return packed


def decode(payload: bytes) -> Snapshot:
    """Return the snapshot in *payload*.

    Raises:
        SegmentError: It is no snapshot: not msgpack, a missing or additional key, a value of the wrong type or size.
    """
    try:
        fields = msgpack.unpackb(
            payload,
            use_list=False,
            max_map_len=len(_KEYS),
            max_array_len=_MAX_ITEMS,
            max_str_len=4 * NOTICE_CHARS,
            max_bin_len=0,
            max_ext_len=0,
        )
        return _snapshot(fields)
    # Hostile bytes can cause any of these in msgpack or in unpacking; for the reader all are the same error.
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise SegmentError(f"snapshot cannot be decoded: {error}") from None
    except msgpack.UnpackException as error:
        raise SegmentError(f"snapshot cannot be decoded: {type(error).__name__}") from None


def _snapshot(fields: Any) -> Snapshot:
    if not isinstance(fields, dict) or set(fields) != set(_KEYS):
        raise ValueError("its fields are not those of a snapshot")
    return Snapshot(
        bg_id=_text(fields["bg_id"], NAME_CHARS),
        phase=Phase(_integer(fields["phase"])),
        epoch=_integer(fields["epoch"]),
        ready=_flag(fields["ready"]),
        rolled_back=_flag(fields["rolled_back"]),
        pinned=_flag(fields["pinned"]),
        blue_moved=_flag(fields["blue_moved"]),
        green_gone=_flag(fields["green_gone"]),
        renamed=_flag(fields["renamed"]),
        certified=tuple(_text(name, NAME_CHARS) for name in _items(fields["certified"])),
        source_reading=_reading(fields["source_reading"]),
        target_reading=_reading(fields["target_reading"]),
        source_read_only=_perhaps(fields["source_read_only"]),
        target_read_only=_perhaps(fields["target_read_only"]),
        green_was_read_only=_perhaps(fields["green_was_read_only"]),
        green_was_replica=_flag(fields["green_was_replica"]),
        blue_role_read_only=_perhaps(fields["blue_role_read_only"]),
        target_subscribes=_flag(fields["target_subscribes"]),
        target_max_connections=_integer(fields["target_max_connections"]),
        hosts=tuple(_host(*item) for item in _items(fields["hosts"])),
        twins=tuple((_text(b, NAME_CHARS), _text(g, NAME_CHARS)) for b, g in _items(fields["twins"])),
        deadline_ns=_integer(fields["deadline_ns"]),
        suspected_until_ns=_integer(fields["suspected_until_ns"]),
        told_until_ns=_integer(fields["told_until_ns"]),
        subscribed_until_ns=_integer(fields["subscribed_until_ns"]),
        hold_until_ns=_integer(fields["hold_until_ns"]),
        release_until_ns=_integer(fields["release_until_ns"]),
        timeline=tuple(
            TimelineEntry(_integer(mono), _integer(wall), _text(event, NAME_CHARS), _text(evidence, NAME_CHARS))
            for mono, wall, event, evidence in _items(fields["timeline"])
        ),
        notices=tuple(
            Notice(
                _integer(number),
                _integer(level),
                _text(logger, NAME_CHARS),
                _text(text, NOTICE_CHARS),
                _text(event, NAME_CHARS),
            )
            for number, level, logger, text, event in _items(fields["notices"])
        ),
        observations=tuple(_observation(*item) for item in _items(fields["observations"])),
        fleet=None if fields["fleet"] is None else _fleet(*_items(fields["fleet"])),
    )


def _host(name: object, port: object, role: object, addresses: object) -> Host:
    return Host(
        _text(name, NAME_CHARS),
        _integer(port),
        _ROLES[_integer(role)],
        tuple(_text(address, NAME_CHARS) for address in _items(addresses)),
    )


def _observation(
    user: object, host: object, port: object, database: object, visibility: object, at_ns: object, tries: object
) -> Observation:
    parameters = Parameters(
        _text(user, NAME_CHARS), _text(host, NAME_CHARS), _integer(port), _text(database, NAME_CHARS)
    )
    return Observation(parameters, Visibility(_integer(visibility)), _integer(at_ns), _integer(tries))


def _packed_fleet(view: FleetView) -> tuple[object, ...]:
    return (
        _STANDINGS.index(view.standing),
        view.leader,
        view.hosts,
        view.since_ns,
        # The text of a client or a server may be of any length: cut it, so that no reader refuses the snapshot.
        view.reason[:FLEET_TEXT_CHARS],
        view.fallbacks,
    )


def _fleet(
    standing: object, leader: object, hosts: object, since_ns: object, reason: object, fallbacks: object
) -> FleetView:
    return FleetView(
        _STANDINGS[_integer(standing)],
        _text(leader, NAME_CHARS),
        _integer(hosts),
        _integer(since_ns),
        _text(reason, FLEET_TEXT_CHARS),
        _integer(fallbacks),
    )


def _reading(value: object) -> Phase | None:
    return None if value is None else Phase(_integer(value))


def _items(value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise TypeError(f"an array was expected, not {type(value).__name__}")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"a whole number was expected, not {type(value).__name__}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"true or false was expected, not {type(value).__name__}")
    return value


def _perhaps(value: object) -> bool | None:
    return None if value is None else _flag(value)


def _text(value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise TypeError(f"a text of at most {most} characters was expected")
    return value

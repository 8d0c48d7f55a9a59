"""Encode and decode signed messages and reports. The signature is verified before anything else is read.

::

    0    signature   HMAC-SHA256 of the rest and of its context, 32 bytes; absent if unsigned messages are trusted
    32   format      one byte
    33   body        a msgpack map; unknown keys are ignored, so that a newer version may add some

The signature covers the format, the kind (a message, or a report of a host or an operator), the bg_id, the entry's id
(of a message) and the body. So signed bytes are not valid in any other context.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

import msgpack

from bgpool.core.events import Answered, MetadataAbsent, MetadataFailed, Order, ProbeFailed, StatusRead, StatusRow
from bgpool.core.fleet import NEVER, PLACES, Fact, FleetOrder, FleetRole, Message, Reading, Report
from bgpool.core.limits import ENDPOINTS, FLEET_HOSTS, FLEET_MISSING, FLEET_TEXT_CHARS, NAME_CHARS
from bgpool.core.phase import Phase, Role
from bgpool.fleet.bus import Entry

__all__ = ["FORMAT", "BadMessage", "seal", "seal_report", "unseal", "unseal_report"]

FORMAT: Final = 1
_MAC_BYTES: Final = 32
_MESSAGE: Final = b"message"
_REPORT: Final = b"report"
#: The maximum of rows of metadata, and of servers in a topology: a deployment's endpoints, plus those that it has just
#: lost.
_ROWS: Final = 2 * ENDPOINTS
#: The largest valid integer: a 64-bit id.
_MAX: Final = 2**64 - 1


class BadMessage(Exception):  # not a bgpool.Error: another host has written it
    """An entry that must be ignored.

    Attributes:
        kind: ``forged``, if it is not signed with a known key; ``damaged``; or ``future``, a format of a newer version.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def seal(message: Message, bg_id: str, keys: tuple[bytes, ...]) -> bytes:
    """Return *message* as bytes, signed with the first of *keys*; unsigned without keys."""
    body: dict[str, Any] = {
        "l": bytes.fromhex(message.leader),
        "t": message.issued_ns,
        "a": message.application,
        "d": message.deployment,
        "n": message.hosts,
        "w": message.whole,
        "r": message.read_ns,
    }
    if message.readings:
        body["f"] = [None if one is None else [_pack_fact(fact) for fact in one.facts] for one in message.readings]
    if message.order is not None:
        body["o"] = _pack_order(message.order)
    if message.resigns:
        body["x"] = True
    return _sign(_MESSAGE, bg_id, _id(message.term, message.seq), body, keys)


def unseal(entry: Entry, bg_id: str, keys: tuple[bytes, ...]) -> Message:
    """Return the message in *entry*, which must be signed with one of *keys*.

    Raises:
        BadMessage: It must be ignored.
    """
    body = _open(entry.payload, _MESSAGE, bg_id, _id(entry.term, entry.seq), keys)
    try:
        first, second = body["r"]
        readings = _readings(body.get("f"), (first, second))
        whole = _integer(body["w"])
        if bool(readings) is not (whole == entry.seq):
            raise ValueError
        return Message(
            entry.term,
            entry.seq,
            _member(body["l"]),
            _integer(body["t"]),
            _text(body["a"], NAME_CHARS),
            _integer(body["n"], 1, 100 * FLEET_HOSTS),
            whole,
            (_integer(first), _integer(second)),
            readings,
            _order(body["o"]) if body.get("o") is not None else None,
            body.get("x") is True,
            _text(body.get("d", ""), NAME_CHARS),
        )
    except (KeyError, ValueError, TypeError, IndexError):
        raise BadMessage("damaged") from None


def seal_report(told: Report | FleetOrder, bg_id: str, keys: tuple[bytes, ...]) -> bytes:
    """Return a host's or operator's report as bytes, signed like a message."""
    if isinstance(told, FleetOrder):
        return _sign(_REPORT, bg_id, b"", {"o": _pack_order(told)}, keys)
    body = {
        "m": bytes.fromhex(told.member),
        "h": _cut(told.host, NAME_CHARS),
        "p": bytes.fromhex(told.place),
        "v": _cut(told.version, NAME_CHARS),
        "t": told.issued_ns,
        "a": told.application,
        "s": told.phase.value,
        "k": [_cut(text) for text in told.missing[:FLEET_MISSING]],
        "w": told.workers,
        "d": told.held,
        "g": told.standing.value,
        "n": told.order,
        "c": told.clock_off_ms,
        "b": told.fallbacks,
        "u": told.refused,
        "z": told.nudged,
        "x": told.leaves,
    }
    return _sign(_REPORT, bg_id, b"", body, keys)


def unseal_report(payload: bytes, bg_id: str, keys: tuple[bytes, ...]) -> Report | FleetOrder:
    """Return a host's or operator's report.

    Raises:
        BadMessage: It must be ignored.
    """
    body = _open(payload, _REPORT, bg_id, b"", keys)
    try:
        if body.get("o") is not None:
            return _order(body["o"])
        off_ms = body["c"]
        return Report(
            _member(body["m"]),
            _text(body["h"], NAME_CHARS),
            _member(body["p"]),
            _text(body["v"], NAME_CHARS),
            _integer(body["t"]),
            _text(body["a"], NAME_CHARS),
            Phase(_integer(body["s"])),
            tuple(_text(text, FLEET_TEXT_CHARS) for text in _items(body["k"], FLEET_MISSING)),
            _integer(body["w"]),
            _integer(body["d"]),
            FleetRole(body["g"]),
            _text(body["n"], NAME_CHARS),
            None if off_ms is None else _integer(off_ms, -_MAX),
            _integer(body["b"]),
            _integer(body["u"]),
            body["z"] is True,
            body["x"] is True,
        )
    except (KeyError, ValueError, TypeError, IndexError):
        raise BadMessage("damaged") from None


# -- signatures ---------------------------------------------------------------------------------------------------


def _sign(kind: bytes, bg_id: str, place: bytes, body: Mapping[str, Any], keys: tuple[bytes, ...]) -> bytes:
    signed: bytes = bytes([FORMAT]) + msgpack.packb(body)
    return _mac(keys[0], kind, bg_id, place, signed) + signed if keys else signed


def _open(payload: bytes, kind: bytes, bg_id: str, place: bytes, keys: tuple[bytes, ...]) -> dict[str, Any]:
    """Return the body of *payload* after verifying its signature."""
    signed = payload
    if keys:
        found, signed = payload[:_MAC_BYTES], payload[_MAC_BYTES:]
        if not any(hmac.compare_digest(found, _mac(key, kind, bg_id, place, signed)) for key in keys):
            raise BadMessage("forged")
    if not signed:
        raise BadMessage("damaged")
    if signed[0] != FORMAT:
        # There is no lower format; without a signature the bytes may be anything.
        raise BadMessage("future" if signed[0] > FORMAT else "damaged")
    try:
        body = msgpack.unpackb(
            signed[1:],
            use_list=False,
            strict_map_key=True,
            max_map_len=64,
            max_array_len=_ROWS,
            max_str_len=4 * FLEET_TEXT_CHARS,
            max_bin_len=64,
            max_ext_len=0,
        )
    # Hostile bytes can cause any of these in msgpack; for the reader all are the same error.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise BadMessage("damaged") from None
    if not isinstance(body, dict):
        raise BadMessage("damaged")
    return body


def _mac(key: bytes, kind: bytes, bg_id: str, place: bytes, signed: bytes) -> bytes:
    name = bg_id.encode()
    # Each part except the last has a known length or is prefixed with it, so that no two inputs have the same bytes.
    head = (
        b"bgpool fleet\0" + kind + b"\0" + len(name).to_bytes(4, "big") + name + len(place).to_bytes(1, "big") + place
    )
    return hmac.digest(key, head + signed, hashlib.sha256)


def _id(term: int, seq: int) -> bytes:
    return term.to_bytes(8, "big") + seq.to_bytes(8, "big")


# -- parts --------------------------------------------------------------------------------------------------------


def _pack_fact(fact: Fact) -> list[Any]:
    match fact:
        case Answered():
            flags = (fact.read_only, fact.replica, fact.role_read_only, fact.subscribes)
            return ["A", sum(flag << place for place, flag in enumerate(flags)), fact.max_connections]
        case StatusRead():
            rows = [
                (
                    _cut(row.endpoint, NAME_CHARS),
                    row.port,
                    _cut(row.role),
                    _cut(row.status),
                    _cut(row.version, NAME_CHARS),
                )
                for row in fact.rows[:_ROWS]
            ]
            return ["S", rows, [_cut(server, NAME_CHARS) for server in fact.servers[:_ROWS]]]
        case MetadataAbsent():
            return ["M", _cut(fact.remedy)]
        case MetadataFailed():
            return ["E", _cut(fact.error)]
        case ProbeFailed():
            return ["P", _cut(fact.error), fact.refused]


def _readings(packed: object, read_ns: tuple[object, object]) -> tuple[Reading | None, ...]:
    if packed is None:
        return ()
    readings = _items(packed, len(PLACES))
    if len(readings) != len(PLACES):
        raise ValueError
    return tuple(
        None if one is None else _reading(role, one, _integer(at_ns))
        for role, one, at_ns in zip(Role, readings, read_ns, strict=True)
    )


def _reading(role: Role, packed: object, read_ns: int) -> Reading | None:
    """Return a reading; None if it has content that this version does not know."""
    facts = [_fact(role, *_items(one, 16)) for one in _items(packed, 16)]
    if None in facts:
        return None
    known = tuple(fact for fact in facts if fact is not None)
    alone = len(known) == 1 and isinstance(known[0], ProbeFailed)
    answered = len(known) == 2 and isinstance(known[0], Answered) and not isinstance(known[1], (Answered, ProbeFailed))
    if not (alone or answered):
        raise ValueError
    return Reading(known, read_ns)


def _fact(role: Role, kind: object, *values: Any) -> Fact | None:
    """Return a fact; None for an unknown kind. Values that a newer version adds at the end are ignored."""
    match kind:
        case "A":
            flags, most, *_ = values
            bits = [bool(_integer(flags) >> place & 1) for place in range(4)]
            return Answered(NEVER, role, bits[0], bits[1], _integer(most), role_read_only=bits[2], subscribes=bits[3])
        case "S":
            rows, servers, *_ = values
            return StatusRead(
                NEVER,
                role,
                tuple(_row(*_items(row, 16)[:5]) for row in _items(rows, _ROWS)),
                tuple(_text(server, NAME_CHARS) for server in _items(servers, _ROWS)),
            )
        case "M":
            remedy, *_ = values
            return MetadataAbsent(NEVER, role, _text(remedy, FLEET_TEXT_CHARS))
        case "E":
            error, *_ = values
            return MetadataFailed(NEVER, role, _text(error, FLEET_TEXT_CHARS))
        case "P":
            error, refused, *_ = values
            return ProbeFailed(NEVER, role, _text(error, FLEET_TEXT_CHARS), refused is True)
        case _:
            return None


def _row(endpoint: object, port: object, role: object, status: object, version: object) -> StatusRow:
    return StatusRow(
        _text(endpoint, NAME_CHARS),
        _integer(port, 0, 65_535),
        _text(role, FLEET_TEXT_CHARS),
        _text(status, FLEET_TEXT_CHARS),
        _text(version, NAME_CHARS),
    )


def _pack_order(order: FleetOrder) -> tuple[str, str, int]:
    return order.number, order.order.value, order.until_ns


def _order(packed: object) -> FleetOrder:
    number, order, until_ns, *_ = _items(packed, 16)
    return FleetOrder(_text(number, NAME_CHARS), Order(order), _integer(until_ns))


def _member(value: object) -> str:
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError
    return value.hex()


def _integer(value: object, least: int = 0, most: int = _MAX) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError
    return value


def _text(value: object, chars: int) -> str:
    if not isinstance(value, str) or len(value) > chars:
        raise ValueError
    # It is written to logs and terminals, and if unsigned messages are trusted, any client may have written it.
    return _line(value)


def _items(value: object, most: int) -> tuple[Any, ...]:
    if not isinstance(value, tuple) or len(value) > most:
        raise ValueError
    return value


def _cut(text: str, chars: int = FLEET_TEXT_CHARS) -> str:
    """Return *text* in one line, with at most *chars* characters."""
    return _line(text)[:chars]


def _line(text: str) -> str:
    """Return *text* in one line of printable characters that can be encoded as UTF-8."""
    if text.isprintable():
        return text
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())

"""Messages and reports as bytes: what comes back is what went, and nothing else is believed or breaks anything."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as some

from bgpool.core.events import Answered, MetadataAbsent, MetadataFailed, Order, ProbeFailed, StatusRead, StatusRow
from bgpool.core.fleet import NEVER, FleetOrder, FleetRole, Message, Reading, Report
from bgpool.core.limits import FLEET_ENTRY_BYTES, FLEET_MISSING, FLEET_TEXT_CHARS, NAME_CHARS
from bgpool.core.phase import Phase, Role
from bgpool.fleet.bus import Entry
from bgpool.fleet.messages import FORMAT, BadMessage, _id, _mac, seal, seal_report, unseal, unseal_report

KEY, OTHER = b"k" * 32, b"o" * 32
SIGNED, TRUSTED = (KEY,), ()
MAC_BYTES = 32
S = 1_000_000_000
NOW = 1_800_000_000 * S
BLUE, GREEN = "ledger.c0abc.eu-west-1.rds.amazonaws.com", "ledger-green-a1b2c3.c0abc.eu-west-1.rds.amazonaws.com"

every_trust = pytest.mark.parametrize("keys", [SIGNED, TRUSTED], ids=["signed", "trusted"])


def rows(count: int = 2) -> tuple[StatusRow, ...]:
    names = [BLUE, GREEN] * (count // 2)
    return tuple(StatusRow(name, 5432, Role.SOURCE.value, "AVAILABLE", "1.0") for name in names)


def answered(role: Role, *more: Any) -> Reading:
    return Reading((Answered(NEVER, role, True, False, 413, subscribes=True), *more), NOW)


ORDER = FleetOrder(f"{NOW:020d}-0f0f", Order.HOLD, NOW + 60 * S)
SEEN = answered(Role.SOURCE, StatusRead(NEVER, Role.SOURCE, rows()))
BLIND = answered(Role.TARGET, MetadataAbsent(NEVER, Role.TARGET, "GRANT it"))
WHOLE = Message(1_800_000_000, 7, "0123456789abcdef", NOW, "5af1" * 4, 30, 7, (NOW, NOW), (SEEN, BLIND), ORDER)
BEAT = replace(WHOLE, seq=8, readings=(), order=None)
REPORT = Report(
    "0123456789abcdef",
    "ip-10-0-0-1",
    "fedcba9876543210",
    "0.9.0",
    NOW,
    "5af1" * 4,
    Phase.CREATED,
    ("the login is refused",),
    8,
    0,
    FleetRole.FOLLOWER,
    ORDER.number,
    -250,
)


def entry(message: Message, keys: tuple[bytes, ...] = SIGNED, bg_id: str = "ledger") -> Entry:
    return Entry(message.term, message.seq, seal(message, bg_id, keys))


def refused(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(BadMessage) as caught:
        function(*arguments)
    return caught.value.kind


def body_of(payload: bytes) -> dict[str, Any]:
    return dict(msgpack.unpackb(payload[1:]))


def with_body(body: object) -> bytes:
    """Return *body* as a trusted host would send it."""
    return bytes([FORMAT]) + bytes(msgpack.packb(body))


# -- there and back -----------------------------------------------------------------------------------------------

#: Printable lines, like all texts that are sealed.
lines = some.text(some.characters(exclude_categories=["C", "Z"]), max_size=40)
words = some.one_of(lines, some.just("x" * FLEET_TEXT_CHARS))
names = some.one_of(some.sampled_from([BLUE, GREEN]), lines, some.just("n" * NAME_CHARS))
members = some.binary(min_size=8, max_size=8).map(bytes.hex)
numbers = some.integers(0, 2**64 - 1)
counts = some.integers(0, 2**32)
flags = some.booleans()
orders = some.builds(FleetOrder, names, some.sampled_from(Order), numbers)


def readings(role: Role) -> some.SearchStrategy[Reading | None]:
    never, its = some.just(NEVER), some.just(role)
    row = some.builds(StatusRow, names, some.integers(0, 65_535), words, words, names)
    metadata = some.one_of(
        some.builds(
            StatusRead,
            never,
            its,
            some.lists(row, max_size=5).map(tuple),
            some.lists(names, max_size=3).map(tuple),
        ),
        some.builds(MetadataAbsent, never, its, words),
        some.builds(MetadataFailed, never, its, words),
    )
    answers = some.builds(Answered, never, its, flags, flags, counts, flags, flags)
    facts = some.one_of(
        some.tuples(answers, metadata), some.builds(ProbeFailed, never, its, words, flags).map(lambda fact: (fact,))
    )
    return some.one_of(some.none(), some.builds(Reading, facts, numbers))


@some.composite
def messages(draw: some.DrawFn) -> Message:
    seq = draw(numbers)
    is_whole = draw(flags)
    told = (draw(readings(Role.SOURCE)), draw(readings(Role.TARGET))) if is_whole else ()
    read_ns = (told[0].read_ns if told and told[0] else draw(numbers), told[1].read_ns if told and told[1] else 0)
    whole = seq if is_whole else draw(numbers.filter(lambda number: number != seq))
    return Message(
        draw(numbers.filter(bool)),
        seq,
        draw(members),
        draw(numbers),
        draw(names),
        draw(some.integers(1, 100_000)),
        whole,
        read_ns,
        told,
        draw(some.none() | orders),
        draw(flags),
    )


reports = some.builds(
    Report,
    members,
    names,
    members,
    names,
    numbers,
    names,
    some.sampled_from(Phase),
    some.lists(words, max_size=FLEET_MISSING).map(tuple),
    counts,
    counts,
    some.sampled_from(FleetRole),
    names,
    some.none() | some.integers(-(2**40), 2**40),
    counts,
    counts,
    flags,
    flags,
)


@every_trust
@given(message=messages())
def test_a_message_comes_back_as_it_was(keys: tuple[bytes, ...], message: Message) -> None:
    assert unseal(entry(message, keys), "ledger", keys) == message


@every_trust
@given(told=some.one_of(reports, orders))
def test_a_report_comes_back_as_it_was(keys: tuple[bytes, ...], told: Report | FleetOrder) -> None:
    assert unseal_report(seal_report(told, "ledger", keys), "ledger", keys) == told


def test_sizes() -> None:
    """Each host receives two messages a second, and ten in a switchover, so messages must be small."""
    assert len(seal(BEAT, "ledger", SIGNED)) <= 110
    assert len(seal(WHOLE, "ledger", SIGNED)) <= 600
    assert len(seal_report(REPORT, "ledger", SIGNED)) <= 220
    # Aurora: sixteen instances and four endpoints of each side, told by both.
    aurora = StatusRead(NEVER, Role.SOURCE, rows(40), tuple(f"ledger-{number:02d}" for number in range(16)))
    large = replace(
        WHOLE, readings=(answered(Role.SOURCE, aurora), answered(Role.TARGET, replace(aurora, role=Role.TARGET)))
    )
    assert len(seal(large, "ledger", SIGNED)) < FLEET_ENTRY_BYTES / 4


def test_texts_are_cut_to_one_line() -> None:
    """Errors are a server's and a driver's words; they end in logs and on terminals."""
    long = ProbeFailed(
        NEVER, Role.SOURCE, "connection refused\n\tIs the server\x1b[31m running?" + "é" * FLEET_TEXT_CHARS
    )
    message = replace(WHOLE, readings=(Reading((long,), NOW), None))
    heard = unseal(entry(message), "ledger", SIGNED).readings[0]
    assert heard is not None
    fact = heard.facts[0]
    assert isinstance(fact, ProbeFailed)
    assert fact.error.startswith("connection refused Is the server [31m running?éé")
    assert len(fact.error) == FLEET_TEXT_CHARS
    # A host's name may be any bytes.
    told = unseal_report(seal_report(replace(REPORT, host="caf\udce9"), "ledger", SIGNED), "ledger", SIGNED)
    assert isinstance(told, Report)
    assert told.host == "caf"


def test_texts_of_others_are_one_line_too() -> None:
    """If unsigned messages are trusted, another client may have sealed the text."""
    body = body_of(seal_report(REPORT, "ledger", TRUSTED))
    body["k"] = ["all is well\n2026-01-01 ERROR bgpool \x1b[2J"]
    told = unseal_report(with_body(body), "ledger", TRUSTED)
    assert isinstance(told, Report)
    assert told.missing == ("all is well 2026-01-01 ERROR bgpool [2J",)


def test_more_reasons_than_the_limit() -> None:
    told = unseal_report(seal_report(replace(REPORT, missing=("reason",) * 20), "ledger", SIGNED), "ledger", SIGNED)
    assert isinstance(told, Report)
    assert len(told.missing) == FLEET_MISSING


# -- who has sealed it --------------------------------------------------------------------------------------------


def test_no_byte_can_be_changed() -> None:
    payload = seal(WHOLE, "ledger", SIGNED)
    for place in range(len(payload)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(payload)
            changed[place] ^= change
            assert refused(unseal, Entry(WHOLE.term, WHOLE.seq, bytes(changed)), "ledger", SIGNED) == "forged"


@every_trust
def test_none_is_missing(keys: tuple[bytes, ...]) -> None:
    payload, report = seal(WHOLE, "ledger", keys), seal_report(REPORT, "ledger", keys)
    kind = "forged" if keys else "damaged"
    for length in range(len(payload)):
        assert refused(unseal, Entry(WHOLE.term, WHOLE.seq, payload[:length]), "ledger", keys) == kind
    for length in range(len(report)):
        assert refused(unseal_report, report[:length], "ledger", keys) == kind
    # Nor is there one too many.
    assert refused(unseal, Entry(WHOLE.term, WHOLE.seq, payload + b"\0"), "ledger", keys) == kind


def test_what_was_signed_is_nothing_else() -> None:
    payload, report = seal(BEAT, "ledger", SIGNED), seal_report(REPORT, "ledger", SIGNED)
    # Another place in the stream, also with the same bytes shifted from the term to the number.
    assert refused(unseal, Entry(BEAT.term, BEAT.seq + 1, payload), "ledger", SIGNED) == "forged"
    assert refused(unseal, Entry(BEAT.term + 1, BEAT.seq, payload), "ledger", SIGNED) == "forged"
    assert refused(unseal, Entry(BEAT.seq, BEAT.term, payload), "ledger", SIGNED) == "forged"
    # Another deployment.
    assert refused(unseal, Entry(BEAT.term, BEAT.seq, payload), "ledger2", SIGNED) == "forged"
    assert refused(unseal_report, report, "ledge", SIGNED) == "forged"
    # A report as a message, and the other way round.
    assert refused(unseal, Entry(BEAT.term, BEAT.seq, report), "ledger", SIGNED) == "forged"
    assert refused(unseal_report, payload, "ledger", SIGNED) == "forged"


def test_without_the_key() -> None:
    assert refused(unseal, entry(WHOLE, (OTHER,)), "ledger", SIGNED) == "forged"
    assert refused(unseal, entry(WHOLE, TRUSTED), "ledger", SIGNED) == "forged"
    assert refused(unseal_report, seal_report(ORDER, "ledger", TRUSTED), "ledger", SIGNED) == "forged"
    # Who has no key does not take the signature for a message either.
    assert refused(unseal, entry(WHOLE, SIGNED), "ledger", TRUSTED) in ("damaged", "future")


def test_a_change_of_key() -> None:
    """Three roll-outs, each with hosts that have had it and hosts that have not."""
    old, both, turned, new = (KEY,), (KEY, OTHER), (OTHER, KEY), (OTHER,)
    for before, after in ((old, both), (both, turned), (turned, new)):
        for writer, reader in ((before, after), (after, before), (before, before), (after, after)):
            assert unseal(entry(WHOLE, writer), "ledger", reader) == WHOLE
            assert unseal_report(seal_report(REPORT, "ledger", writer), "ledger", reader) == REPORT
    assert refused(unseal, entry(WHOLE, new), "ledger", old) == "forged"


# -- other versions -----------------------------------------------------------------------------------------------


def test_what_a_newer_version_adds_is_passed_over() -> None:
    body = body_of(seal(WHOLE, "ledger", TRUSTED))
    body |= {"new": {"and": ["nested", b"bytes", 1.5]}, "q": None}
    for fact in body["f"][0]:
        fact.append("more")
    body["o"].append("more")
    body["f"][0][1][1][0].append("more")
    assert unseal(Entry(WHOLE.term, WHOLE.seq, with_body(body)), "ledger", TRUSTED) == WHOLE
    body = body_of(seal_report(REPORT, "ledger", TRUSTED)) | {"new": 1}
    assert unseal_report(with_body(body), "ledger", TRUSTED) == REPORT


def test_a_fact_that_is_not_known_makes_its_role_unknown() -> None:
    """The host asks that server itself; the other reading is used."""
    body = body_of(seal(WHOLE, "ledger", TRUSTED))
    body["f"][0].append(["Q", 1, 2, 3])
    heard = unseal(Entry(WHOLE.term, WHOLE.seq, with_body(body)), "ledger", TRUSTED)
    assert heard == replace(WHOLE, readings=(None, WHOLE.readings[1]))


@every_trust
def test_a_newer_format(keys: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is distinguished from damage, because the remedy is to upgrade the host, not to repair the bus or the key."""
    with monkeypatch.context() as later:
        later.setattr("bgpool.fleet.messages.FORMAT", FORMAT + 1)
        payload, report = seal(WHOLE, "ledger", keys), seal_report(REPORT, "ledger", keys)
    assert refused(unseal, Entry(WHOLE.term, WHOLE.seq, payload), "ledger", keys) == "future"
    assert refused(unseal_report, report, "ledger", keys) == "future"


@pytest.mark.parametrize(
    "change",
    [
        {"r": [1]},
        {"r": [1, 2, 3]},
        {"r": [1, -2]},
        {"l": b"seven b"},
        {"l": "01234567"},
        {"n": 0},
        {"n": 10**9},
        {"n": True},
        {"w": 6},
        {"t": 1.0},
        {"a": "x" * (NAME_CHARS + 1)},
        {"f": []},
        {"f": [None]},
        {"f": [None, None, None]},
        {"f": [[], None]},
        {"f": [[["P", "error", False]] * 2, None]},
        {"f": [[["A", 0, 1]], None]},
        {"f": [[["A", 0, 1], ["P", "error", False]], None]},
        {"f": [[["S", [], []], ["A", 0, 1]], None]},
        {"f": [[["A", 0, 1], ["S", [[BLUE, 65_536, "a", "b", "c"]], []]], None]},
        {"f": [[["A", 0, 1], ["S", [[BLUE, 1, "a", "b"]], []]], None]},
        {"o": ["1", "dance", 1]},
        {"o": ["1", "hold"]},
        {"o": ["1", {"hold": 1}, 1]},
    ],
)
def test_what_does_not_fit_is_damaged(change: dict[str, Any]) -> None:
    body = body_of(seal(WHOLE, "ledger", TRUSTED)) | change
    assert refused(unseal, Entry(WHOLE.term, WHOLE.seq, with_body(body)), "ledger", TRUSTED) == "damaged"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        bytes([FORMAT]),
        with_body([1]),
        with_body(None),
        with_body({1: 2}),
        with_body({"l": msgpack.ExtType(5, b"abc")}),
        # Lengths that are not there, of everything that has one; and a depth without end.
        *(bytes([FORMAT, code]) + b"\xff" * 4 for code in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF)),
        bytes([FORMAT]) + b"\x91" * 60_000,
        bytes([FORMAT]) + b"\x81\xa1a" * 20_000,
    ],
    ids=lambda payload: payload[:6].hex(),
)
def test_what_is_no_message_is_damaged(payload: bytes) -> None:
    assert refused(unseal, Entry(1, 1, payload), "ledger", TRUSTED) == "damaged"
    assert refused(unseal_report, payload, "ledger", TRUSTED) == "damaged"


# -- anything -----------------------------------------------------------------------------------------------------

#: Places at which a body may be changed, and what may stand there then.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 65_536, 2**63, 2**64 - 1, -(2**63), 0.0, float("nan"), float("inf"), "", "A", "S",
    "hold", "\x1b[2J\n", "é" * 600, b"", b"01234567", b"\xff" * 64, (), [], {}, [None, None], [["A", 0, 1]], {"a": {}},
    [[]] * 128, [0] * 129, msgpack.ExtType(1, b""), msgpack.Timestamp(0, 0), "x" * 3000, b"x" * 65,
)  # fmt: skip


class Fuzzer:
    """Makes payloads that are almost right."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sealed = [seal(message, "ledger", TRUSTED) for message in (WHOLE, BEAT)]
        self.sealed += [seal_report(told, "ledger", TRUSTED) for told in (REPORT, ORDER)]

    def payload(self) -> bytes:
        kind = self.random.random()
        if kind < 0.05:
            return self.random.randbytes(self.random.randrange(200))
        sealed = self.random.choice(self.sealed)
        return self.scratched(sealed) if kind < 0.4 else with_body(self.changed(body_of(sealed)))

    def scratched(self, sealed: bytes) -> bytes:
        """*sealed* with bytes that are others, gone, or there twice."""
        scratched = bytearray(sealed)
        for _ in range(self.random.randrange(1, 4)):
            place = self.random.randrange(1, len(scratched))
            match self.random.randrange(4):
                case 0:
                    scratched[place] = self.random.randrange(256)
                case 1:
                    scratched[place] ^= 1 << self.random.randrange(8)
                case 2:
                    del scratched[place : place + self.random.randrange(1, 8)]
                case _:
                    scratched[place:place] = scratched[place : place + self.random.randrange(1, 8)]
            if len(scratched) < 2:
                break
        return bytes(scratched)

    def changed(self, item: Any) -> Any:
        """*item* with something in it that is something else."""
        if not isinstance(item, (dict, list)) or not item or self.random.random() < 0.05:
            return self.random.choice(ODD)
        if isinstance(item, dict):
            key = self.random.choice(list(item))
            match self.random.randrange(8):
                case 0:
                    del item[key]
                case 1:
                    item[self.random.choice("abcdefghklmnoprstuvwxyz")] = item[key]
                case _:
                    item[key] = self.changed(item[key])
            return item
        place = self.random.randrange(len(item))
        match self.random.randrange(8):
            case 0:
                del item[place]
            case 1:
                item.insert(place, self.random.choice(ODD))
            case _:
                item[place] = self.changed(item[place])
        return item


def is_sound(told: Message | Report | FleetOrder) -> bool:
    """Return whether the core may receive the decoded value."""
    if isinstance(told, FleetOrder):
        return told.number.isprintable() and told.until_ns >= 0
    if isinstance(told, Report):
        texts = (told.host, told.version, *told.missing)
        return all(text.isprintable() and len(text) <= FLEET_TEXT_CHARS for text in texts) and told.issued_ns >= 0
    facts = [fact for reading in told.readings if reading is not None for fact in reading.facts]
    return all(fact.at == NEVER for fact in facts) and len(told.readings) in (0, 2)


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.full)])
@every_trust
def test_nothing_but_a_refusal_comes_of_anything(keys: tuple[bytes, ...], count: int) -> None:
    """With a key: signed by a malicious client that has it, or damaged after signing."""
    fuzzer, told = Fuzzer(count), Counter[str]()
    places = [(WHOLE.term, WHOLE.seq), (BEAT.term, BEAT.seq)]
    for number in range(count):
        payload = fuzzer.payload()
        term, seq = places[number % 2]
        is_intact = bool(keys) and number % 4 < 2
        message, report = (sealed_as_it_is(payload, kind, term, seq) for kind in (b"message", b"report"))
        if not is_intact:
            message = report = payload
        for come in (
            outcome(unseal, Entry(term, seq, message), "ledger", keys),
            outcome(unseal_report, report, "ledger", keys),
        ):
            told[come if isinstance(come, str) else "used"] += 1
            if keys:
                assert is_intact is (come != "forged")
            assert isinstance(come, str) or is_sound(come), come
    # What is tried gets far enough to be worth it.
    assert told["used"] > count / 50, told
    assert told["damaged"] > count / 4, told


def outcome(function: Callable[..., Message | Report | FleetOrder], *arguments: object) -> Any:
    """Return the result of *function*, or the reason of its refusal."""
    try:
        return function(*arguments)
    except BadMessage as refusal:
        return refusal.kind


def sealed_as_it_is(payload: bytes, kind: bytes, term: int, seq: int) -> bytes:
    """*payload* under a signature that is good."""
    place = _id(term, seq) if kind == b"message" else b""
    return _mac(KEY, kind, "ledger", place, payload) + payload

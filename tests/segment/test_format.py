"""Format 5, byte for byte, and the handling of invalid bytes."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.limits import FLEET_TEXT_CHARS
from bgpool.core.observations import Observation, Parameters, Visibility
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Notice, Snapshot, TimelineEntry
from bgpool.errors import SegmentError
from bgpool.segment import layout
from bgpool.segment.codec import decode, encode
from bgpool.segment.paths import RunFiles, look_in, open_checked, prepare_run_dir
from bgpool.segment.reader import Reader, SegmentMap
from bgpool.segment.writer import Writer

# Changing these means that the format has changed, and with it the number in the header.
GOLDEN_HEADER = (
    "4247504f4f4c0d0a 05000000 00000400 0700000000000000 2a00000000000000"
    "000102030405060708090a0b0c0d0e0f a63b3c5e 000000000000000000000000"
)
#: Sequence, heartbeat, superseded and bus at 64, 128, 192 and 256: native words, here those of little-endian machines.
GOLDEN_WORDS = "ffffffffffffffff" + "00" * 56 + "efcdab0000000000" + "00" * 56 + "0200000000000000" + "00" * 56
GOLDEN_WORDS += "1032547600000000" + "00" * 56
GOLDEN_SLOT = "05000000 b461fc12 0900000000000000 68656c6c6f"
#: The format, and a digest of FULL as that format encodes it.
GOLDEN_PAYLOAD = (5, "9556048176e74e2f")
GOLDEN_PAYLOAD_START = "de001fa562675f6964a66f7264657273a57068617365"


FULL = Snapshot(
    "orders",
    Phase.POST,
    ready=True,
    certified=("green",),
    source_reading=Phase.POST,
    source_read_only=True,
    hosts=(Host("blue", 5432, Role.SOURCE, ("10.0.0.1",)), Host("green", 5432, Role.TARGET, ("::1", "10.0.0.2"))),
    twins=(("blue", "green"),),
    deadline_ns=2**60,
    timeline=(TimelineEntry(1, 2, "CREATED", "metadata"),),
    notices=(Notice(1, 20, "bgpool.switchover", "ready", "ready"),),
    observations=(Observation(Parameters("app", "blue", 5432, "orders"), Visibility.SEEN, 1),),
    fleet=FleetView(FleetRole.FOLLOWER, "web-2", 30, 5, "", 1),
)


def test_golden_header() -> None:
    packed = layout.pack_header(layout.Header(term=7, pid=42, boot_id=bytes(range(16))))
    assert packed.hex() == GOLDEN_HEADER.replace(" ", "")
    assert layout.unpack_header(packed) == layout.Header(7, 42, bytes(range(16)))


@pytest.mark.skipif(sys.byteorder != "little", reason="the words are native")
def test_golden_words(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 0xABCDEF)
    Writer(files, 1, Snapshot("orders")).note_bus(0x76543210)
    old = SegmentMap(files)
    Writer(files, 2, Snapshot("orders"))
    assert bytes(old.view[64:320]).hex() == GOLDEN_WORDS


def test_when_the_fleet_was_heard(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000_000_000)
    writer = Writer(files, 1, Snapshot("orders"))
    mapped = SegmentMap(files)
    assert mapped.bus_age_s() is None, "never"
    writer.note_bus(4_250_000_000)
    assert mapped.bus_age_s() == 0.75
    assert mapped.word[0] == writer.sequence, "no waiter is woken for it"
    writer.note_bus(6_000_000_000)
    assert mapped.bus_age_s() is None, "in the future: on another clock"
    # What a monitor has heard is nothing that the next one has.
    writer.note_bus(4_250_000_000)
    Writer(files, 2, Snapshot("orders"))
    assert SegmentMap(files).bus_age_s() is None


def test_golden_slot() -> None:
    packed = layout.pack_slot(9, b"hello")
    assert packed.hex() == GOLDEN_SLOT.replace(" ", "")
    assert layout.unpack_slot(memoryview(packed), 9) == b"hello"
    assert layout.unpack_slot(memoryview(packed), 10) is None


def test_golden_payload(snapshot: Snapshot) -> None:
    assert encode(snapshot).hex().startswith(GOLDEN_PAYLOAD_START)
    assert decode(encode(snapshot)) == snapshot


@pytest.mark.parametrize("standing", FleetRole)
def test_a_place_in_a_fleet(standing: FleetRole, snapshot: Snapshot) -> None:
    """A reason is a text of a server or a client: of any length, no reader refuses the snapshot for it."""
    view = FleetView(standing, "web-2", 30, 5, "x" * (FLEET_TEXT_CHARS + 1), 1)
    found = decode(encode(replace(snapshot, fleet=view)))
    assert found == replace(snapshot, fleet=replace(view, reason="x" * FLEET_TEXT_CHARS))


@pytest.mark.parametrize(
    "fleet", [7, [], [3, "", 0, 0, "", 0], [0, "", -1, 0, "", 0], [0, "x" * 300, 0, 0, "", 0], [0, "", 0, 0, ""]]
)
def test_a_place_that_is_none_is_refused(fleet: object) -> None:
    fields = msgpack.unpackb(encode(FULL))
    fields["fleet"] = fleet
    with pytest.raises(SegmentError):
        decode(msgpack.packb(fields))


def test_the_number_of_the_format_changes_with_the_payload() -> None:
    """A version that cannot read another's payload must detect it by the header."""
    digest = hashlib.sha256(encode(FULL)).hexdigest()[:16]
    assert (layout.FORMAT, digest) == GOLDEN_PAYLOAD


@pytest.mark.parametrize(
    ("version", "kind"), [(layout.FORMAT + 1, layout.FutureFormat), (layout.FORMAT - 1, SegmentError)]
)
def test_another_format_is_refused(version: int, kind: type[SegmentError], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layout, "FORMAT", version)
        packed = layout.pack_header(layout.Header(1, 1, bytes(16)))
    with pytest.raises(kind, match=f"format {version}") as caught:
        layout.unpack_header(packed)
    assert caught.type is kind


def test_too_large_a_snapshot_is_refused() -> None:
    with pytest.raises(SegmentError, match="does not fit"):
        layout.pack_slot(1, b"x" * layout.SLOT_BYTES)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_snapshot(data: bytes) -> None:
    with pytest.raises(SegmentError):
        decode(data)


@pytest.mark.once
@settings(max_examples=300)
@given(
    st.sampled_from(sorted(msgpack.unpackb(encode(Snapshot("1"))))),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
)
def test_a_wrong_value_is_refused_or_harmless(key: str, value: object) -> None:
    fields = msgpack.unpackb(encode(Snapshot("1")))
    fields[key] = value
    try:
        found = decode(msgpack.packb(fields))
    except SegmentError:
        return
    assert encode(found)


@pytest.mark.once
@settings(max_examples=1000)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=4))
def test_mutated_snapshots_are_refused_or_harmless(mutations: list[tuple[int, bytes, int]]) -> None:
    """Bytes that almost are a snapshot, as no checksum would let them through."""
    payload = encode(FULL)
    for position, inserted, removed in mutations:
        at = position % (len(payload) + 1)
        payload = payload[:at] + inserted + payload[at + removed :]
    try:
        found = decode(payload)
    except SegmentError:
        return
    assert decode(encode(found)) == found


def test_bombs_are_refused() -> None:
    for bomb in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 100_000):
        with pytest.raises(SegmentError):
            decode(bomb)


@pytest.mark.once
def test_no_flipped_byte_makes_another_snapshot(files: RunFiles, snapshot: Snapshot) -> None:
    """Every byte of header, words and payload, and every 997th of the rest."""
    writer = Writer(files, 1, Snapshot("orders"))
    writer.publish(snapshot)
    good = files.segment.read_bytes()
    slot = layout.slot_offset(writer.sequence)
    used = layout.SLOT_HEADER.size + len(encode(snapshot))
    offsets = [*range(320), *range(slot, slot + used + 8), *range(320, layout.FILE_BYTES, 997)]
    rng = random.Random(1)
    refused = 0
    for offset in offsets:
        broken = bytearray(good)
        broken[offset] ^= rng.randrange(1, 256)
        with files.segment.open("r+b") as file:
            file.write(broken)
        found = Reader(files).refresh().snapshot
        assert found in (None, snapshot), f"byte {offset} flipped makes {found}"
        refused += found is None
    # The whole of the header, the sequence word and the slot in use are covered.
    assert refused >= 64 + 8 + used


@pytest.mark.parametrize("size", [0, 100, layout.FILE_BYTES - 1, layout.FILE_BYTES + 1])
def test_a_file_of_another_size_is_refused(
    files: RunFiles, snapshot: Snapshot, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    Writer(files, 1, snapshot)
    os.truncate(files.segment, size)
    reader = Reader(files)
    for _ in range(3):
        assert reader.refresh().snapshot is None
    assert len([r for r in caplog.records if "segment is refused" in r.getMessage()]) == 1


def test_a_segment_of_another_boot_is_refused(
    files: RunFiles, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    Writer(files, 1, snapshot)
    monkeypatch.setattr("bgpool.segment.reader.boot_id", lambda: bytes(range(16)))
    with pytest.raises(SegmentError, match="another boot"):
        SegmentMap(files)


def test_links_fifos_modes_and_owners_are_refused(files: RunFiles, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch(0o600)
    files.segment.symlink_to(elsewhere)
    with pytest.raises(SegmentError, match="cannot be opened"):
        open_checked(files.segment, os.O_RDONLY)
    files.segment.unlink()
    os.mkfifo(files.segment, 0o600)
    with pytest.raises(SegmentError, match="not a regular file"):
        open_checked(files.segment, os.O_RDONLY)
    files.segment.unlink()
    files.segment.touch()
    files.segment.chmod(0o644)
    with pytest.raises(SegmentError, match="mode 0644"):
        open_checked(files.segment, os.O_RDONLY)
    if os.geteuid() == 0:
        files.segment.chmod(0o600)
        os.chown(files.segment, 12345, 12345)
        with pytest.raises(SegmentError, match="belongs to user 12345"):
            open_checked(files.segment, os.O_RDONLY)


def test_run_directory_must_be_private(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    with pytest.raises(SegmentError, match="mode 0755"):
        prepare_run_dir(open_to_all)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(SegmentError, match="not a directory"):
        prepare_run_dir(link)
    with pytest.raises(SegmentError, match="cannot be used"):
        prepare_run_dir(Path("/proc/nothing/here"))


def test_default_run_directory(tmp_path: Path) -> None:
    assert look_in(None, {"BGPOOL_RUN_DIR": str(tmp_path)}) == tmp_path
    assert look_in(None, {}).name == f"bgpool-{os.geteuid()}"
    # Of a login, and not of a service of the same user.
    assert look_in(None, {"XDG_RUNTIME_DIR": "/run/user/7"}) == look_in(None, {})


def test_any_bg_id_makes_a_file_name(tmp_path: Path) -> None:
    assert RunFiles.of(tmp_path, "orders-1").segment.name == "orders-1.segment"
    strange = RunFiles.of(tmp_path, "../../etc/passwd")
    assert strange.segment.parent == tmp_path
    assert strange.stem.startswith("~")

"""The keys in a monitor: what makes them may change its mind, raise or hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from bgpool.callables import hand_over
from bgpool.core.limits import FLEET_KEYS_LIFE_S
from bgpool.fleet.bus import BusError
from bgpool.fleet.config import FleetConfig
from bgpool.lab.waiting import wait_until
from bgpool.monitor.keys import Keys

OLD, NEW = b"a key of thirty-two bytes at least", b"another key of thirty-two bytes at least"

made = OLD
may_return = threading.Event()


def make_key() -> bytes:
    may_return.wait(90)
    if not made:
        raise ValueError("the secret is xyzzy")
    return made


@pytest.fixture
def keys() -> Iterator[Keys]:
    global made
    made = OLD
    may_return.set()
    yield Keys(FleetConfig("redis://127.0.0.1", key_callable=hand_over("bg_fleet_key", make_key, "")))
    may_return.set()


def grow_old(keys: Keys) -> None:
    keys._made_at -= FLEET_KEYS_LIFE_S


def test_a_key_that_was_changed_is_had_without_a_new_monitor(keys: Keys) -> None:
    global made
    assert keys() == (OLD,)
    made = NEW
    assert keys() == (OLD,)
    grow_old(keys)
    assert keys() == (OLD,)
    wait_until(lambda: keys() == (NEW,), timeout_s=30.0, what="the new key")


def test_a_callable_that_hangs_later_blocks_no_thread(keys: Keys) -> None:
    assert keys() == (OLD,)
    may_return.clear()
    grow_old(keys)
    before = threading.active_count()
    begun_at = time.monotonic()
    for _ in range(100):
        assert keys() == (OLD,)
    assert time.monotonic() - begun_at < 30.0
    # One thread that waits, and the one that it waits for.
    assert threading.active_count() <= before + 2


def test_a_callable_that_fails_leaves_the_keys_as_they_were(keys: Keys) -> None:
    global made
    assert keys() == (OLD,)
    made = b""
    grow_old(keys)
    for _ in range(20):
        assert keys() == (OLD,)
        time.sleep(0.01)


def test_without_any_key_the_bus_fails_without_a_secret_in_the_text(keys: Keys) -> None:
    global made
    made = b""
    with pytest.raises(BusError, match="ValueError") as failed:
        keys()
    assert "xyzzy" not in str(failed.value)

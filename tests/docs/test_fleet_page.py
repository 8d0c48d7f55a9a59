"""The rights that docs/fleet.md gives the bus's user are enough. Its figures follow from the defaults and bounds."""

from __future__ import annotations

import contextlib
import re

import pytest

from bgpool.core.limits import (
    EVIDENCE_QUESTIONS,
    FLEET_BUDGET_PER_S,
    FLEET_HEARTBEAT_S,
    FLEET_HEARTBEAT_SWITCHING_S,
    FLEET_REPORT_S,
    FLEET_TURN_S,
)
from bgpool.fleet.bus import BusError
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.streams import RIGHTS, StreamBus
from bgpool.lab.redis import RedisServer
from bgpool.settings import Settings
from tests.docs.pages import ROOT

pytestmark = pytest.mark.once

PAGE = (ROOT / "docs/fleet.md").read_text(encoding="utf-8")
#: The page with a space for each line break, because sentences are wrapped.
TEXT = " ".join(PAGE.split())
DEFAULTS = Settings()


def numbers(cell: str) -> list[int]:
    """Return the numbers in a cell, such as ``1,000, 5,000``. A comma before three digits separates thousands."""
    return [int(found.replace(",", "")) for found in re.findall(r"\d+(?:,\d{3})*", cell)]


def rows(first_cell: str) -> list[list[str]]:
    """Return the rows of the table whose header begins with *first_cell*, without the header."""
    table = PAGE[PAGE.index(f"\n| {first_cell} |") + 1 :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_queries_by_number_of_hosts() -> None:
    increased = 1000 // DEFAULTS.bg_interval_increased_ms
    high = 1000 // DEFAULTS.bg_interval_high_ms
    *counted, fleet = rows("hosts | connections")
    assert len(counted) > 3
    for row in counted:
        (hosts,) = numbers(row[0])
        found = [numbers(cell) for cell in row[1:]]
        assert found == [
            [2 * hosts],
            [2 * hosts * increased],
            [2 * hosts * high],
            [hosts * high, hosts * high * EVIDENCE_QUESTIONS],
        ], row
    assert fleet[2:] == counted[0][2:]


def test_intervals_of_a_fallback() -> None:
    cost = re.search(
        r"With (\d+) hosts that is the usual 0\.1 s\. With (\d+) it is ([\d.]+) s, with ([\d,]+) it is", TEXT
    )
    assert cost is not None
    assert int(cost[1]) / FLEET_BUDGET_PER_S <= DEFAULTS.bg_interval_high_ms / 1000
    assert int(cost[2]) / FLEET_BUDGET_PER_S == float(cost[3])
    assert f"with {cost[4]} it is {numbers(cost[4])[0] / FLEET_BUDGET_PER_S:g} s" in PAGE


def test_rate_of_turns() -> None:
    assert f"one of them every {FLEET_TURN_S:g} s, {1 / FLEET_TURN_S:g} queries a second from all of them" in PAGE


def test_capacity() -> None:
    sizes = [10, 100, 1000]
    found = {row[0]: [numbers(cell) for cell in row[1:]] for row in rows("hosts | 10 | 100 | 1,000")}
    messages = [round(1 / FLEET_HEARTBEAT_S), round(1 / FLEET_HEARTBEAT_SWITCHING_S)]
    assert found["connections to the bus"] == [[2 * size] for size in sizes]
    assert found["messages of the leader a second: quiet, switchover"] == [messages] * len(sizes)
    assert found["deliveries a second: quiet, switchover"] == [
        [size * message for message in messages] for size in sizes
    ]
    assert found["reports a second"] == [[round(size / FLEET_REPORT_S)] for size in sizes]


@pytest.mark.lab
def test_the_rights_of_the_user_are_enough() -> None:
    """The page's ACL works on a real server, both for all keys of bgpool and for the keys of one deployment."""
    command = re.search(r"^ACL SETUSER bgpool on >PASSWORD (.+)$", PAGE, re.MULTILINE)
    patterns = re.search(r"`(~bgpool:\S+ledger\S+)` in place of `(~bgpool:\*)`", TEXT)
    assert command is not None
    assert patterns is not None
    rules = command[1].split()
    assert set(RIGHTS.split()) <= set(rules)
    assert f"`on {' '.join(rules[1:])}`" in TEXT, "ElastiCache's access string"
    with RedisServer() as server:
        for user, keys in (("wide", patterns[2]), ("narrow", patterns[1])):
            server.execute("ACL", "SETUSER", user, "on", ">secret", *(keys if "~" in rule else rule for rule in rules))

        def use(user: str, bg_id: str) -> None:
            """Do everything that a fleet does on its bus."""
            config = FleetConfig(server.url(user=user, password="secret"), trust=True)
            with contextlib.closing(StreamBus(config, bg_id)) as bus:
                bus.publish(1, 0, b"claim")
                bus.publish(1, 1, b"message")
                bus.report(b"report")
                assert bus.top() is not None
                assert len(bus.read((0, 0), 0.1, "0").entries) == 2
                assert bus.reports(1)

        use("wide", "shop")
        use("narrow", "ledger")
        with pytest.raises(BusError, match="does not let the user"):
            use("narrow", "other")

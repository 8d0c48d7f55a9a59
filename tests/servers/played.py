"""The effects of a switchover on the clients of one server, measured like in the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import gaps
from bgpool.lab.ledger import Key
from tests.servers.harness import Load, Result

__all__ = ["Played", "part"]


@dataclass(frozen=True)
class Played:
    """The effects of a switchover on one application."""

    result: Result
    load: Load
    output: str

    @property
    def in_flight(self) -> int:
        """The number of clients with a request in progress when the database went down."""
        attempts = self.load.attempts.values()
        return gaps.in_flight(attempts, self.result.outage.last_write_s, self.result.cut_s)

    @property
    def late(self) -> list[float]:
        """The start of each failed request that was not yet in progress at the cut, in seconds after the cut."""
        failed = [each for attempts in self.load.attempts.values() for each in attempts if not each.ok]
        return [each.began_s - self.result.cut_s for each in failed if each.began_s > self.result.cut_s]

    @property
    def excess_s(self) -> float | None:
        """The longest time without an answer, less the database's downtime; None if a client has no answer yet."""
        back_s = self.result.outage.next_write_s
        longest_s = gaps.most_s(
            [
                gaps.longest_gap_s(attempts, self.result.began_s) if gaps.is_back(attempts, back_s) else None
                for attempts in self.load.attempts.values()
            ]
        )
        return None if longest_s is None else longest_s - self.result.down_s

    def __str__(self) -> str:
        return (
            f"{len(self.load.errors)} errors, {self.in_flight} in flight, late {self.late}, excess {self.excess_s} s,"
            f" {self.result.strayed} strayed, {self.result.verdict}, {self.load.errors[:3]}"
        )


def part(result: Result, name: str, is_mine: Callable[[Key], bool]) -> Played:
    """Return the effects on those clients of a server whose keys *is_mine* selects."""
    server = result.servers[name]
    load = server.load
    mine = Load(
        acknowledged=[key for key in load.acknowledged if is_mine(key)],
        unknown=[key for key in load.unknown if is_mine(key)],
        errors=[error for key, error in zip(load.unknown, load.errors, strict=True) if is_mine(key)],
        attempts={
            client: attempts for client, attempts in load.attempts.items() if is_mine((server.number, client, 0))
        },
    )
    return Played(result, mine, server.output)

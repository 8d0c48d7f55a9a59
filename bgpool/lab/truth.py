"""Ground truth: the times of blue's last write and green's first.

The probe knows both addresses and needs no names, metadata or pool. It measures the part of the downtime that no client
could have avoided.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from bgpool.core.engine import Engine
from bgpool.lab.errors import LabError
from bgpool.lab.pair import TRUTH_ROLE, Pair
from bgpool.lab.server import Server
from bgpool.lab.waiting import wait_until
from bgpool.lab.wire import Wire, WireError

log = logging.getLogger("bgpool.lab")

Side = Literal["blue", "green"]

WRITE_EVERY_S = 0.001
RETRY_EVERY_S = 0.004
CONNECT_LIMIT_S = 0.25
WRITE_LIMIT_S = 0.25
"""A server that does not answer within this time is down; a write takes about 0.3 ms, a connect about 10 ms."""

_CREATE: Final[Mapping[Engine, tuple[str, ...]]] = {
    Engine.POSTGRESQL: (
        "CREATE TABLE IF NOT EXISTS truth (id bigserial, side text, at timestamptz DEFAULT clock_timestamp())",
        f"ALTER TABLE truth OWNER TO {TRUTH_ROLE}",
    ),
    Engine.MYSQL: (
        "CREATE TABLE IF NOT EXISTS truth (id BIGINT AUTO_INCREMENT PRIMARY KEY, side VARCHAR(5), "
        "at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6))",
    ),
}

STOP_TIMEOUT_S = 5.0
MOST_OUTAGES = 1000
"""The number of outages kept; further ones are dropped."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without writes, on the monotonic clock; it begins and ends with an acknowledged write."""

    last_side: Side
    last_write_s: float
    next_side: Side
    next_write_s: float

    @property
    def down_s(self) -> float:
        """The seconds from the last write before to the first one after."""
        return self.next_write_s - self.last_write_s


class TruthProbe(threading.Thread):
    """A probe that writes to blue until it fails, then tries both sides in turn, and continues on one that accepts.

    A context manager that starts and stops the probe. It writes to the table ``truth``, over TCP under the role
    `TRUTH_ROLE` and the name ``bgpool-truth``. Times are on the monotonic clock.
    """

    def __init__(self, pair: Pair, *, write_every_s: float = WRITE_EVERY_S) -> None:
        """Watch *pair*, which must be open with blue taking writes; the probe keeps the current servers of each side.

        Args:
            pair: The pair whose servers are probed.
            write_every_s: The interval of writes, in seconds; after a failed one it is `RETRY_EVERY_S`.
        """
        super().__init__(name="bgpool-truth", daemon=True)
        self._pair = pair
        self._write_every_s = write_every_s
        self._server: dict[Side, Server] = {"blue": pair.blue, "green": pair.green}
        self._side: Side = "blue"
        self._wires: dict[Side, Wire] = {}
        self._halt = threading.Event()
        # Written only by the probe's thread and read by others: each change is a single assignment.
        self._last_write: tuple[Side, float] | None = None
        self._last_blue_write_s: float | None = None
        self._first_green_write_s: float | None = None
        self._writes: dict[Side, int] = {"blue": 0, "green": 0}
        self._outages: tuple[Outage, ...] = ()
        create_table(pair)

    def __enter__(self) -> TruthProbe:
        self.start()
        try:
            self.wait_writing()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def last_blue_write_s(self) -> float | None:
        """The time of the last write that blue acknowledged; changes as long as blue accepts writes."""
        return self._last_blue_write_s

    @property
    def first_green_write_s(self) -> float | None:
        """The time of the first write that green acknowledged; None before."""
        return self._first_green_write_s

    @property
    def down_s(self) -> float | None:
        """The seconds from blue's last write to green's first; None before the latter."""
        first, last = self._first_green_write_s, self._last_blue_write_s
        return None if first is None or last is None else first - last

    @property
    def outages(self) -> tuple[Outage, ...]:
        """Every outage so far, in order; the outage of a rollback begins and ends on blue."""
        return self._outages

    @property
    def writes(self) -> dict[Side, int]:
        """Return the number of writes that each side acknowledged."""
        return dict(self._writes)

    def wait_writing(self, timeout_s: float = 10.0) -> None:
        """Wait until one side accepts a write.

        Raises:
            LabError: None did within *timeout_s* seconds.
        """
        wait_until(lambda: self._last_write is not None, timeout_s=timeout_s, what="the first write")

    def wait_green(self, timeout_s: float) -> float:
        """Wait until green accepts a write, and return the time of it.

        Raises:
            LabError: It did not within *timeout_s* seconds.
        """
        wait_until(lambda: self._first_green_write_s is not None, timeout_s=timeout_s, what="green takes a write")
        assert self._first_green_write_s is not None
        return self._first_green_write_s

    def stop(self) -> None:
        """End the probe and wait for it; idempotent.

        Raises:
            LabError: It did not end within `STOP_TIMEOUT_S`.
        """
        self._halt.set()
        if self.ident is None:
            return
        self.join(STOP_TIMEOUT_S)
        if self.is_alive():
            raise LabError(f"the truth probe did not end within {STOP_TIMEOUT_S:g} s")

    def run(self) -> None:
        """Run the probe's loop; `start` calls it in the thread."""
        failed = False
        try:
            while not self._halt.wait(RETRY_EVERY_S if failed else self._write_every_s):
                failed = not self._write(interrupted=failed)
        finally:
            for side in tuple(self._wires):
                self._forget(side)

    def _write(self, *, interrupted: bool) -> bool:
        side = self._side
        try:
            wire = self._wires.get(side) or self._connect(side)
            wire.execute(b"INSERT INTO truth (side) VALUES ('%s')" % side.encode(), timeout_s=WRITE_LIMIT_S)
        except WireError as error:
            log.debug("truth: %s: %s", side, error)
            # Always a new connection after a failure: as fast as any client can be, and without the state of the old
            # one.
            self._forget(side)
            self._side = "green" if side == "blue" else "blue"
            return False
        self._note(side, time.monotonic(), interrupted=interrupted)
        return True

    def _note(self, side: Side, at_s: float, *, interrupted: bool) -> None:
        if interrupted and self._last_write is not None and len(self._outages) < MOST_OUTAGES:
            self._outages = (*self._outages, Outage(*self._last_write, side, at_s))
        if side == "blue":
            self._last_blue_write_s = at_s
        elif self._first_green_write_s is None:
            self._first_green_write_s = at_s
        self._writes[side] += 1
        self._last_write = (side, at_s)

    def _connect(self, side: Side) -> Wire:
        self._wires[side] = wire = self._server[side].wire(
            user=TRUTH_ROLE,
            password=self._pair.lab_password,
            application="bgpool-truth",
            timeout_s=CONNECT_LIMIT_S,
        )
        return wire

    def _forget(self, side: Side) -> None:
        wire = self._wires.pop(side, None)
        if wire is not None:
            wire.close()

    def __repr__(self) -> str:
        down = "no switch yet" if self.down_s is None else f"down {self.down_s:.3f} s"
        return f"<TruthProbe {self._writes['blue']} on blue, {self._writes['green']} on green, {down}>"


def create_table(pair: Pair) -> None:
    """Create the table ``truth`` on blue, for `TRUTH_ROLE` to write to, unless it exists."""
    pair.define(*_CREATE[pair.engine])

"""The gate before every checkout and every new connection: pass, wait, go to a recorded address, or reject."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from bgpool.core.events import Instant, Tick
from bgpool.core.limits import GREEN_WAIT_S, POLL_INTERVAL_S
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import PASS, Action, Decision, Purpose, decide
from bgpool.core.snapshot import Snapshot
from bgpool.errors import GreenHostRejected, PoolClosed, SwitchoverHoldTimeout
from bgpool.pools.alias import Endpoint
from bgpool.pools.tally import Tally
from bgpool.pools.waits import BLOCKING, Waits
from bgpool.segment.reader import Reader, Reading
from bgpool.settings import Settings

__all__ = ["Gate", "GateState", "Turn"]

#: Later than any timer, and than the end of any caller's timeout.
_NEVER_NS: Final = 2**63
_NO_WORD: Final = memoryview(bytes(8)).cast("Q")


class Turn:
    """A turn to log in, passed from caller to caller at a release, see bgpool.segment.release_queue.

    Attributes:
        taken: True if the caller was held and has the turn.
    """

    __slots__ = ("_reader", "taken")

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader
        self.taken = False

    def pass_on(self) -> None:
        """Wake the next held caller, if this caller has not done so yet."""
        if self.taken:
            self.taken = False
            self._reader.wake_next()


class Gate:
    """The meaning of the segment for one endpoint, for callers that can wait. It holds no lock while a caller waits.

    Attributes:
        waits: The waits of its callers.
        tally: The counts of held callers and errors.
        closed: True once no caller may wait here any longer.
        seen: The state at the last query. Every checkout queries it, unless nothing has changed.
    """

    def __init__(
        self,
        reader: Reader,
        settings: Settings,
        endpoint: Endpoint,
        nudge: Callable[[], object] = lambda: None,
        like: Callable[[None, Callable[..., Exception], str], Exception] = lambda _, kind, text: kind(text),
        waits: Waits = BLOCKING,
        note_hold: Callable[[], object] = lambda: None,
    ) -> None:
        """Create a gate for *endpoint*.

        *nudge* makes the monitor query at once. *like* creates errors in the driver's form. *note_hold* is
        called whenever a caller begins to be held.
        """
        self._reader: Final = reader
        self._settings: Final = settings
        self._endpoint: Final = endpoint
        self._nudge: Final = nudge
        self._like: Final = like
        self._note_hold: Final = note_hold
        self.waits: Final = waits
        self._rules: Final = Rules(settings.bg_switchover_timeout_ms, settings.bg_release_on_blue_dns_update)
        self.tally: Final = Tally()
        self.closed = False
        # The end of the time in which checkouts wait for a server that has refused a write, on the monotonic clock.
        self._refused_until_ns = 0
        self.seen = GateState(None, None, 0)

    def __repr__(self) -> str:
        return f"<Gate {self._endpoint.name} held={self.tally.held} {self._reader!r}>"

    def reset(self) -> None:
        """Start without callers, in the child after a fork."""
        self.tally.reset()
        self._refused_until_ns = 0

    async def aclose(self, timeout_s: float) -> None:
        """Send all waiting callers away, and wait until they are gone, at most *timeout_s* seconds."""
        self.closed = True
        deadline = time.monotonic() + timeout_s
        while True:
            # Repeated, because a caller that was just about to sleep has missed the wake-up.
            self._reader.wake_waiters()
            self.waits.wake()
            if not self.tally.held or time.monotonic() >= deadline:
                return
            await self.waits.sleep(POLL_INTERVAL_S)

    def snapshot(self, reading: Reading) -> Snapshot | None:
        """Return the snapshot of *reading*, advanced by this process's own clock: timers need no living monitor."""
        return self._gate_state(reading).snapshot

    def _gate_state(self, reading: Reading) -> GateState:
        """Return the current meaning of *reading*. It is computed once for all callers, until a publication or a timer.

        A thousand callers may be released at once, and each of them decides again.
        """
        meaning, now_ns = self.seen, self.waits.now_ns()
        if meaning.reading is not reading or now_ns >= meaning.until_ns:
            snapshot, until_ns = reading.snapshot, _NEVER_NS
            if snapshot is not None:
                until_ns = min((end for end in snapshot.timers if end > now_ns), default=_NEVER_NS)
                snapshot = step(snapshot, Tick(Instant(now_ns, time.time_ns())), self._rules)
            self.seen = meaning = GateState(reading, snapshot, until_ns)
        return meaning

    def newest_gate_state(self) -> GateState:
        """Return the current meaning of the newest reading."""
        # Every unit of work calls this. If nothing has changed, it reads no clock and makes no other call.
        meaning, reader = self.seen, self._reader
        is_newest = meaning.word[0] == meaning.sequence and reader.reading is meaning.reading
        return meaning if is_newest else self._gate_state(reader.refresh())

    def now(self) -> Snapshot | None:
        """Return the current snapshot, by the newest reading."""
        return self.newest_gate_state().snapshot

    def newest(self) -> Reading:
        """Return the newest reading."""
        return self._reader.refresh()

    def decide(self, reading: Reading, purpose: Purpose) -> Decision:
        """Return the decision for *purpose* under *reading*."""
        return self._decide(self._gate_state(reading), purpose)

    def _decide(self, meaning: GateState, purpose: Purpose) -> Decision:
        snapshot = meaning.snapshot
        if snapshot is None:
            return PASS
        # Evaluated every time, because an alias may have been resolved again.
        host = self._endpoint.decides_as(snapshot)
        decision = meaning.decisions.get((host, purpose))
        if decision is None:
            suspend = self._settings.bg_suspend_new_blue_connections
            decision = meaning.decisions[host, purpose] = decide(snapshot, host, purpose, suspend_new=suspend)
        return decision

    def wait_admitted(self, purpose: Purpose, *, timeout_s: float) -> tuple[Reading, Decision]:
        """Like await_admitted, for a caller that cannot await."""
        return self.waits.finish(self.await_admitted(purpose, timeout_s=timeout_s))

    async def await_admitted(
        self, purpose: Purpose, *, timeout_s: float, turn: Turn | None = None
    ) -> tuple[Reading, Decision]:
        """Hold until *purpose* may proceed; return the reading that admitted it, and the decision.

        It takes no lock that a return needs, so a held caller never blocks a drain. A caller that has waited decides
        again.

        Args:
            purpose: A checkout, or opening a connection.
            timeout_s: The longest hold in seconds, >= 0; never more than bg_connect_timeout_ms.
            turn: The turn of the caller, which has it after a hold and passes it on itself; None to pass it on at once.

        Raises:
            SwitchoverHoldTimeout: Still held when the time is up.
            GreenHostRejected: The endpoint is green and the switchover is over.
            PoolClosed: The gate was closed before the switchover was over.
        """
        now_ns = self.waits.now_ns
        started_ns = now_ns()
        longest_s = min(timeout_s, self._settings.bg_connect_timeout_ms / 1000)
        caller: object | None = None
        try:
            while True:
                reading = self._reader.refresh()
                meaning = self._gate_state(reading)
                decision = self._decide(meaning, purpose)
                if decision.action is Action.REJECT:
                    raise self._like(
                        None, GreenHostRejected, self._text(reading, "is a green host and the switchover is over; ")
                    )
                until_ns, reason = meaning.until_ns, ""
                if decision.action is not Action.HOLD:
                    if purpose is Purpose.CONNECT or not self._is_refusing(meaning.snapshot):
                        return reading, decision
                    until_ns, reason = min(until_ns, self._refused_until_ns), "because its server takes no writes yet"
                if self.closed:
                    raise self._like(None, PoolClosed, self._text(reading, "cannot be used: the pool is closed"))
                waited_s = (now_ns() - started_ns) / 1e9
                left_s = longest_s - waited_s
                if left_s <= 0:
                    waited = f"was held for {waited_s:.1f} s {reason or _reason(reading)}; "
                    raise self._like(None, SwitchoverHoldTimeout, self._text(reading, waited))
                if caller is None:
                    caller = self.tally.begin_hold()
                    self._note_hold()
                # No hold outlasts a timer, even if no monitor is alive.
                timer_s = max(0.001, (until_ns - now_ns()) / 1e9)
                await self.waits.changed(reading, min(left_s, timer_s), partial(self._is_over, reading))
        finally:
            if caller is not None:
                self.tally.end_hold(caller)
                if turn is None:
                    self._reader.wake_next()
                else:
                    turn.taken = True

    def switching(self) -> bool:
        """Return whether a switchover is under way in which this endpoint takes part."""
        meaning = self.newest_gate_state()
        return meaning.is_switching and bool(self.switching_by(meaning.snapshot))

    def switching_by(self, snapshot: Snapshot | None) -> bool | None:
        """Return whether *snapshot* has this endpoint in a switchover; None if it has it in no deployment."""
        if snapshot is None or self._endpoint.host(snapshot) is None:
            return None
        return Phase.PREPARATION <= snapshot.phase <= Phase.POST

    def note_refusal(self, pause_s: float) -> bool:
        """Make checkouts wait, in a switchover, after a server has refused a write, so that they do not reach it again.

        They wait until green reports that it takes writes. The limit is GREEN_WAIT_S if green reports that it takes
        none, else *pause_s*.

        Returns:
            True if they wait.
        """
        snapshot = self.now()
        if snapshot is None or not self.switching_by(snapshot) or _green_writes(snapshot):
            return False
        awaited = snapshot.phase is Phase.POST and snapshot.target_read_only is True
        wait_s = GREEN_WAIT_S if awaited else min(pause_s, GREEN_WAIT_S)
        self._refused_until_ns = self.waits.now_ns() + int(wait_s * 1e9)
        return True

    def _is_refusing(self, snapshot: Snapshot | None) -> bool:
        """Return whether a checkout would get a connection to a server that has just refused a write."""
        if self.waits.now_ns() >= self._refused_until_ns or snapshot is None:
            return False
        return bool(self.switching_by(snapshot)) and not _green_writes(snapshot)

    def note_cut(self) -> None:
        """Nudge the monitor of a deployment: a server ended or refused a connection, or refused a write."""
        snapshot = self.now()
        host = self._endpoint.host(snapshot) if snapshot is not None else None
        if snapshot is None or host is None or host.role is not Role.SOURCE:
            return
        if snapshot.phase in (Phase.CREATED, Phase.PREPARATION):
            self._nudge()

    def role_is_servers(self) -> bool:
        """Return whether a role or database that is read-only by a setting has this setting only on green.

        Callers are connected to green then, and blue, from which green was made, lets the application's role write.
        """
        snapshot = self.now()
        return snapshot is not None and snapshot.phase is Phase.POST and snapshot.blue_role_read_only is False

    def takes_part(self, meaning: GateState | None = None) -> bool:
        """Return whether this endpoint, even behind a proxy, belongs to a deployment; by *meaning*, or now."""
        snapshot = (meaning or self.newest_gate_state()).snapshot
        return snapshot is not None and snapshot.host(self._endpoint.name) is not None

    def green_was_replica(self) -> bool:
        """Return whether green was a physical replica before it was promoted."""
        snapshot = self.now()
        return snapshot is not None and snapshot.green_was_replica

    def describe(self, what: str) -> str:
        """Return the full text of an error of this endpoint, with *what* as its statement."""
        return self._text(self._reader.refresh(), what)

    def _text(self, reading: Reading, what: str) -> str:
        phase = reading.snapshot.phase.name if reading.snapshot else "unknown"
        advice = {
            "is a ": "connect to the blue endpoint's name",
            "was h": "try again, or allow a longer hold with bg_connect_timeout_ms",
        }.get(what[:5], "")
        return f"[bg_id: {self._settings.bg_id!r}] {self._endpoint.name} {what}{advice} (phase {phase})"

    def _is_over(self, reading: Reading) -> bool:
        """Return whether a caller held by *reading* must decide again although its file contains nothing new."""
        return self.closed or not self._reader.is_of_file(reading)


def _green_writes(snapshot: Snapshot) -> bool:
    """Return whether callers are connected to green, and green reports that it takes writes."""
    return snapshot.phase is Phase.POST and snapshot.target_read_only is False


class GateState:
    """The meaning of a reading.

    Attributes:
        reading: The reading.
        snapshot: Its snapshot at the current time; None before the first.
        until_ns: The time at which a timer changes the snapshot, on the monotonic clock.
        is_switching: True if a switchover is under way, whether or not the endpoint takes part.
        word, sequence: While the word has the sequence as its value, nothing was published since, and no timer changes
            anything. The two always differ if that is unknown.
        decisions: The decisions, by the name that decides and the purpose.
    """

    __slots__ = ("decisions", "is_switching", "reading", "sequence", "snapshot", "until_ns", "word")

    def __init__(self, reading: Reading | None, snapshot: Snapshot | None, until_ns: int) -> None:
        self.reading: Final = reading
        self.snapshot: Final = snapshot
        self.until_ns: Final = until_ns
        self.is_switching: Final = snapshot is not None and Phase.PREPARATION <= snapshot.phase <= Phase.POST
        lasts = reading is not None and reading.mapped is not None and until_ns == _NEVER_NS
        self.word: Final = reading.word if reading is not None and lasts else _NO_WORD
        self.sequence: Final = reading.sequence if reading is not None and lasts else -1
        self.decisions: Final[dict[tuple[str, Purpose], Decision]] = {}


def _reason(reading: Reading) -> str:
    """Return the reason for the hold of a caller that *reading* holds."""
    snapshot = reading.snapshot
    if snapshot is not None and snapshot.hold_until_ns:
        left_s = max(0.0, (snapshot.hold_until_ns - time.monotonic_ns()) / 1e9)
        return f"by an operator's order (bgpool hold), which ends in {left_s:.0f} s"
    return "and the switchover has not passed"

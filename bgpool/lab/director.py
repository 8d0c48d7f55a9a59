"""The director, which runs a switchover: a table of timed steps that a scenario may alter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from bgpool.lab import metadata
from bgpool.lab.errors import DRIVER_ERRORS, LabError
from bgpool.lab.metadata import ReplicaRow, TopologyRow
from bgpool.lab.names import SideNames
from bgpool.lab.pair import Pair
from bgpool.lab.server import Server
from bgpool.lab.waiting import pause

log = logging.getLogger("bgpool.lab")

CATCH_UP_TIMEOUT_S = 30.0
PROMOTION_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The time of each step, in seconds from SWITCHOVER_IN_PROGRESS; all times are multiplied by *scale*.

    A step that is late delays the steps after it and never skips them. The defaults are a fast switchover of 2026, with
    the DNS tail shortened from the 30 to 100 s that were measured on AWS.
    """

    initiated_s: float = -2.0
    in_progress_s: float = 0.0
    writes_stopped_s: float = 0.4
    connections_dropped_s: float = 0.6
    caught_up_s: float = 0.7
    green_promoted_s: float = 2.0
    old_blue_open_s: float = 2.3
    names_changed_s: float = 3.5
    blue_dns_moved_s: float = 4.0
    green_dns_gone_s: float = 7.0
    completed_s: float = 7.5
    certificates_renewed_s: float | None = None
    """The time at which green's certificates are for its new names; None for together with the names, the same as for
    *tokens_renamed_s*."""

    tokens_renamed_s: float | None = None
    """The time at which green begins to accept tokens for its new names, and no others."""

    emptied_s: float | None = None
    """The time at which the metadata becomes an empty table; None leaves it at COMPLETED."""

    rolled_back_s: float = 1.5
    """The time of a rollback from IN_PROGRESS; one from PREPARATION happens halfway to IN_PROGRESS."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, not {self.scale!r}")


@dataclass(frozen=True, slots=True)
class Step:
    """An action and its time: *at_s* seconds from IN_PROGRESS, before scaling."""

    name: str
    at_s: float
    action: Callable[[], None]


class Event(NamedTuple):
    """A step that was done; the times are those of its end."""

    name: str
    wall_s: float
    monotonic_s: float


class Director:
    """A runner of switchovers and rollbacks of one pair.

    A scenario alters `steps` before `run`, by `change`, `add`, `drop`, or as a list. Steps of the same time are run in
    the order of the list.

    Attributes:
        steps: The steps that `run` will do.
        events: The steps done so far, in order.
        on_event: A callable that receives each event in the director's thread; an exception of it ends the run.
    """

    def __init__(self, pair: Pair, schedule: Schedule | None = None) -> None:
        """Direct *pair*, which must be open, according to *schedule*."""
        self.pair = pair
        self.schedule = schedule or Schedule()
        self.steps = self._switchover_steps()
        self.events: list[Event] = []
        self.on_event: list[Callable[[Event], None]] = []
        self._abort = threading.Event()

    # -- for scenarios -------------------------------------------------------------------------------------

    def change(self, name: str, *, at_s: float | None = None, action: Callable[[], None] | None = None) -> None:
        """Give the step *name* another time, another action, or both.

        Raises:
            KeyError: There is no such step.
        """
        place = self._place(name)
        step = self.steps[place]
        self.steps[place] = replace(
            step, at_s=step.at_s if at_s is None else at_s, action=step.action if action is None else action
        )

    def add(self, name: str, at_s: float, action: Callable[[], None]) -> None:
        """Add a step after the existing steps of the same time."""
        self.steps.append(Step(name, at_s, action))

    def drop(self, *names: str) -> None:
        """Remove steps.

        Raises:
            KeyError: There is no such step.
        """
        for name in names:
            del self.steps[self._place(name)]

    # -- runs ----------------------------------------------------------------------------------------------

    def create_deployment(self) -> None:
        """Publish the deployment as AVAILABLE on both servers."""
        self._publish_replicas("blue", self.pair.names.blue)
        self._publish_replicas("green", self.pair.names.green)
        self.publish(metadata.AVAILABLE)
        self._record("available")

    def run(self) -> None:
        """Run the steps and return after the last. May run in a thread of its own; one run at a time.

        Raises:
            LabError: A step failed or took too long; the servers are left in their state at that time.
            LabAbortError: `abort` was called.
        """
        self._run(self.steps)

    def rollback_from(self, phase: Literal["PREPARATION", "IN_PROGRESS"]) -> None:
        """Begin a switchover and roll it back in *phase*: blue accepts writes again and nothing is renamed.

        Steps of the switchover that are due before the rollback are run as altered. Raises like `run`.
        """
        if phase not in ("PREPARATION", "IN_PROGRESS"):
            raise ValueError(f"a rollback is from PREPARATION or IN_PROGRESS, not {phase!r}")
        due_s = self.schedule.initiated_s / 2 if phase == "PREPARATION" else self.schedule.rolled_back_s
        never = {"green_promoted", "green_open", "post"}
        before = [step for step in self.steps if step.at_s <= due_s and step.name not in never]
        back = [
            Step("green_open", due_s, lambda: self._admit("green")),
            Step("blue_open", due_s, self._open_blue),
            Step("rolled_back", due_s, lambda: self.publish(metadata.AVAILABLE)),
        ]
        self._run(before + back)

    def abort(self) -> None:
        """End the run at its next wait, and every later run; may be called from any thread or signal handler."""
        self._abort.set()

    def event(self, name: str) -> Event:
        """Return the last event of that name.

        Raises:
            KeyError: It has not happened.
        """
        for event in reversed(self.events):
            if event.name == name:
                return event
        raise KeyError(name)

    # -- actions of steps ----------------------------------------------------------------------------------

    def publish(self, status: str, *, to: Server | None = None) -> None:
        """Show *status* for both roles on both servers, or on *to* alone.

        After `change_names`, rows have the new names. At COMPLETED, only the target's rows are left, like on AWS.
        """
        rows = self.rows(status)
        for server in (to,) if to else self.pair.servers:
            metadata.publish(server, rows)

    def rows(self, status: str) -> list[TopologyRow]:
        """Return the rows that report *status* now."""
        rows = [] if status == metadata.COMPLETED else self._rows(self._source, metadata.SOURCE, status)
        return rows + self._rows(self._target, metadata.TARGET, status)

    def empty(self) -> None:
        """Show an empty table on all servers."""
        for server in self.pair.servers:
            metadata.publish(server, [])

    def stop_writes(self) -> None:
        """Make blue read-only for every transaction that begins from now on."""
        self.pair.blue.set_read_only(True)

    def drop_connections(self) -> None:
        """Refuse new clients on all servers, then terminate the existing connections."""
        for server in self.pair.servers:
            server.refuse_clients()
        for server in self.pair.servers:
            server.cut_clients()

    def catch_up(self) -> None:
        """Terminate clients that connected late, and wait until green has everything that blue ever committed."""
        # A second time: a client that was still logging in during the first cut may be connected now.
        self.pair.blue.cut_clients()
        self.wait_caught_up()

    def wait_caught_up(self) -> None:
        """Wait until green has everything that was committed on blue until now."""
        self.pair.green.wait_replayed(self.pair.blue.position(), CATCH_UP_TIMEOUT_S, abort=self._abort)

    def carry_over(self) -> None:
        """Set on green the state that replication does not carry: the sequences of a major upgrade."""
        for server in self.pair.logical:
            server.carry_over()

    def promote_green(self) -> None:
        """Make green a primary."""
        self.pair.green.promote(PROMOTION_TIMEOUT_S, abort=self._abort)

    def open_old_blue(self) -> None:
        """Accept clients on old blue, which stays read-only and keeps its address."""
        self.pair.blue.set_read_only(True)
        for server in self.pair.logical:
            server.forget_primary()
        self._admit("blue")

    def restart_old_blue(self) -> None:
        """Do the same as `open_old_blue`, after a restart."""
        self.pair.blue.stop()
        self.pair.blue.start()
        self.open_old_blue()

    def change_names(self) -> None:
        """Show green under blue's names, and blue under ``-old`` names, in the metadata; DNS stays unchanged."""
        self._source, self._target = self.pair.names.old, self.pair.names.promoted
        self._publish_replicas("blue", self._source)
        self._publish_replicas("green", self._target)
        self.publish(metadata.POST)

    def renew_certificates(self) -> None:
        """Give every server a certificate for the names that it has after the switchover, and no others."""
        self.pair.certify("green", self.pair.names.promoted)
        self.pair.certify("blue", self.pair.names.old)

    def rename_tokens(self) -> None:
        """Accept tokens for the names that servers have after the switchover, and for no others."""
        self.pair.accept_tokens("green", self.pair.names.promoted)
        self.pair.accept_tokens("blue", self.pair.names.old)

    def move_blue_dns(self) -> None:
        """Point blue's names to green's addresses, and give blue's addresses their ``-old`` names.

        The name of a blue reader without a green counterpart resolves no longer.
        """
        names = self.pair.names
        gone: dict[str, str | None] = dict.fromkeys(names.blue.all)
        moved = self.pair.addresses(names.promoted, "green") | self.pair.addresses(names.old, "blue")
        self.pair.hosts.update(gone | moved)

    def remove_green_dns(self) -> None:
        """Remove green's names from DNS."""
        self.pair.hosts.update(dict.fromkeys(self.pair.names.green.all))

    # -- inside --------------------------------------------------------------------------------------------

    def _switchover_steps(self) -> list[Step]:
        at = self.schedule
        self._source, self._target = self.pair.names.blue, self.pair.names.green
        steps = [
            Step("initiated", at.initiated_s, lambda: self.publish(metadata.INITIATED)),
            Step("in_progress", at.in_progress_s, lambda: self.publish(metadata.IN_PROGRESS)),
            Step("writes_stopped", at.writes_stopped_s, self.stop_writes),
            Step("connections_dropped", at.connections_dropped_s, self.drop_connections),
            Step("caught_up", at.caught_up_s, self.catch_up),
            Step("sequences_set", at.caught_up_s, self.carry_over),
            Step("green_promoted", at.green_promoted_s, self.promote_green),
            Step("green_open", at.green_promoted_s, lambda: self._admit("green")),
            Step("post", at.green_promoted_s, lambda: self.publish(metadata.POST)),
            Step("old_blue_open", at.old_blue_open_s, self.open_old_blue),
            Step("names_changed", at.names_changed_s, self.change_names),
            Step("certificates_renewed", _or(at.certificates_renewed_s, at.names_changed_s), self.renew_certificates),
            Step("tokens_renamed", _or(at.tokens_renamed_s, at.names_changed_s), self.rename_tokens),
            Step("blue_dns_moved", at.blue_dns_moved_s, self.move_blue_dns),
            Step("green_dns_gone", at.green_dns_gone_s, self.remove_green_dns),
            Step("completed", at.completed_s, lambda: self.publish(metadata.COMPLETED)),
        ]
        if self.pair.upgrade != "major":
            steps = [step for step in steps if step.name != "sequences_set"]
        if not self.pair.tls:
            steps = [step for step in steps if step.name not in ("certificates_renewed", "tokens_renamed")]
        return steps if at.emptied_s is None else [*steps, Step("emptied", at.emptied_s, self.empty)]

    def _run(self, steps: list[Step]) -> None:
        ordered = sorted(steps, key=lambda step: step.at_s)
        if not ordered:
            return
        scale = self.schedule.scale
        start_s = time.monotonic() - ordered[0].at_s * scale
        for step in ordered:
            pause(start_s + step.at_s * scale - time.monotonic(), abort=self._abort, what=step.name)
            try:
                step.action()
            except DRIVER_ERRORS as error:
                raise LabError(f"the step {step.name} failed: {error}") from error
            self._record(step.name)

    def _record(self, name: str) -> None:
        event = Event(name, time.time(), time.monotonic())
        self.events.append(event)
        log.info("lab: %s", name)
        for callback in self.on_event:
            callback(event)

    def _open_blue(self) -> None:
        self.pair.blue.set_read_only(False)
        self._admit("blue")

    def _admit(self, colour: str) -> None:
        for server in self.pair.side(colour):
            server.admit_clients()

    def _rows(self, side: SideNames, role: str, status: str) -> list[TopologyRow]:
        # The reader endpoint has no row of its own: clients derive it from the writer's.
        names = [name for name in side.all if name != side.reader]
        return [
            TopologyRow(id=f"{role[-6:].lower()}-{n}", endpoint=name, port=self.pair.port, role=role, status=status)
            for n, name in enumerate(names, start=1)
        ]

    def _publish_replicas(self, colour: str, side: SideNames) -> None:
        if self.pair.flavour != "aurora":
            return
        rows = [ReplicaRow(server_id, is_writer=n == 0) for n, server_id in enumerate(side.server_ids)]
        for server in self.pair.side(colour):
            metadata.publish_replicas(server, rows)

    def _place(self, name: str) -> int:
        for place, step in enumerate(self.steps):
            if step.name == name:
                return place
        raise KeyError(name)

    def __repr__(self) -> str:
        last = self.events[-1].name if self.events else "nothing yet"
        return f"<Director of {self.pair!r}: {last}>"


def _or(at_s: float | None, default_s: float) -> float:
    return default_s if at_s is None else at_s

"""The monitor's main loop: it takes events, publishes snapshots, and writes the heartbeat."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.auth import PasswordMaker
from bgpool.core import observations
from bgpool.core.duty import Duty
from bgpool.core.engine import Engine
from bgpool.core.events import Event, Nudged, ProbeFailed, Tick
from bgpool.core.fleet import PLACES, AnyEvent, FleetEvent, ReportsRead
from bgpool.core.limits import (
    FLEET_SHOW_S,
    FLEET_SILENCE_S,
    HEARTBEAT_S,
    LINGER_S,
    OFFERS_INTERVAL_S,
    PRESENCE_SHARE,
    SILENCE_S,
)
from bgpool.core.machine import is_settled, leave_blind, step
from bgpool.core.phase import SWITCHING, Role
from bgpool.core.plan import Target, plan
from bgpool.core.records import note_heard
from bgpool.core.snapshot import Notice, Snapshot
from bgpool.errors import Error, SegmentError
from bgpool.logs import log_fields
from bgpool.monitor import election
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.dialects.mysql import MysqlSession
from bgpool.monitor.dialects.postgres import PostgresSession
from bgpool.monitor.doorbell import Doorbell
from bgpool.monitor.fleet import membership_of
from bgpool.monitor.inbox import EventBatch, Inbox
from bgpool.monitor.lookup import Lookup
from bgpool.monitor.probe import Probe, now
from bgpool.monitor.renewal import Renewal
from bgpool.monitor.sampler import Sampler
from bgpool.monitor.session import Session
from bgpool.monitor.stoppable import StoppableThread, wait_ended
from bgpool.resolver import Resolver, make_resolver
from bgpool.segment import history
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import anybody_present, best_offer
from bgpool.segment.writer import Superseded, Writer, first_snapshot

__all__ = ["SESSIONS", "Monitor", "run_monitor"]

_logger: Final = logging.getLogger("bgpool.monitor")

#: The monitoring connections of each engine; all have the parameters of PostgresSession.
SESSIONS: Final[Mapping[Engine, Callable[..., Session]]] = {
    Engine.POSTGRESQL: PostgresSession,
    Engine.MYSQL: MysqlSession,
}


def run_monitor(
    config: MonitorConfig, *, linger_s: float | None = LINGER_S, on_begin: Callable[[], object] = lambda: None
) -> bool:
    """Run the monitor until it is no longer needed.

    Args:
        config: The configuration.
        linger_s: The time to continue without any process that uses the bg_id, in seconds; None for no limit.
        on_begin: Called once the segment is in place.

    Returns:
        True if this process was the monitor; False if another one is alive.

    Raises:
        SegmentError: The run directory or the segment cannot be used.
        ConfigurationError: The password callable cannot be imported here.
        Error: A part of the monitor failed; the next monitor starts from the beginning.
    """
    # Before the claim: importing an application's module may take seconds, during which a monitor would appear to hang.
    password = config.password
    passwords = PasswordMaker(password) if password is not None else None
    directory = Path(config.run_dir)
    if prepare_run_dir(directory):
        extra = log_fields("run_dir_created", bg_id=config.bg_id)
        _logger.info("created run directory %s, private to user %d", directory, os.geteuid(), extra=extra)
    files = RunFiles.of(directory, config.bg_id)
    tenure = election.claim(files)
    if tenure is None:
        return False
    writer = Writer(files, tenure.term, first_snapshot(config.bg_id))
    extra = log_fields("monitor_started", bg_id=config.bg_id, phase=writer.snapshot.phase)
    _logger.info("monitor of bg_id %r started, term %d", config.bg_id, tenure.term, extra=extra)
    on_begin()
    threads: Sequence[StoppableThread] = ()
    try:
        monitor = Monitor(config, passwords, files, writer, writer.snapshot)
        threads = monitor.threads
        monitor.run(linger_s)
    except Superseded as error:
        _logger.warning("monitor stops: %s", error, extra=log_fields("monitor_stopped", bg_id=config.bg_id))
        writer.leave()
    finally:
        # Before waiting for the threads, so that the next monitor can begin.
        tenure.lock.release()
        wait_ended(threads)
    return True


class Monitor:
    """Turns the results of probes and look-ups into published snapshots.

    Attributes:
        threads: All its threads; run() stops them without waiting for their ends.
    """

    def __init__(
        self,
        config: MonitorConfig,
        passwords: PasswordMaker | None,
        files: RunFiles,
        writer: Writer,
        snapshot: Snapshot,
    ) -> None:
        self._config: Final = config
        self._passwords: Final = passwords
        self._files: Final = files
        self._writer: Final = writer
        self._snapshot, self._timers = snapshot, snapshot.timers
        self._inbox: Final = Inbox()
        self._probes: Final = {role: Probe(role, self._connector(), self._inbox) for role in Role}
        self._renewal: Final = Renewal(self._connector(), self._inbox)
        self._lookup: Final = Lookup(make_resolver(config.resolver), self._inbox)
        self._doorbell: Final = Doorbell(files, self._inbox)
        self._sampler: Final = Sampler(files, writer.is_in_place)
        self._fleet: Final = membership_of(config, files, self._inbox)
        self._duty = Duty()
        self._threads: Final = (
            *self._probes.values(),
            self._renewal,
            self._lookup,
            self._doorbell,
        )
        # The other threads are not essential for the monitor.
        self.threads: Final = (*self._threads, *self._fleet.threads, self._sampler)
        # The target for blue while the deployment is not known.
        self._first_target = config.first_target
        self._stopping: Final = threading.Event()
        self._looked_at = self._shown_at = 0.0
        # The time at which a process that uses the bg_id was seen last; 0 if the last check found none.
        self._seen_at = 0.0
        self._blind = False

    def stop(self) -> None:
        """End run() within a heartbeat."""
        self._stopping.set()

    def run(self, linger_s: float | None) -> None:
        """Watch until stopped, replaced, or not needed for *linger_s* seconds.

        Raises:
            Superseded: A later term has begun.
            Error: An essential thread has ended.
        """
        # Write the record that the last monitor could no longer write.
        self._keep_history(Snapshot(self._config.bg_id), self._snapshot)
        begun = observations.begin_to_watch(self._snapshot, self._config.parameters, now())
        # The last monitor was another member of the fleet.
        self._publish(replace(begun, fleet=self._fleet.view))
        self._replan()
        self._sampler.note(self._snapshot)
        try:
            for thread in self.threads:
                thread.start()
            self._watch(linger_s)
        finally:
            self._fleet.leave(self._snapshot)
            for thread in self.threads:
                thread.stop()

    def _watch(self, linger_s: float | None) -> None:
        needed_at = beat_at = time.monotonic()
        while not self._stopping.is_set():
            letter = self._inbox.get(self._idle_s(beat_at + HEARTBEAT_S))
            if letter is not None:
                self._open(letter)
            elif self._is_due():
                self._take(Tick(now()))
            self._note_silence()
            if time.monotonic() < beat_at + HEARTBEAT_S:
                continue
            beat_at = time.monotonic()
            if not self._writer.is_in_place():
                text = "monitor stops: another monitor has taken over, or the segment was removed"
                _logger.warning(text, extra=self._fields("monitor_stopped"))
                self._writer.leave()
                return
            dead = [thread.name for thread in self._threads if not thread.is_alive()]
            if dead:
                # A monitor that runs but receives nothing would be the worst case: the next one starts with all
                # threads.
                raise Error(f"monitor stops: its thread {', '.join(dead)} ended unexpectedly")
            self._writer.beat()
            self._doorbell.look()
            for probe in self._probes.values():
                probe.cut_if_stuck()
            if linger_s is not None and self._has_better(beat_at):
                return
            # A hold also applies to processes that start before it ends.
            if linger_s is None or self._is_needed(beat_at, linger_s) or self._snapshot.hold_until_ns:
                needed_at = beat_at
            elif beat_at - needed_at > linger_s:
                text = "monitor stops: no process has used bg_id %r for %.0f s"
                _logger.info(text, self._config.bg_id, linger_s, extra=self._fields("monitor_stopped"))
                # If processes cannot be detected, some may exist: a new segment would drain all their connections.
                if self._snapshot.phase not in SWITCHING and not self._blind:
                    self._writer.remove()
                return

    def _has_better(self, at_s: float) -> bool:
        """Return whether to try another pool's parameters, because this monitor's show nothing; then publish that.

        The segment stays in place, so that the next monitor knows which parameters were tried.
        """
        if at_s - self._looked_at < OFFERS_INTERVAL_S:
            return False
        self._looked_at = at_s
        at = now()
        # The cheap check first: if not even the best parameters would matter, the workers' rows need not be read.
        if not observations.should_leave(self._snapshot, observations.Visibility.SEEN, at.mono_ns):
            return False
        try:
            if not observations.should_leave(self._snapshot, best_offer(self._files), at.mono_ns):
                return False
        except SegmentError:
            # A process that cannot be read offers nothing.
            return False
        before = self._snapshot
        self._publish(leave_blind(before, at))
        self._log_notices(before)
        return True

    def _is_needed(self, at_s: float, linger_s: float) -> bool:
        """Return whether a process uses the bg_id.

        The check tries locks. If a process was seen just now, it does not matter whether others come and go.
        """
        if self._seen_at and at_s - self._seen_at < linger_s * PRESENCE_SHARE:
            return True
        try:
            needed = anybody_present(self._files)
        except SegmentError as error:
            if not self._blind:
                text = "the table of workers cannot be read, and no process can be seen: %s"
                _logger.warning(text, error, extra=self._fields("worker_table_unreadable"))
            self._blind = True
            needed = False
        else:
            self._blind = False
        self._seen_at = at_s if needed else 0.0
        return needed

    def _idle_s(self, beat_at: float) -> float:
        """Return the time until the next work, at most until *beat_at*, unless an event arrives.

        Changes that are due to time alone are made when they are due, not at the next event or heartbeat.
        """
        at = time.monotonic()
        due = [beat_at, self._duty.due_ns / 1e9]
        if self._timers:
            due += [moment for end_ns in self._timers if (moment := end_ns / 1e9) > at]
        limit_s = self._silence_limit_s()
        if limit_s:
            asked = [probe.asked_at for probe in self._probes.values()]
            due += [moment for asked_at in asked if asked_at and (moment := asked_at + limit_s) > at]
        return max(0.0, min(due) - at)

    def _is_due(self) -> bool:
        """Return whether time alone may have changed something; so it may in a fleet, and before the first row."""
        if self._fleet.counts_answers or not self._snapshot.timeline:
            return True
        return bool(self._timers) and time.monotonic_ns() >= min(self._timers)

    def _silence_limit_s(self) -> float:
        """Return the time without an answer that counts as a failure; 0 if it never does.

        A host that went away without notice fails no query; in a switchover its silence is information. For hosts that
        use this host's readings, it is information at any time.
        """
        if self._snapshot.phase in SWITCHING:
            return SILENCE_S
        return FLEET_SILENCE_S if self._fleet.leads else 0.0

    def _note_silence(self) -> None:
        limit_s = self._silence_limit_s()
        for role, probe in self._probes.items() if limit_s else ():
            if probe.unanswered_s() > limit_s:
                self._take(ProbeFailed(now(), role, f"no answer for {limit_s} s"))

    def _open(self, letter: EventBatch) -> None:
        """Handle a batch of events; if it changed nothing, repetitions are not queued while nothing else happens."""
        before = self._snapshot
        for event in letter.events:
            self._take(event)
        if is_settled(before, self._snapshot) and not self._fleet.counts_answers:
            self._inbox.settle(letter)

    def _take(self, event: AnyEvent) -> None:
        """Handle one event, of the database or the fleet, and the resulting readings of other hosts."""
        for heard in self._fleet.take(self._snapshot, event):
            self._step(heard, is_heard=True)
        if isinstance(event, ReportsRead):
            if event.nudged:
                self._nudge()
        elif not isinstance(event, FleetEvent):
            self._step(event)
            if isinstance(event, Nudged):
                self._nudge()
        self._attend()

    def _nudge(self) -> None:
        for probe in self._probes.values():
            probe.nudge()

    def _step(self, event: Event, *, is_heard: bool = False) -> None:
        """Apply *event*. A change is published before any other reaction to it."""
        before = self._snapshot
        after = step(before, event, self._config.rules)
        if after is before or after == before:
            return
        if is_heard:
            after = note_heard(before, after, event.at)
        self._publish(after)
        self._sampler.note(after)
        self._keep_history(before, after)
        self._log_notices(before)
        if after.phase is not before.phase:
            _logger.info("phase %s -> %s", before.phase.name, after.phase.name, extra=self._fields("phase_changed"))
        self._replan()

    def _attend(self) -> None:
        """Do this host's duty in its fleet: query or not, and publish to the other hosts."""
        before, self._duty = self._duty, self._fleet.attend(self._snapshot)
        if (before.asks, before.pace_ms) != (self._duty.asks, self._duty.pace_ms):
            self._replan()
            for role, probe in self._probes.items():
                place = PLACES[role]
                if self._duty.asks[place] not in (None, before.asks[place]):
                    probe.nudge()
        self._show_place()

    def _show_place(self) -> None:
        """Publish the host's role in its fleet, log lines about it, and the time of the last message."""
        self._writer.note_bus(self._fleet.heard_ns)
        before, view = self._snapshot, self._fleet.view
        shown = self._fleet.tell(before)
        if view is not None and before.fleet is not None:
            # Each snapshot wakes every worker, and in a large fleet the number of hosts changes often.
            only_hosts = replace(view, hosts=before.fleet.hosts) == before.fleet
            if view != before.fleet and not (only_hosts and time.monotonic() - self._shown_at < FLEET_SHOW_S):
                self._shown_at = time.monotonic()
                shown = replace(shown, fleet=view)
        if shown is not before:
            self._publish(shown)
            self._log_notices(before)

    def _publish(self, snapshot: Snapshot) -> None:
        self._snapshot, self._timers = snapshot, snapshot.timers
        self._inbox.unsettle()
        self._writer.publish(snapshot)

    def _log_notices(self, before: Snapshot) -> None:
        for notice in self._snapshot.notices:
            if not before.notices or notice.number > before.notices[-1].number:
                _log(notice, self._fields(notice.event))

    def _fields(self, event: str) -> dict[str, str]:
        return log_fields(event, bg_id=self._config.bg_id, phase=self._snapshot.phase)

    def _keep_history(self, before: Snapshot, after: Snapshot) -> None:
        if after.timeline == before.timeline:
            return
        try:
            history.keep(self._files, after, self._writer.is_in_place)
        except (OSError, SegmentError) as error:
            extra = self._fields("history_not_written")
            _logger.warning("the history of switchovers cannot be written: %s", error, extra=extra)

    def _replan(self) -> None:
        todo = plan(self._snapshot, self._config.intervals)
        for blue in self._snapshot.hosts_of(Role.SOURCE)[:1]:
            # It is better than an application's own endpoint, which may be a reader that loses its name in a
            # switchover.
            self._first_target = replace(self._config.first_target, host=blue.name, port=blue.port)
        targets = {Role.SOURCE: todo.source or self._first_target, Role.TARGET: todo.target}
        for role, target in targets.items():
            interval_ms, retry_ms = todo.pace_ms(role)
            asked = target if self._duty.asks[PLACES[role]] is not None else None
            self._probes[role].assign(
                asked,
                interval_ms=interval_ms,
                retry_ms=retry_ms,
                least_ms=self._duty.pace_ms,
                await_ms=todo.await_ms(role),
            )
        self._lookup.assign(todo.names, interval_ms=todo.resolve_ms)
        self._renewal.assign(todo.renewals if self._config.proves_names else ())

    def _connector(self) -> Callable[[Target], Session]:
        resolver, params = make_resolver(self._config.resolver), self._config.params
        session, application = SESSIONS[self._config.engine], self._config.application
        return lambda target: session(params, _resolved(target, resolver, self._config), self._passwords, application)


def _resolved(target: Target, resolver: Resolver, config: MonitorConfig) -> Target:
    """Return *target* under its real name, and with an address if bgpool's own resolver must find it."""
    if may_be_alias(target.host):
        # Certificates and tokens are for the endpoint. An alias that cannot be resolved to it is still usable.
        with contextlib.suppress(OSError):
            target = replace(target, host=real_endpoint(target.host, config.resolver) or target.host)
    if target.addresses or config.resolver == "system" or not target.host or target.host.startswith("/"):
        return target
    addresses = resolver.resolve(target.host)
    if not addresses:
        raise OSError(f"{target.host} does not exist")
    return replace(target, addresses=addresses)


def _log(notice: Notice, extra: Mapping[str, str]) -> None:
    logging.getLogger(notice.logger).log(notice.level, "%s", notice.text, extra=extra)

"""Deployments for tests. The test sets the phase, which a monitor reads in production.

>>> with bgpool.testing.deployment(green="127.0.0.2") as deployment:
...     pool = bgpool.get_pool("postgresql://app@127.0.0.1/app", bg_run_dir=deployment.run_dir)
...     deployment.phase(bgpool.Phase.IN_PROGRESS)  # checkouts are held
...     deployment.release()  # and go on, to green's address

In coroutines use ``async with`` and ``await_held``. The methods that set a phase only write to memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from bgpool.core.endpoints import name_after, normalise_host
from bgpool.core.events import Answered, Event, Instant, MetadataAbsent, Resolved, StatusRead, StatusRow, Tick
from bgpool.core.limits import HEARTBEAT_S
from bgpool.core.machine import Rules, step
from bgpool.core.phase import PHASE_OF_STATUS, SWITCHING, Phase, Role
from bgpool.core.snapshot import Snapshot
from bgpool.errors import ConfigurationError, Error
from bgpool.monitor.election import claim
from bgpool.monitor.probe import now
from bgpool.pools.loop_source import LoopSource
from bgpool.pools.waits import BLOCKING
from bgpool.registry import close_pools, pools_of
from bgpool.resolver import make_resolver
from bgpool.segment.locks import try_lock
from bgpool.segment.paths import RunFiles, look_in, memory_dir, prepare_run_dir
from bgpool.segment.presence import workers
from bgpool.segment.writer import Superseded, Writer
from bgpool.settings import Settings

__all__ = ["Block", "Deployment", "deployment"]

#: The address of blue's names after they have moved. No caller connects to it: it is not a recorded address (RFC 5737).
_ELSEWHERE: Final = ("192.0.2.1",)

_STATUS_OF_PHASE: Final = {phase: status for status, phase in PHASE_OF_STATUS.items()}


class Deployment:
    """A deployment whose phases a test sets. The consequences are decided by the real state machine.

    Attributes:
        run_dir: The run directory, for the pools' bg_run_dir or ``$BGPOOL_RUN_DIR``.
        bg_id: The id in the form of the pools' settings.
        snapshot: The snapshot that every pool reads.
    """

    def __init__(self, run_dir: Path, blue: str, green: str, settings: Settings) -> None:
        """Create a segment in *run_dir*, in CREATED and ready for a switchover. Use deployment() instead."""
        self.run_dir: Final = run_dir
        self.bg_id: Final = settings.bg_id
        self._blue, self._green = normalise_host(blue), normalise_host(green)
        self._rules: Final = Rules(settings.bg_switchover_timeout_ms)
        self._files: Final = RunFiles.of(run_dir, settings.bg_id)
        self._addresses: dict[str, tuple[str, ...]] = {}
        hosts = self._after(Snapshot(settings.bg_id), *self._facts(Phase.CREATED)).hosts
        self._addresses |= {host.name: make_resolver(settings.bg_resolver).resolve(host.name) for host in hosts}
        self.snapshot = self._after(Snapshot(settings.bg_id), *self._facts(Phase.CREATED))
        if not self.snapshot.ready:
            known = ", ".join(f"{name}={'/'.join(found) or 'not found'}" for name, found in self._addresses.items())
            raise ConfigurationError(f"blue and green must be two hosts with an address each: {known}")
        prepare_run_dir(run_dir)
        tenure = claim(self._files)
        if tenure is None:
            raise Error(f"a monitor of bg_id {self.bg_id!r} lives in {run_dir}; a test needs a directory of its own")
        # Two locks: the one that monitors are elected with, and the one without which no pool starts a monitor.
        self._locks: Final = (tenure.lock, try_lock(self._files.spawning))
        self._writer: Final = Writer(self._files, tenure.term, self.snapshot)
        # This replaces a segment that an earlier test has left in the directory.
        self._publish(self.snapshot)
        self._over: Final = threading.Event()
        self._heart: Final = threading.Thread(target=self._beat, name="bgpool-testing-heart", daemon=True)
        self._heart.start()

    def __repr__(self) -> str:
        return f"<Deployment {self.run_dir} bg_id={self.bg_id!r} phase={self.snapshot.phase.name}>"

    def phase(self, phase: Phase) -> None:
        """Make both sides report *phase*. Pools act on it immediately.

        For ``COMPLETED`` the state machine receives the event that the names have moved in DNS; the test decides
        whether they have.

        Raises:
            ValueError: There is no transition from the current phase to *phase*. Nothing was published.
        """
        if phase is self.snapshot.phase:
            return
        after = self._after(self.snapshot, *self._facts(phase))
        if after.phase is not phase:
            raise ValueError(f"a deployment in {self.snapshot.phase.name} does not go to {phase.name}")
        self._publish(after)

    def release(self) -> None:
        """Promote green: held callers are released, with new connections to green's address. Same as ``phase(POST)``.

        Raises:
            ValueError: There is no transition from the current phase to POST.
        """
        self.phase(Phase.POST)

    def roll_back(self) -> None:
        """Roll back to blue: held callers are released and connect there.

        Raises:
            ValueError: There is no switchover that can still be rolled back.
        """
        if self.snapshot.phase not in (Phase.PREPARATION, Phase.IN_PROGRESS):
            raise ValueError(f"nothing is rolled back from {self.snapshot.phase.name}")
        self.phase(Phase.CREATED)

    def expire_timer(self) -> None:
        """Publish the state after ``bg_switchover_timeout_ms``, without waiting for it.

        Raises:
            ValueError: There is no switchover in progress.
        """
        if self.snapshot.phase not in SWITCHING:
            raise ValueError(f"no timer runs in {self.snapshot.phase.name}")
        self.tell(Tick(Instant(self.snapshot.deadline_ns, time.time_ns())))

    def tell(self, *events: Event) -> None:
        """Publish the state after *events* of bgpool.core.events, for cases that the other methods do not cover."""
        self._publish(self._after(self.snapshot, *events))

    def wait_held(self, callers: int = 1, *, timeout_s: float = 5.0) -> None:
        """Wait until at least *callers* are held, in all processes that use the deployment. Linux only.

        This blocks the thread. If the thread runs an event loop, use await_held, so that the loop's tasks continue.

        Raises:
            TimeoutError: Fewer callers were held after *timeout_s* seconds.
        """
        BLOCKING.finish(self._await_held(BLOCKING.sleep, callers, timeout_s))

    async def await_held(self, callers: int = 1, *, timeout_s: float = 5.0) -> None:
        """Like wait_held, for asyncio: the event loop is not blocked."""
        await self._await_held(asyncio.sleep, callers, timeout_s)

    async def _await_held(self, sleep: Callable[[float], Awaitable[None]], callers: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (held := sum(row.usage.held for row in workers(self._files))) < callers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{held} callers were held after {timeout_s} s, not {callers}")
            await sleep(0.01)

    def close(self) -> None:
        """Close the pools of this process that use the deployment, and remove the segment.

        A caller that is still held gets PoolClosed. Close pools of other processes before: they would start a monitor.
        """
        close_pools(self.run_dir, self.bg_id)
        self._take_away()

    async def aclose(self) -> None:
        """Like close, for asyncio: the connections of the current event loop are closed when it returns."""
        for pool in pools_of(self.run_dir, self.bg_id):
            if isinstance(pool, LoopSource):
                await pool.close()
            else:
                await asyncio.to_thread(pool.stop)
        self._take_away()

    def _take_away(self) -> None:
        self._publish(Snapshot(self.bg_id, epoch=self.snapshot.epoch))
        self._over.set()
        self._heart.join()
        self._writer.remove()
        for lock in self._locks:
            if lock is not None:
                lock.release()

    def _beat(self) -> None:
        # If the directory is deleted, the deployment is over.
        with contextlib.suppress(Superseded):
            while not self._over.wait(HEARTBEAT_S):
                self._writer.beat()

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._writer.publish(snapshot)

    def _after(self, snapshot: Snapshot, *events: Event) -> Snapshot:
        for event in events:
            snapshot = step(snapshot, event, self._rules)
        return snapshot

    def _facts(self, phase: Phase) -> list[Event]:
        """Return the events that lead to *phase*. Green's come first, because only green can report a rollback."""
        at = now()
        if phase is Phase.NOT_CREATED:
            return [MetadataAbsent(at, Role.SOURCE, "the deployment was deleted")]
        sides = {Role.SOURCE: self._blue, Role.TARGET: self._green}
        if phase is Phase.COMPLETED:
            sides = {Role.TARGET: name_after(self._green)}
        rows = tuple(StatusRow(name, 0, role.value, _STATUS_OF_PHASE[phase]) for role, name in sides.items())
        facts: list[Event] = [StatusRead(at, role, rows) for role in (Role.TARGET, Role.SOURCE)]
        if phase >= Phase.POST:
            # The metadata release no caller while green answers that it is read-only. In CREATED the answer would be
            # taken as green's state before the switchover.
            first = self.snapshot.phase > Phase.CREATED
            facts.insert(0 if first else len(facts), Answered(at, Role.TARGET, read_only=False))
        if phase is Phase.CREATED:
            facts += [Answered(at, role, read_only=role is Role.TARGET) for role in Role]
            facts.append(Resolved(at, self._addresses))
        if phase is Phase.COMPLETED:
            blue = {host.name for host in self.snapshot.hosts_of(Role.SOURCE)}
            facts.append(Resolved(at, {name: _ELSEWHERE if name in blue else () for name in self._addresses}))
        return facts


def deployment(
    run_dir: str | os.PathLike[str] | None = None,
    *,
    blue: str = "127.0.0.1",
    green: str = "127.0.0.2",
    bg_id: str | int = "1",
    bg_resolver: str = "system",
    bg_switchover_timeout_ms: int = 180_000,
) -> Block:
    """Return a deployment for a ``with`` or ``async with`` block, in ``CREATED`` and ready for a switchover.

    It replaces the elected monitor: it holds the monitor's lock and writes a heartbeat, so that no pool starts a
    monitor. Only the pools open connections.

    Args:
        run_dir: A directory for this test alone, such as pytest's ``tmp_path``. By default a directory in memory is
            created and removed.
        blue: The host of the DSN under test.
        green: Another host, to which connections go after the release.
        bg_id, bg_resolver: The same as for the pools. The names are resolved once.
        bg_switchover_timeout_ms: The same as for the pools; runs from PREPARATION in real time.

    Raises:
        ConfigurationError: A parameter is invalid, or a host has no address.
        SegmentError: The directory cannot be used.
        Error: A monitor already uses the directory.
    """
    given = {"bg_id": bg_id, "bg_resolver": bg_resolver, "bg_switchover_timeout_ms": bg_switchover_timeout_ms}
    return Block(run_dir, blue, green, Settings.from_mapping(given))


class Block:
    """The context manager that deployment() returns, for ``with`` or ``async with``. It can be used once."""

    def __init__(self, run_dir: str | os.PathLike[str] | None, blue: str, green: str, settings: Settings) -> None:
        """See deployment(). Nothing is created before the block begins."""
        self._run_dir: Final = run_dir
        self._hosts: Final = (blue, green)
        self._settings: Final = settings

    def __enter__(self) -> Deployment:
        with contextlib.ExitStack() as stack:
            run_dir = self._run_dir
            if run_dir is None:
                run_dir = tempfile.mkdtemp(prefix="bgpool-test-", dir=memory_dir())
                stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
            self._made = Deployment(look_in(Path(run_dir)), *self._hosts, self._settings)
            self._after = stack.pop_all()
        return self._made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._after:
            self._made.close()

    async def __aenter__(self) -> Deployment:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._after:
            await self._made.aclose()

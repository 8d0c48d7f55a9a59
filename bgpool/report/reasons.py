"""The obstacles to a switchover of a host, as texts that say what to check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bgpool.base_errors import ConfigurationError
from bgpool.core.fleet import FleetRole
from bgpool.core.limits import PASSWORD_TIMEOUT_S
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeouts import hold_misfit, timer_misfit
from bgpool.report.model import Monitor, Worker, over_by_timer
from bgpool.segment.kernel_features import LACKS
from bgpool.segment.table import ROWS, Usage
from bgpool.settings import DISABLE, is_disabled

__all__ = ["degraded", "left_alone", "notes", "of_deployment", "proxies", "reasons", "receipts", "switched_off"]

#: The maximum of pids or names in one reason; a host may have hundreds of workers.
_NAMED = 8


def switched_off() -> tuple[str, ...]:
    """Return a reason if ``$BGPOOL_DISABLE`` is set here. Processes in which it is set are not visible at all."""
    try:
        disabled = is_disabled()
    except ConfigurationError as error:
        return (str(error),)
    return (f"${DISABLE} is set here: with it every pool is a plain pool; unset it",) if disabled else ()


def reasons(snapshot: Snapshot | None, monitor: Monitor, workers: Sequence[Worker]) -> tuple[str, ...]:
    """Return all obstacles; empty if a switchover may begin."""
    if monitor.state == "none" and not workers:
        return ("no process on this host uses this bg_id",)
    return (*_of_monitor(snapshot, monitor), *of_deployment(snapshot), *_of_workers(workers))


def notes(usages: Iterable[Usage]) -> tuple[str, ...]:
    """Return the warnings about time limits of all processes of a host, without duplicates."""
    found: dict[str, None] = {}
    for usage in usages:
        found[timer_misfit(usage.timer_ms)] = None
        found[hold_misfit(usage.hold_limit_ms, usage.busy_limit_ms)] = None
    return tuple(text for text in found if text)


def proxies(workers: Sequence[Worker]) -> Iterator[str]:
    """Return a reason if pools connect through a proxy, which then decides about a switchover."""
    if proxied := [worker.pid for worker in workers if worker.behind_proxy]:
        yield (
            f"{len(proxied)} of {len(workers)} workers have a pool behind a proxy, which bgpool leaves alone: pid "
            f"{_some(proxied)}; the worker's log names both ports"
        )


def _of_monitor(snapshot: Snapshot | None, monitor: Monitor) -> Iterator[str]:
    if monitor.state == "none":
        yield "no monitor is running: see its log in the run directory, or the journal of bgpool monitor"
        return
    if monitor.state == "silent":
        since = f"for {monitor.age_s:.1f} s" if monitor.age_s is not None else "since this host was started"
        yield f"the monitor (pid {monitor.pid}, term {monitor.term}) has had no heartbeat {since}"
    if snapshot is None:
        yield "the monitor has published nothing yet"


def of_deployment(snapshot: Snapshot | None) -> Iterator[str]:
    """Return the obstacles in the published snapshot; empty without a snapshot, which another function reports."""
    if snapshot is None:
        return
    if snapshot.hold_until_ns:
        yield "an operator holds every checkout (bgpool hold): bgpool release ends the hold"
    if snapshot.phase is Phase.NOT_CREATED:
        mine = f" with the parameters of {snapshot.observations[-1].parameters}" if snapshot.observations else ""
        yield f"no deployment is seen in the metadata{mine}{_monitor_said(snapshot)}"
    elif snapshot.phase is Phase.COMPLETED and over_by_timer(snapshot.timeline):
        yield "the switchover counts as over by the timer, and nothing has shown that green was promoted: look at AWS"
    elif snapshot.phase is Phase.COMPLETED:
        yield "the switchover is over, and no new deployment is seen"
    elif snapshot.phase in SWITCHING:
        yield f"a switchover is under way: {snapshot.phase.name}"
    else:
        yield from _of_inventory(snapshot)


def _of_inventory(snapshot: Snapshot) -> Iterator[str]:
    """Return what is missing in the inventory (core/inventory.py), and the processes that would miss a switchover."""
    found = []
    for role in Role:
        if not snapshot.hosts_of(role):
            found.append(f"no {role.colour} endpoint is seen")
        elif snapshot.reading(role) is None:
            found.append(f"the status of {role.colour} is not known yet")
    mapped = {blue for blue, _ in snapshot.twins}
    if lone := [host.name for host in snapshot.hosts_of(Role.SOURCE) if host.name not in mapped]:
        found.append(f"no green counterpart is known for {_some(lone)}")
    if lost := [host.name for host in snapshot.hosts if not host.addresses]:
        found.append(f"no address is known for {_some(lost)}")
    if not snapshot.ready:
        yield from found or ["the inventory is not complete"]
    for role, read_only in ((Role.SOURCE, snapshot.source_read_only), (Role.TARGET, snapshot.target_read_only)):
        if read_only is None and snapshot.hosts_of(role):
            yield f"{role.colour} does not answer the monitor"


def _of_workers(workers: Sequence[Worker]) -> Iterator[str]:
    if not workers:
        yield (
            "no worker: no process on this host uses a pool with this bg_id; a host that runs only the monitor is "
            "never ready: run this on the application's hosts"
        )
    if outside := [worker.pid for worker in workers if worker.outside]:
        yield (
            f"{len(outside)} of {len(workers)} workers have a pool that takes no part: pid {_some(outside)}; its host "
            "is neither a blue nor a green endpoint, and the worker's log names it"
        )
    if stuck := [worker.pid for worker in workers if worker.stuck_passwords]:
        yield (
            f"the password callable hangs in {len(stuck)} of {len(workers)} workers: pid {_some(stuck)}; it has not "
            f"returned for {PASSWORD_TIMEOUT_S:.0f} s, and no connection can be opened there"
        )
    if refused := [worker.pid for worker in workers if worker.locked_out]:
        yield (
            f"the login of {len(refused)} of {len(workers)} workers does not work on green: pid {_some(refused)}; the "
            "worker's log has the reason and what to do"
        )
    if late := [worker.pid for worker in workers if worker.behind]:
        yield f"the newest snapshot is not applied by {len(late)} of {len(workers)} workers: pid {_some(late)}"
    if stale := [worker.pid for worker in workers if worker.stale]:
        oldest_s = max(worker.age_s for worker in workers)
        yield f"{len(stale)} of {len(workers)} workers have not reported for {oldest_s:.1f} s: pid {_some(stale)}"
    if len(workers) >= ROWS:
        yield f"all {ROWS} rows of the table of workers are taken: there may be workers that cannot be seen"


def receipts(workers: Sequence[Worker]) -> tuple[str, ...]:
    """Return a reason if units of work have no receipts although they are configured."""
    if not (without := [worker.pid for worker in workers if worker.no_receipts]):
        return ()
    return (
        f"the receipts table cannot be used in {len(without)} of {len(workers)} workers: pid {_some(without)}; the "
        "worker's log and bgpool receipts --check have the reason",
    )


def degraded(workers: Sequence[Worker]) -> tuple[str, ...]:
    """Return the kernel features that workers cannot use, and the consequences."""
    found = []
    for lack in LACKS.values():
        if pids := [worker.pid for worker in workers if lack.name in worker.lacks]:
            found.append(
                f"{lack.name}, in {len(pids)} of {len(workers)} workers (pid {_some(pids)}): {lack.text}; {lack.remedy}"
            )
    return tuple(found)


def left_alone(snapshot: Snapshot | None, monitor: Monitor) -> tuple[str, ...]:
    """Return a note if a host queries the database itself although it has a bus and a deployment exists."""
    if snapshot is None or snapshot.fleet is None or monitor.state != "alive" or snapshot.phase is Phase.NOT_CREATED:
        return ()
    if snapshot.fleet.standing is not FleetRole.DIRECT:
        return ()
    return (f"this host has a fleet's bus, but queries the database itself: {snapshot.fleet.reason}",)


def _monitor_said(snapshot: Snapshot) -> str:
    """Return the monitor's advice about missing metadata, if it has published one."""
    said = [
        notice.text
        for notice in snapshot.notices
        # Lines about the fleet say nothing about the database.
        if notice.logger == "bgpool.monitor" and not notice.event.startswith("fleet_")
    ]
    return f"; the monitor reports: {' '.join(said[-1].split())}" if said else ""


def _some(items: Iterable[object]) -> str:
    names = [str(item) for item in items]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

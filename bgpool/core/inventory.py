"""The inventory: the hosts of both sides and their addresses, recorded before the switchover moves any of them."""

from __future__ import annotations

from dataclasses import replace

from bgpool.core import topology
from bgpool.core.events import Resolved, StatusRead
from bgpool.core.limits import ADDRESSES_PER_NAME, ENDPOINTS
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot

__all__ = ["addresses", "has_moved", "is_complete", "leads_to_green", "record_addresses", "record_hosts"]


def record_hosts(snapshot: Snapshot, event: StatusRead) -> Snapshot:
    """Record the hosts of each side, until the record is complete and a switchover begins."""
    frozen = snapshot.ready and snapshot.phase is not Phase.CREATED
    if frozen or not Phase.CREATED <= snapshot.phase <= Phase.IN_PROGRESS:
        return snapshot
    hosts: list[Host] = []
    for role in Role:
        found = topology.hosts_from(event.rows, event.servers if role is event.role else (), role)
        known = snapshot.hosts_of(role)
        # Rows name both sides, but only a side's own server knows its topology.
        found = found if role is event.role or not known else known
        taken = {host.name for host in hosts}
        hosts += [
            replace(host, addresses=addresses(snapshot, host.name)) for host in found or known if host.name not in taken
        ]
    hosts = hosts[:ENDPOINTS]
    if tuple(hosts) == snapshot.hosts:
        return snapshot
    blue = [host for host in hosts if host.role is Role.SOURCE]
    green = [host for host in hosts if host.role is Role.TARGET]
    twins = topology.correspondence(blue, green)
    return replace(snapshot, hosts=tuple(hosts), twins=twins)


def addresses(snapshot: Snapshot, name: str) -> tuple[str, ...]:
    """Return the addresses recorded for *name*; none if the host is not part of the deployment."""
    host = snapshot.host(name)
    return host.addresses if host is not None else ()


def record_addresses(snapshot: Snapshot, event: Resolved) -> Snapshot:
    """Record the addresses of the hosts.

    A name that was not found keeps its recorded addresses. So does a blue name that resolves to its green counterpart:
    a switchover happened while no monitor watched, and only the old addresses can show that.
    """
    hosts = []
    for host in snapshot.hosts:
        found = event.addresses.get(host.name, ())[:ADDRESSES_PER_NAME]
        if found and found != host.addresses and not (host.addresses and _is_greens(snapshot, host.name, found)):
            host = replace(host, addresses=found)
        hosts.append(host)
    return snapshot if tuple(hosts) == snapshot.hosts else replace(snapshot, hosts=tuple(hosts))


def is_complete(snapshot: Snapshot) -> bool:
    """Return whether both sides have answered, every host has an address and every blue endpoint has a counterpart."""
    blue = snapshot.hosts_of(Role.SOURCE)
    return (
        bool(blue)
        and bool(snapshot.hosts_of(Role.TARGET))
        and len(snapshot.twins) == len(blue)
        and None not in (snapshot.source_reading, snapshot.target_reading)
        and all(host.addresses for host in snapshot.hosts)
    )


def has_moved(snapshot: Snapshot, event: Resolved) -> bool:
    """Return whether blue's names no longer resolve to any of their recorded addresses.

    The first name, the writer's, must resolve. Another name may not exist any longer: a reader without a counterpart is
    renamed, and no host takes over its name.
    """
    blue = [host for host in snapshot.hosts_of(Role.SOURCE) if host.addresses]
    return (
        bool(blue)
        and bool(event.addresses.get(blue[0].name))
        and all(
            host.name in event.addresses and not set(event.addresses[host.name]) & set(host.addresses) for host in blue
        )
    )


def leads_to_green(snapshot: Snapshot, event: Resolved) -> bool:
    """Return whether the writer's name resolves only to recorded addresses of its green counterpart."""
    blue = snapshot.hosts_of(Role.SOURCE)
    return bool(blue) and _is_greens(snapshot, blue[0].name, event.addresses.get(blue[0].name, ()))


def _is_greens(snapshot: Snapshot, blue: str, found: tuple[str, ...]) -> bool:
    twin = snapshot.twin(blue)
    return twin is not None and bool(found) and set(found) <= set(twin.addresses)

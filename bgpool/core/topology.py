"""Derive the endpoints of both sides from metadata rows, and the green counterpart of each blue endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bgpool.core.endpoints import Kind, normalise_host, parse_endpoint
from bgpool.core.events import StatusRow
from bgpool.core.phase import Role
from bgpool.core.snapshot import Host

__all__ = ["correspondence", "counting_row", "hosts_from"]

#: An instance endpoint, or a host name of unknown shape, which can only be a single host.
_INSTANCES = (Kind.INSTANCE, None)


def counting_row(rows: Iterable[StatusRow], role: Role) -> StatusRow | None:
    """Return the row whose status counts for *role*: its writer cluster endpoint, else an instance; never old blue.

    Source: behaviour.md §2; RDS lists one instance per role, Aurora the cluster and its instances.
    """
    mine = _rows_of(rows, role)
    return next(
        (row for row in mine if _kind(row.endpoint) is Kind.WRITER),
        next((row for row in mine if _kind(row.endpoint) in _INSTANCES), None),
    )


def hosts_from(rows: Sequence[StatusRow], servers: Sequence[str], role: Role) -> tuple[Host, ...]:
    """Return every endpoint of *role* in the metadata and the topology, without duplicates, the counting one first.

    Args:
        rows: The metadata of either side; rows of the other role are ignored.
        servers: Server ids of this side's topology; empty if the rows name the instances themselves.
        role: The side.
    """
    first = counting_row(rows, role)
    if first is None:
        return ()
    names = [normalise_host(first.endpoint)]
    endpoint = parse_endpoint(first.endpoint)
    if endpoint is not None:
        names += [endpoint.reader.host] if endpoint.reader is not None else []
        names += [endpoint.instance(server).host for server in servers]
    names += [normalise_host(row.endpoint) for row in _rows_of(rows, role)]
    return tuple(Host(name, first.port, role) for name in dict.fromkeys(names) if _may_be(name, role))


def correspondence(blue: Sequence[Host], green: Sequence[Host]) -> tuple[tuple[str, str], ...]:
    """Return the map blue name → green name for every blue endpoint; empty if there are no green endpoints.

    The writer maps to the writer. Cluster, reader and custom endpoints map to their counterparts by base name. A blue
    reader maps to the green reader with the same base name, else in sorted order round-robin to green's readers, else
    to green's writer. Both sides must have the counting endpoint first and the writer before other instances. Without a
    cluster only this position identifies the writer, and all instances are matched by base name.

    Source: behaviour.md §2, "Correspondence".
    """
    if not green:
        return ()
    writer, *readers = _instances(green) or [green[0].name]
    blue_writer, *blue_readers = _instances(blue) or [""]
    by_base = {_base_key(name): name for name in reversed([host.name for host in green])}
    reader_by_base = {_base_key(name): name for name in readers}
    unmatched = sorted(name for name in blue_readers if _base_key(name) not in reader_by_base)
    twins = {name: readers[n % len(readers)] if readers else writer for n, name in enumerate(unmatched)}
    twins |= {name: reader_by_base[key] for name in blue_readers if (key := _base_key(name)) in reader_by_base}
    twins |= {blue_writer: writer}
    if not any(_kind(host.name) is Kind.WRITER for host in blue):
        twins |= {name: by_base[key] for name in (blue_writer, *blue_readers) if (key := _base_key(name)) in by_base}
    return tuple((host.name, twins.get(host.name) or by_base.get(_base_key(host.name), green[0].name)) for host in blue)


def _instances(hosts: Sequence[Host]) -> list[str]:
    return [host.name for host in hosts if _kind(host.name) in _INSTANCES]


def _may_be(host: str, role: Role) -> bool:
    """Return whether *host* may belong to *role*. A green name without ``-green-`` is already blue's name."""
    name = parse_endpoint(host)
    return role is Role.SOURCE or name is None or name.is_green


def _rows_of(rows: Iterable[StatusRow], role: Role) -> list[StatusRow]:
    """Return the rows of *role* that have an endpoint and are not old blue's."""
    return [
        row
        for row in rows
        if row.role.strip().upper() == role.value and row.endpoint.strip() and not _is_old(row.endpoint)
    ]


def _base_key(host: str) -> tuple[str, Kind | None]:
    name = parse_endpoint(host)
    return (name.base, name.kind) if name is not None else (host, None)


def _kind(host: str) -> Kind | None:
    name = parse_endpoint(host)
    return name.kind if name is not None else None


def _is_old(host: str) -> bool:
    name = parse_endpoint(host)
    return name is not None and name.is_old

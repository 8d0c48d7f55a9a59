"""Names of RDS and Aurora endpoints: their parts, and how a switchover changes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from bgpool.core.limits import NAME_CHARS

__all__ = ["EndpointName", "Kind", "name_after", "names_when_old", "normalise_host", "parse_endpoint"]


class Kind(Enum):
    """The kind of an endpoint. The value is the label's prefix before the account's DNS id."""

    WRITER = "cluster-"
    READER = "cluster-ro-"
    CUSTOM = "cluster-custom-"
    PROXY = "proxy-"
    GLOBAL = "global-"
    INSTANCE = ""


_ENDPOINT = re.compile(
    r"""
    (?P<name>[^.]+)\.
    (?P<kind>cluster-ro-|cluster-custom-|cluster-|proxy-|global-)?(?P<id>[^.]+)\.
    (?P<zone>
        [a-z0-9-]+\.rds\.amazonaws\.com(?:\.cn)?
      | rds\.[a-z0-9-]+\.(?:amazonaws\.com\.cn|c2s\.ic\.gov|sc2s\.sgov\.gov)
    )
    """,
    re.VERBOSE,
)
_GREEN = re.compile(r"(?P<base>.+)-green-[0-9a-z]{6}")
_OLD = re.compile(r"(?P<base>.+)-old[0-9]+")


@dataclass(frozen=True, slots=True)
class EndpointName:
    """The parts of ``<name>.<kind><id>.<zone>``, all lower-case.

    Source: endpoint shapes of behaviour.md §2; the China and the two isolated partitions have zones of their own.
    """

    name: str
    kind: Kind
    id: str
    zone: str

    @property
    def host(self) -> str:
        """The whole host name."""
        return f"{self.name}.{self.kind.value}{self.id}.{self.zone}"

    @property
    def region(self) -> str:
        """The AWS region, which is the zone's first label or, in some partitions, its second."""
        first, second = self.zone.split(".")[:2]
        return second if first == "rds" else first

    @property
    def is_green(self) -> bool:
        """True if the name ends with ``-green-`` and six characters of [0-9a-z]."""
        return _GREEN.fullmatch(self.name) is not None

    @property
    def is_old(self) -> bool:
        """True if this is old blue after a switchover, ``<name>-old1``."""
        return _OLD.fullmatch(self.name) is not None

    @property
    def base(self) -> str:
        """The name that blue and green have in common: without ``-green-xxxxxx`` or ``-oldN``."""
        match = _GREEN.fullmatch(self.name) or _OLD.fullmatch(self.name)
        return match["base"] if match else self.name

    @property
    def reader(self) -> EndpointName | None:
        """The reader endpoint of the same cluster; None unless this is a writer endpoint."""
        return EndpointName(self.name, Kind.READER, self.id, self.zone) if self.kind is Kind.WRITER else None

    def instance(self, server_id: str) -> EndpointName:
        """The instance endpoint of the server *server_id* in the same account, region and partition."""
        return EndpointName(server_id.lower(), Kind.INSTANCE, self.id, self.zone)


def normalise_host(host: str) -> str:
    """Return *host* in the form in which names are compared: lower-case, no trailing dot, no surrounding blanks."""
    return host.strip().rstrip(".").lower()


def parse_endpoint(host: str) -> EndpointName | None:
    """Return the parts of an RDS or Aurora endpoint; None for any other name, an address, or an overlong name."""
    if len(host) > NAME_CHARS + 1:
        return None
    match = _ENDPOINT.fullmatch(normalise_host(host))
    if match is None:
        return None
    return EndpointName(match["name"], Kind(match["kind"] or ""), match["id"], match["zone"])


def name_after(host: str) -> str:
    """Return the name of the green host *host* after the switchover; *host* itself if it is not a green name."""
    name = parse_endpoint(host)
    return EndpointName(name.base, name.kind, name.id, name.zone).host if name is not None and name.is_green else host


def names_when_old(host: str) -> tuple[str, ...]:
    """Return the names that the blue host *host* may have after a switchover: ``<name>-old1``, then *host* itself."""
    name = parse_endpoint(host)
    if name is None or name.is_old:
        return (host,)
    return EndpointName(f"{name.name}-old1", name.kind, name.id, name.zone).host, host

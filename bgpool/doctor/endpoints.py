"""Checks of every endpoint of a side: look-up and login, concurrently and each with its own time limit."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bgpool.core.endpoints import normalise_host
from bgpool.doctor.bounded import side_by_side
from bgpool.doctor.case import Case
from bgpool.doctor.findings import Checks, Verdict, failed, not_checked, ok, warning
from bgpool.doctor.server import cache_warning, open_session
from bgpool.failures import first_line
from bgpool.monitor.session import SessionError
from bgpool.resolver import is_address

__all__ = ["Endpoint", "endpoints_checks", "look_up", "visit"]

#: The duration of a look-up that causes a warning, in seconds: a monitor makes ten per second in a switchover.
SLOW_LOOKUP_S: Final = 1.0
#: RDS's own zones have a TTL of 5 s. A TTL above this outlasts the longest part of a switchover, in seconds.
LONG_TTL_S: Final = 60
_SPARE_S: Final = 1.0
#: The limit of a plain socket connection after a failed login, in seconds.
_SOCKET_S: Final = 2.0


@dataclass(slots=True)
class Endpoint:
    """A name, and the results of its look-up and login.

    Attributes:
        addresses: The addresses; None before the look-up.
        lookup_s: The duration of the look-up in seconds.
        ttl_s: The answer's remaining time to live in seconds; None if unknown.
        unresolved: The reason for which there are no addresses.
        login_s: The duration of the login in seconds.
        refused: The reason of a refused login; None before the attempt.
        cache_warning: A warning that other servers may refuse the login, see BoundedConnection.
    """

    name: str
    port: int
    addresses: tuple[str, ...] | None = None
    lookup_s: float = 0.0
    ttl_s: int | None = None
    unresolved: str = ""
    login_s: float = 0.0
    refused: str | None = None
    cache_warning: str = ""

    @property
    def place(self) -> str:
        """The name and port, for texts."""
        return f"{self.name or 'the local socket'}:{self.port}"

    @property
    def has_name(self) -> bool:
        """True if there is a name to look up."""
        return bool(self.name) and not self.name.startswith("/") and not is_address(self.name)


endpoints_checks: Final[Checks[Sequence[Endpoint]]] = Checks()


def look_up(case: Case, endpoints: Sequence[Endpoint]) -> None:
    """Look up the names of *endpoints* concurrently."""
    named = [endpoint for endpoint in endpoints if endpoint.has_name]
    done = side_by_side([partial(_look_up, case, endpoint) for endpoint in named], case.timeout_s)
    for endpoint, finished in zip(named, done, strict=True):
        if not finished:
            endpoint.unresolved, endpoint.lookup_s = f"no answer within {case.timeout_s} s", float(case.timeout_s)
    # Separately and afterwards: it queries the DNS server that is configured, if any.
    done = side_by_side([partial(_ask_ttl, case, endpoint) for endpoint in named if endpoint.addresses], case.timeout_s)


def visit(case: Case, endpoints: Sequence[Endpoint]) -> None:
    """Log in at *endpoints* like the application, concurrently."""
    done = side_by_side([partial(_visit, case, endpoint) for endpoint in endpoints], case.timeout_s + 2 * _SPARE_S)
    for endpoint, finished in zip(endpoints, done, strict=True):
        if not finished:
            endpoint.refused = f"no answer within {case.timeout_s} s"


@endpoints_checks.check("dns", "Does every endpoint resolve, and soon?")
def _dns(endpoints: Sequence[Endpoint]) -> Verdict:
    named = [endpoint for endpoint in endpoints if endpoint.has_name]
    if not named:
        return not_checked("there is no name to look up")
    lost = [endpoint for endpoint in named if not endpoint.addresses]
    if lost:
        return failed(
            "; ".join(f"{endpoint.name}: {endpoint.unresolved}" for endpoint in lost),
            "have this host's resolver know these names; without their addresses no switchover is ready",
        )
    slowest = max(named, key=lambda endpoint: endpoint.lookup_s)
    text = ", ".join(f"{endpoint.name} {' '.join(endpoint.addresses or ())}" for endpoint in named)
    text += f"; {slowest.lookup_s * 1000:.0f} ms"
    if slowest.lookup_s > SLOW_LOOKUP_S:
        return warning(text, f"find out why {slowest.name} takes so long; the monitor looks names up again and again")
    return ok(text)


@endpoints_checks.check("dns ttl", "For how long may an address be cached?")
def _dns_ttl(endpoints: Sequence[Endpoint]) -> Verdict:
    told = [endpoint for endpoint in endpoints if endpoint.ttl_s is not None]
    if not told:
        return not_checked("unknown: a hosts file, no DNS server, or no dnspython (pip install 'bgpool[dns]')")
    longest = max(told, key=lambda endpoint: endpoint.ttl_s or 0)
    text = f"{longest.ttl_s} s at most ({longest.name}); RDS's own is 5 s"
    if (longest.ttl_s or 0) > LONG_TTL_S:
        return warning(text, f"have this host's DNS server, or the alias's zone, keep it for {LONG_TTL_S} s at most")
    return ok(text)


@endpoints_checks.check("reachable", "Does every endpoint let the application in?")
def _reachable(endpoints: Sequence[Endpoint]) -> Verdict:
    refused = [endpoint for endpoint in endpoints if endpoint.refused]
    if refused:
        return failed(
            "; ".join(f"{endpoint.place}: {endpoint.refused}" for endpoint in refused),
            "have every endpoint of both sides let the application's user in from this host: route, security group, "
            "account, password, database",
        )
    if any(endpoint.refused is None for endpoint in endpoints):
        return not_checked("nobody tried")
    if depends := [endpoint for endpoint in endpoints if endpoint.cache_warning]:
        return failed(*depends[0].cache_warning.rsplit("; ", 1))
    slowest = max(endpoint.login_s for endpoint in endpoints)
    names = ", ".join(endpoint.name or "the local socket" for endpoint in endpoints)
    return ok(f"{names}; logged in within {slowest * 1000:.0f} ms")


def _look_up(case: Case, endpoint: Endpoint) -> bool:
    began = time.monotonic()
    try:
        addresses = case.resolver.resolve(endpoint.name)
        unresolved = "" if addresses else "there is no such name"
    except OSError as error:
        addresses, unresolved = (), first_line(error)
    endpoint.lookup_s, endpoint.unresolved = time.monotonic() - began, unresolved
    endpoint.addresses = addresses
    return True


def _ask_ttl(case: Case, endpoint: Endpoint) -> bool:
    setting = case.settings.bg_resolver
    if setting.startswith("hosts:"):
        return True
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        return True
    try:
        asked = dns.resolver.Resolver(configure=setting == "system")
        if setting != "system":
            host, _, port = setting.removeprefix("dns://").rpartition(":")
            asked.nameservers, asked.port = [host.strip("[]")], int(port)
        answer = asked.resolve(endpoint.name, "A", search=False, lifetime=case.timeout_s / 2)
        endpoint.ttl_s = answer.chaining_result.minimum_ttl
    except dns.exception.DNSException:
        pass  # The system may have other sources of names.
    return True


def _visit(case: Case, endpoint: Endpoint) -> bool:
    began = time.monotonic()
    if endpoint.has_name and not endpoint.addresses:
        endpoint.refused = "it does not resolve"
        return True
    try:
        session = open_session(case, case.application, endpoint.name, endpoint.port, case.dsn.password)
        endpoint.refused, endpoint.cache_warning = "", cache_warning(session)
        session.close()
    except (SessionError, OSError) as error:
        text = str(error) if isinstance(error, SessionError) else first_line(error)
        endpoint.refused = f"{case.without_secrets(text)} ({_tell_socket(endpoint)})"
    endpoint.login_s = time.monotonic() - began
    return True


def _tell_socket(endpoint: Endpoint) -> str:
    """Determine whether the network is the cause. Only after a failure: servers count connections without a login."""
    if not endpoint.name or endpoint.name.startswith("/"):
        return "no TCP"
    address = (endpoint.addresses or (endpoint.name,))[0]
    try:
        with socket.create_connection((address, endpoint.port), _SOCKET_S):
            return "TCP connects"
    except OSError as error:
        return f"TCP to {address}: {first_line(error)}"


def unique(endpoints: Sequence[tuple[str, int]]) -> list[Endpoint]:
    """Return an Endpoint for each distinct name and port."""
    return [Endpoint(name, port) for name, port in dict.fromkeys((normalise_host(n), p) for n, p in endpoints)]

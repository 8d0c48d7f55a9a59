"""CNAME aliases of an endpoint: find the RDS name behind an application's own name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bgpool.core.endpoints import normalise_host, parse_endpoint
from bgpool.core.limits import ALIAS_LINKS, ALIAS_TIMEOUT_S
from bgpool.resolver import is_address

if TYPE_CHECKING:
    import dns.resolver

__all__ = ["may_be_alias", "real_endpoint"]


def may_be_alias(host: str) -> bool:
    """Return whether *host* may be an alias of an RDS endpoint: it has several labels, and is no RDS name itself."""
    return "." in host and "/" not in host and not is_address(host) and parse_endpoint(host) is None


def real_endpoint(host: str, resolver: str) -> str | None:
    """Return the RDS or Aurora endpoint that *host* is an alias of; None if it is no such alias.

    Takes at most ALIAS_TIMEOUT_S.

    Args:
        host: A name.
        resolver: The resolver, as in the parameter bg_resolver. A hosts file has no CNAMEs; there the first name of a
            line is the canonical one and the others are its aliases, as in hosts(5).

    Raises:
        OSError: The look-up failed; the text says why.
    """
    if resolver.startswith("hosts:"):
        found = _canonical_name(Path(resolver.removeprefix("hosts:")), host)
        return found if parse_endpoint(found) is not None else None
    asked = _dns_resolver(resolver)
    deadline = time.monotonic() + ALIAS_TIMEOUT_S
    name = normalise_host(host)
    for _ in range(ALIAS_LINKS):
        target = _next_link(asked, name, deadline - time.monotonic())
        if target is None or parse_endpoint(target) is not None:
            return target
        name = target
    raise OSError(f"more than {ALIAS_LINKS} links")


def _next_link(asked: dns.resolver.Resolver, name: str, lifetime_s: float) -> str | None:
    import dns.exception
    import dns.resolver

    try:
        answer = asked.resolve(name, "CNAME", raise_on_no_answer=False, search=False, lifetime=lifetime_s)
    except dns.resolver.NXDOMAIN:
        return None
    except dns.exception.DNSException as error:
        raise OSError(str(error)) from error
    return next((normalise_host(record.target.to_text()) for record in answer.rrset or ()), None)


def _dns_resolver(resolver: str) -> dns.resolver.Resolver:
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        raise OSError("dnspython is not installed: pip install 'bgpool[dns]'") from None
    try:
        made = dns.resolver.Resolver(configure=resolver == "system")
    except dns.exception.DNSException as error:
        raise OSError(str(error)) from error
    if resolver != "system":
        host, _, port = resolver.removeprefix("dns://").rpartition(":")
        made.nameservers, made.port = [host.strip("[]")], int(port)
    return made


def _canonical_name(path: Path, host: str) -> str:
    wanted = normalise_host(host)
    for line in path.read_text(encoding="utf-8").splitlines():
        names = [normalise_host(name) for name in line.partition("#")[0].split()[1:]]
        if wanted in names:
            return names[0]
    return wanted

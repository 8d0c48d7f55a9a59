"""Resolvers: the system's, a file in the format of /etc/hosts, or a single DNS server."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Final, Protocol

from bgpool.core.endpoints import normalise_host
from bgpool.core.limits import ADDRESSES_PER_NAME, RESOLVE_TIMEOUT_S
from bgpool.errors import ConfigurationError

__all__ = ["DnsResolver", "HostsResolver", "Resolver", "SystemResolver", "is_address", "make_resolver"]


class Resolver(Protocol):
    """The interface of resolvers."""

    def resolve(self, name: str) -> tuple[str, ...]:
        """Return the IP addresses of *name* in order of preference; none if the name does not exist.

        An IP address resolves to itself.

        Raises:
            OSError: The look-up failed, which says nothing about the name.
        """
        ...


class SystemResolver:
    """The system's resolver: /etc/hosts, DNS and other sources of nsswitch. It has no time limit of its own."""

    def resolve(self, name: str) -> tuple[str, ...]:
        """See Resolver."""
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return ()
            raise
        except UnicodeError:
            return ()
        return _distinct([str(address[4][0]) for address in found])


class HostsResolver:
    """A file of lines ``ADDRESS NAME...``. It is read at every look-up, so that an edit takes effect immediately."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def resolve(self, name: str) -> tuple[str, ...]:
        """See Resolver. A name that is not in the file does not exist."""
        if is_address(name):
            return (name,)
        wanted = normalise_host(name)
        found: list[str] = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if wanted in map(normalise_host, names):
                found.append(address)
        return _distinct(found)


class DnsResolver:
    """A single DNS server, queried directly: without a cache, and with a reliable time limit."""

    def __init__(self, host: str, port: int) -> None:
        """Query the server at the IP address *host*.

        Raises:
            ConfigurationError: dnspython is not installed.
        """
        try:
            import dns.resolver
        except ImportError:
            raise ConfigurationError(
                f"bg_resolver=dns://{host}:{port} needs dnspython: pip install 'bgpool[dns]'"
            ) from None
        self._resolver: Final = dns.resolver.Resolver(configure=False)
        self._resolver.nameservers = [host]
        self._resolver.port = port
        self._resolver.lifetime = RESOLVE_TIMEOUT_S

    def resolve(self, name: str) -> tuple[str, ...]:
        """See Resolver. A records come first, then AAAA."""
        import dns.exception
        import dns.resolver

        if is_address(name):
            return (name,)
        found: list[str] = []
        try:
            for kind in ("A", "AAAA"):
                answer = self._resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
                found += [record.to_text() for record in answer.rrset or ()]
        except dns.resolver.NXDOMAIN:
            return ()
        except dns.exception.DNSException as error:
            raise OSError(f"{name} cannot be resolved: {error}") from error
        return _distinct(found)


def make_resolver(setting: str) -> Resolver:
    """Return the resolver for the parameter bg_resolver.

    Raises:
        ConfigurationError: The setting is not one of system, hosts:FILE and dns://HOST:PORT.
    """
    if setting == "system":
        return SystemResolver()
    if setting.startswith("hosts:") and len(setting) > len("hosts:"):
        return HostsResolver(Path(setting.removeprefix("hosts:")))
    host, colon, port = setting.removeprefix("dns://").rpartition(":")
    is_port = colon and port.isdecimal() and 0 < int(port) < 65536
    if setting.startswith("dns://") and is_port and is_address(host.strip("[]")):
        return DnsResolver(host.strip("[]"), int(port))
    raise ConfigurationError(
        f"bg_resolver={setting!r}: system, hosts:FILE or dns://HOST:PORT with an IP address as HOST is allowed"
    )


def is_address(host: str) -> bool:
    """Return whether *host* is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _distinct(addresses: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))[:ADDRESSES_PER_NAME]

"""Names to addresses: as the system does it, from a file in the form of /etc/hosts, or asking one DNS server."""

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
    """Anything that knows addresses."""

    def resolve(self, name: str) -> tuple[str, ...]:
        """The IP addresses of *name* in order of preference; none if there is no such name. An address is its own.

        Raises:
            OSError: It could not be found out, which says nothing about the name.
        """
        ...


class SystemResolver:
    """The system's: /etc/hosts, DNS and whatever nsswitch says. A look-up takes as long as the system lets it."""

    def resolve(self, name: str) -> tuple[str, ...]:
        """As Resolver says."""
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
    """A file of lines ``ADDRESS NAME...``, read at every look-up so that an edit counts at once."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def resolve(self, name: str) -> tuple[str, ...]:
        """As Resolver says; a name that the file does not hold does not exist."""
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
    """One DNS server, asked directly: no cache in between and a time limit that holds."""

    def __init__(self, host: str, port: int) -> None:
        """Ask the server at the IP address *host*.

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
        """As Resolver says: A records, then AAAA."""
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
    """The resolver that the parameter bg_resolver names.

    Raises:
        ConfigurationError: The setting is none of system, hosts:FILE and dns://HOST:PORT.
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
    """Whether *host* is an IP address instead of a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _distinct(addresses: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))[:ADDRESSES_PER_NAME]

"""Endpoint names in RDS's shapes, and the hosts file that replaces DNS."""

from __future__ import annotations

import ipaddress
import os
import secrets
import string
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bgpool.lab.files import write_atomically

DOMAIN = "us-east-1.rds.amazonaws.com"
BASE_NAME = "ledger"
CUSTOM_NAME = "analytics"
_LETTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class SideNames:
    """The endpoint names of one side: an RDS instance and its read replicas, or an Aurora cluster."""

    primary: str
    """The endpoint to which applications connect: the instance's endpoint on RDS, the writer cluster endpoint on
    Aurora."""

    instance: str
    """The writer's instance endpoint; the same as *primary* on RDS."""

    reader: str | None = None
    """Aurora's reader endpoint."""

    replicas: tuple[str, ...] = ()
    """The instance endpoints of the readers."""

    custom: str | None = None
    """A custom endpoint of Aurora, which leads to a reader."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every name once, *primary* first."""
        names = (self.primary, self.reader, self.instance, *self.replicas, self.custom)
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def server_ids(self) -> tuple[str, ...]:
        """The instances' names without their domain, the same as Aurora's SERVER_ID, the writer first."""
        return tuple(name.partition(".")[0] for name in (self.instance, *self.replicas))

    def addresses(self, writer: str, replicas: tuple[str, ...]) -> dict[str, str]:
        """Return the addresses of the names when the side's servers have these addresses."""
        first = replicas[0] if replicas else writer
        found = {self.primary: writer, self.instance: writer}
        found |= dict.fromkeys((name for name in (self.reader, self.custom) if name), first)
        return found | dict(zip(self.replicas, replicas, strict=True))


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a deployment.

    Attributes:
        blue: Blue's names until the switchover.
        green: Green's names until then.
        old: Old blue's names from then on.
        promoted: Green's names from then on: blue's names, as far as green has servers for them.
    """

    blue: SideNames
    green: SideNames
    old: SideNames
    promoted: SideNames

    def with_new_green(self, replicas: int) -> Names:
        """Return the names of the next deployment: promoted ones for blue, new ones for green; ``-old1`` is free."""
        return _names(self.promoted, replicas)


def make_names(*, aurora: bool, replicas: tuple[int, int] = (0, 0), custom: bool = False) -> Names:
    """Return names of a first deployment, with a random account part and random green suffixes.

    Args:
        aurora: True for a cluster instead of an instance.
        replicas: The number of readers of blue, and of green.
        custom: True for a custom endpoint (Aurora).
    """
    blue = _side(_random(12), aurora, replicas[0], custom, lambda: "")
    return _names(blue, replicas[1])


def _names(blue: SideNames, green_replicas: int) -> Names:
    account = blue.instance.split(".")[1]
    aurora, custom = blue.reader is not None, blue.custom is not None
    return Names(
        blue=blue,
        green=_side(account, aurora, green_replicas, custom, lambda: f"-green-{_random(6)}"),
        old=_side(account, aurora, len(blue.replicas), custom, lambda: "-old1"),
        promoted=_side(account, aurora, green_replicas, custom, lambda: ""),
    )


def _side(account: str, aurora: bool, replicas: int, custom: bool, suffix: Callable[[], str]) -> SideNames:
    others = tuple(f"{BASE_NAME}-{n}{suffix()}.{account}.{DOMAIN}" for n in range(2, replicas + 2))
    cluster = suffix()
    if not aurora:
        endpoint = f"{BASE_NAME}{cluster}.{account}.{DOMAIN}"
        return SideNames(primary=endpoint, instance=endpoint, replicas=others)
    return SideNames(
        primary=f"{BASE_NAME}{cluster}.cluster-{account}.{DOMAIN}",
        instance=f"{BASE_NAME}-1{suffix()}.{account}.{DOMAIN}",
        reader=f"{BASE_NAME}{cluster}.cluster-ro-{account}.{DOMAIN}",
        replicas=others,
        custom=f"{CUSTOM_NAME}{suffix()}.cluster-custom-{account}.{DOMAIN}" if custom else None,
    )


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


class HostsFile:
    """Names and addresses in the format of /etc/hosts, replaced as a whole, so no reader sees half of it.

    Names are case-insensitive and have one address. Safe to use from several threads of one process.
    """

    def __init__(self, path: Path) -> None:
        """Use *path*; it is created, empty, if it does not exist."""
        self.path = path
        self._lock = threading.Lock()
        if not path.exists():
            self._write({})

    def read(self) -> dict[str, str]:
        """Return every name in the file with its address."""
        entries: dict[str, str] = {}
        for line in self.path.read_text(encoding="ascii").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            entries.update((name.lower(), address) for name in names)
        return entries

    def set(self, name: str, address: str) -> None:
        """Make *name* resolve to *address*.

        Raises:
            ValueError: *address* is not an IP address, or *name* has space in it.
        """
        self.update({name: address})

    def remove(self, name: str) -> None:
        """Remove *name*; does nothing if it is not there."""
        self.update({name: None})

    def update(self, changes: Mapping[str, str | None]) -> None:
        """Set names (None removes) in one replacement of the file, so that all change at the same time."""
        for name, address in changes.items():
            if not name or name.split() != [name]:
                raise ValueError(f"not a host name: {name!r}")
            if address is not None:
                ipaddress.ip_address(address)
        with self._lock:
            entries = self.read() | {name.lower(): address for name, address in changes.items()}
            self._write({name: address for name, address in entries.items() if address is not None})

    def _write(self, entries: dict[str, str]) -> None:
        text = "".join(f"{address}\t{name}\n" for name, address in entries.items())
        write_atomically(self.path, text, mode=0o644)

    def __repr__(self) -> str:
        return f"HostsFile({os.fspath(self.path)!r}, {len(self.read())} names)"

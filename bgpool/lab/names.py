"""Endpoint names in RDS's shapes, and the hosts file that stands for DNS."""

from __future__ import annotations

import ipaddress
import os
import secrets
import string
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bgpool.lab.files import write_atomically

DOMAIN = "us-east-1.rds.amazonaws.com"
BASE_NAME = "ledger"
_LETTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class SideNames:
    """The endpoint names of one side: an RDS instance, or an Aurora cluster of one instance."""

    primary: str
    """Where applications connect: the instance's endpoint on RDS, the writer cluster endpoint on Aurora."""

    instance: str
    """The same as *primary* on RDS."""

    reader: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        """Every name once, *primary* first."""
        return tuple(dict.fromkeys(n for n in (self.primary, self.reader, self.instance) if n))

    @property
    def server_id(self) -> str:
        """The instance's name without its domain, as Aurora's SERVER_ID."""
        return self.instance.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a deployment: blue's, green's while it is green, and old blue's after the switchover."""

    blue: SideNames
    green: SideNames
    old: SideNames

    def with_new_green(self) -> Names:
        """The names of the next deployment: a fresh green; ``-old1`` is free again when old blue was deleted."""
        account = self.blue.instance.split(".")[1]
        aurora = self.blue.reader is not None
        return replace(
            self,
            green=_side(account, aurora, *(f"-green-{_random(6)}" for _ in range(2))),
            old=_side(account, aurora, "-old1", "-old1"),
        )


def make_names(*, aurora: bool) -> Names:
    """Names of a first deployment, with a random account part and random green suffixes."""
    blue = _side(_random(12), aurora, "", "")
    return Names(blue, blue, blue).with_new_green()


def _side(account: str, aurora: bool, suffix: str, instance_suffix: str) -> SideNames:
    if not aurora:
        endpoint = f"{BASE_NAME}{suffix}.{account}.{DOMAIN}"
        return SideNames(primary=endpoint, instance=endpoint)
    return SideNames(
        primary=f"{BASE_NAME}{suffix}.cluster-{account}.{DOMAIN}",
        instance=f"{BASE_NAME}-1{instance_suffix}.{account}.{DOMAIN}",
        reader=f"{BASE_NAME}{suffix}.cluster-ro-{account}.{DOMAIN}",
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
        """Every name in the file with its address."""
        entries: dict[str, str] = {}
        for line in self.path.read_text(encoding="ascii").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            entries.update((name.lower(), address) for name in names)
        return entries

    def set(self, name: str, address: str) -> None:
        """Let *name* resolve to *address*.

        Raises:
            ValueError: *address* is not an IP address, or *name* has space in it.
        """
        self.update({name: address})

    def remove(self, name: str) -> None:
        """Let *name* resolve no more; a name that is not there is fine."""
        self.update({name: None})

    def update(self, changes: Mapping[str, str | None]) -> None:
        """Set names (None removes) in one replacement of the file, so that they change at one moment."""
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

"""The differences between the families of servers that speak MySQL's protocol."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bgpool.lab.binaries import Programs
from bgpool.lab.errors import LabError
from bgpool.lab.server import Shut

__all__ = ["Family", "Upstream", "ShutMode"]


@dataclass(frozen=True, slots=True)
class Upstream:
    """The server that a replica follows, and the role that it logs in with there."""

    address: str
    port: int
    role: str
    password: str


@dataclass(frozen=True, slots=True)
class ShutMode:
    """The way in which a server is shut in a switchover. Existing connections are killed in all cases.

    Attributes:
        read_only: The global variable that stops writes.
        locks_accounts: True if new clients are refused because their accounts are locked.
        refusing: The global variable that refuses new clients; empty if they are accepted.
    """

    read_only: str
    locks_accounts: bool = False
    refusing: str = ""

    @property
    def binds_superusers(self) -> bool:
        """True if the lab's own sessions cannot write either."""
        return self.read_only != "read_only"


@dataclass(frozen=True, slots=True)
class Family(abc.ABC):
    """A server program that was found, and all differences of its family.

    Attributes:
        programs: The program's directory, and the account that runs it.
        server: The file name of the program.
        version: The version of the server, for example ``(10, 11, 6)``.
    """

    programs: Programs
    server: str
    version: tuple[int, ...]

    name: ClassVar[str]
    oldest: ClassVar[tuple[int, ...]]
    """The oldest version that the lab can use."""

    @property
    def product(self) -> str:
        """The product and version, for example ``MariaDB 10.11.6``."""
        return f"{self.name} {'.'.join(map(str, self.version))}"

    # -- the program ---------------------------------------------------------------------------------------

    @staticmethod
    @abc.abstractmethod
    def version_in(said: str) -> tuple[int, ...] | None:
        """Return the version in the output of ``--version``; None if it is another family's."""

    @classmethod
    @abc.abstractmethod
    def found(cls, programs: Programs, server: str, version: tuple[int, ...]) -> Family:
        """Return the family of the program *server*.

        Raises:
            LabError: A file that must come with the program is missing.
        """

    @classmethod
    def check(cls, version: tuple[int, ...], where: Path) -> None:
        """Reject a *version* that is too old.

        Raises:
            LabError: It is older than `oldest`.
        """
        if version < cls.oldest:
            needed, present = (".".join(map(str, numbers)) for numbers in (cls.oldest, version))
            raise LabError(f"{where} is {cls.name} {present}: the lab needs {needed} or newer")

    @abc.abstractmethod
    def command(self, data_dir: Path, temporary_dir: Path) -> tuple[str, ...]:
        """Return the program, and the arguments that every start needs.

        Args:
            data_dir: The data directory.
            temporary_dir: A directory for this server only: at its start it removes files there that look like tables.
        """

    @abc.abstractmethod
    def make_template(self, data_dir: Path, temporary_dir: Path) -> None:
        """Fill *data_dir* with the system tables and the superuser, for copies that servers start on.

        Raises:
            LabError: The program failed.
        """

    @property
    @abc.abstractmethod
    def options(self) -> tuple[str, ...]:
        """Return the arguments of a running server, in addition to those of `command`."""

    @property
    @abc.abstractmethod
    def offers_tls(self) -> bool:
        """True if the server makes certificates for itself, so that clients find TLS without any configuration."""

    # -- accounts ------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def replication_grants(self) -> str:
        """Return the global privileges of the role that replicas log in with."""

    ways: ClassVar[Mapping[Shut, ShutMode]]
    """The ways in which a server of this family can be shut."""

    # -- replication ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def follow(self, upstream: Upstream) -> tuple[str, ...]:
        """Return the statements that make a new server a replica of *upstream*, from the beginning of its log."""

    stop_receiving: ClassVar[str]
    """A statement that stops receiving the log; the received part is still replayed."""

    stop_following: ClassVar[tuple[str, ...]]
    """Statements that stop replaying, and forget the followed server."""

    replica_status: ClassVar[str]
    """A query with one row on a replica, and none on a primary."""

    position: ClassVar[str]
    """A query for the position in the log after every commit so far; empty before the first."""

    wait_position: ClassVar[str]
    """A query with two parameters, position and seconds: 0 once everything up to that position was replayed."""

    arrived_column: ClassVar[str]
    """The column of `replica_status` with the position up to which the log has arrived."""

    @staticmethod
    def replication_error(status: Mapping[str, Any]) -> str:
        """Return the error that stopped a replica with this `replica_status`; empty if there is none."""
        return str(status.get("Last_SQL_Error") or status.get("Last_IO_Error") or "")

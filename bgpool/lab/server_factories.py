"""What a pair needs of its engine: how its servers are made, what stands in front, how clients verify them."""

from __future__ import annotations

import abc
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, Literal, Protocol

from bgpool.core.engine import Engine
from bgpool.lab.binaries import find_programs, find_upgrade, make_usable
from bgpool.lab.guard import Guard
from bgpool.lab.iam import Radius, TokenCheck
from bgpool.lab.mysql.conf import LAB_DATABASE
from bgpool.lab.mysql.programs import find_family
from bgpool.lab.mysql.server import MysqlServer
from bgpool.lab.mysql_proxy import MysqlProxy
from bgpool.lab.postgres import PostgresServer
from bgpool.lab.program_paths import unusable
from bgpool.lab.server import Server, Setup, Upgrade
from bgpool.lab.tls_proxy import Authority, TlsProxy
from bgpool.lab.upgrade import LogicalServer, Versions

__all__ = ["WORKSHOPS", "Frontend", "Tls", "ServerFactory", "find_servers"]

Tls = Literal["offered", "verified", "disabled"]
"""Servers offer TLS, and the driver does what it does by itself, or verifies; or clients do without."""


class Frontend(Protocol):
    """What stands in front of a server and shows certificates."""

    @property
    def context(self) -> ssl.SSLContext | None:
        """The certificate that new clients are shown."""

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        """It may be replaced at any time."""


class ServerFactory(abc.ABC):
    """Makes the servers of one pair.

    Attributes:
        tls_options: The end of a DSN, with the authority's certificate in ``{ca}``.
    """

    tls_options: ClassVar[Mapping[Tls, str]]

    @abc.abstractmethod
    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the programs.

        Args:
            setup: The servers'.
            guard: Whose directories may be used.
            place: Where to look; None for where the engine usually is.

        Raises:
            LabError: They were not found; the message says how to get them.
        """

    @staticmethod
    @abc.abstractmethod
    def product(place: str | Path | None) -> str:
        """What its servers would be, such as ``PostgreSQL 16.14``; raises as the constructor."""

    @property
    @abc.abstractmethod
    def offers_tls(self) -> bool:
        """Whether the servers offer TLS by themselves, with certificates that prove no name."""

    @abc.abstractmethod
    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> Server:
        """Describe a server; the arguments are those of `Server`."""

    @abc.abstractmethod
    def has_frontends(self, *, tls: bool) -> bool:
        """Whether something stands in front of the servers, which then listen one port higher."""

    @abc.abstractmethod
    def open_frontends(
        self,
        servers: Sequence[Server],
        port: int,
        stack: contextlib.ExitStack,
        *,
        authority: Authority | None,
        tokens: TokenCheck | None,
    ) -> Mapping[str, Frontend]:
        """Put in front of *servers* what their clients find at *port*.

        Args:
            servers: All of the pair's, not started yet.
            port: Where clients come.
            stack: Closes what was opened.
            authority: Issues the certificates; None without TLS.
            tokens: Lets the owner of the database in instead of its password, if given.

        Returns:
            What was opened, by the servers' keys; nothing if `has_frontends` says so.
        """


class PostgresFactory(ServerFactory):
    """PostgreSQL: TLS is in front of the servers, whose build has none; they ask about tokens themselves."""

    tls_options = MappingProxyType(
        {"offered": "", "verified": "&sslmode=verify-full&sslrootcert={ca}", "disabled": "&sslmode=disable"}
    )

    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the programs, and copy them if their account cannot reach them."""
        self._setup = setup
        self._programs = make_usable(find_programs(place), guard.base / "programs")

    @staticmethod
    def product(place: str | Path | None) -> str:
        """By the programs."""
        return find_programs(place).product

    @property
    def offers_tls(self) -> bool:
        """They do not."""
        return False

    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> PostgresServer:
        """Describe a server."""
        return PostgresServer(
            name, home, address=address, port=port, socket_dir=socket_dir, programs=self._programs, setup=self._setup
        )

    def has_frontends(self, *, tls: bool) -> bool:
        """For TLS alone."""
        return tls

    def open_frontends(
        self,
        servers: Sequence[Server],
        port: int,
        stack: contextlib.ExitStack,
        *,
        authority: Authority | None,
        tokens: TokenCheck | None,
    ) -> Mapping[str, Frontend]:
        """One `TlsProxy` each, and one RADIUS server for all."""
        fronts: dict[str, TlsProxy] = {}
        if authority is not None:
            for server in servers:
                fronts[server.key] = TlsProxy(server, port, authority.context([server.name]))
                stack.callback(fronts[server.key].close)
        if tokens is not None:
            radius = Radius(tokens, servers[0].address)
            radius.start()
            stack.callback(radius.close)
            for server in servers:
                assert isinstance(server, PostgresServer)
                server.clients = radius.hba(self._setup.owner, server.key) + server.clients
        return fronts


class MajorUpgradeFactory(PostgresFactory):
    """PostgreSQL, and a newer major version of it for green."""

    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find both, and copy them if their account cannot reach them."""
        self._setup = setup
        older, newer = find_upgrade(place)
        self._versions: Final = Versions(
            make_usable(older, guard.base / "programs"),
            make_usable(newer, guard.base / "newer"),
            setup,
            guard.base,
            guard.sockets,
        )

    @staticmethod
    def product(place: str | Path | None) -> str:
        """Both: ``PostgreSQL 16.14 -> 18.4``."""
        older, newer = find_upgrade(place)
        return f"{older.product} -> {newer.version}"

    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> LogicalServer:
        """Describe a server."""
        return LogicalServer(
            name, home, address=address, port=port, socket_dir=socket_dir, programs=self._versions.older,
            versions=self._versions, setup=self._setup,
        )  # fmt: skip


class MysqlFactory(ServerFactory):
    """MariaDB or MySQL: a relay gives what they lack, TLS of the lab's, tokens and Aurora's tables."""

    tls_options = MappingProxyType(
        {"offered": "", "verified": "&ssl_ca={ca}&ssl_verify_identity=true", "disabled": "&ssl_disabled=true"}
    )

    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the server, which stays where it is."""
        del guard
        self._setup: Final = setup
        self._family: Final = find_family(place)
        if setup.shut not in self._family.ways:
            ways = ", ".join(map(repr, self._family.ways))
            problem = f"{self._family.product} cannot be shut by {setup.shut!r}; it has {ways}"
            raise unusable(Engine.MYSQL, problem)

    @staticmethod
    def product(place: str | Path | None) -> str:
        """By the server's program."""
        return find_family(place).product

    @property
    def offers_tls(self) -> bool:
        """As the family does."""
        return self._family.offers_tls

    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> MysqlServer:
        """Describe a server."""
        return MysqlServer(
            name, home, address=address, port=port, socket_dir=socket_dir, family=self._family, setup=self._setup
        )

    def has_frontends(self, *, tls: bool) -> bool:
        """For TLS, and for Aurora's tables."""
        return tls or self._setup.flavour == "aurora"

    def open_frontends(
        self,
        servers: Sequence[Server],
        port: int,
        stack: contextlib.ExitStack,
        *,
        authority: Authority | None,
        tokens: TokenCheck | None,
    ) -> Mapping[str, Frontend]:
        """One relay each."""
        if not self.has_frontends(tls=authority is not None):
            return {}
        owner = self._setup.owner
        relays: dict[str, MysqlProxy] = {}
        for server in servers:
            relays[server.key] = relay = MysqlProxy(
                server.name,
                address=server.address,
                port=port,
                backend_port=server.port,
                rewrite=AURORA_NAMES if self._setup.flavour == "aurora" else {},
                context=authority.context([server.name]) if authority is not None else None,
                check=partial(tokens.accepts, server.key) if tokens is not None else None,
                users={owner: self._setup.passwords[owner]} if tokens is not None else {},
            )
            stack.callback(relay.close)
        return relays


AURORA_NAMES: Final = {
    b"information_schema.replica_host_status": f"{LAB_DATABASE}.replica_host_status".encode(),
    b"aurora_version()": f"{LAB_DATABASE}.aurora_version()".encode(),
}
"""What the servers of the lab do not have where Aurora has it."""

WORKSHOPS: Final[Mapping[tuple[Engine, Upgrade], type[ServerFactory]]] = {
    (Engine.POSTGRESQL, "minor"): PostgresFactory,
    (Engine.POSTGRESQL, "major"): MajorUpgradeFactory,
    (Engine.MYSQL, "minor"): MysqlFactory,
}


def find_servers(engine: Engine, programs: str | Path | None = None, upgrade: Upgrade = "minor") -> str:
    """What the servers of a pair would be, such as ``MariaDB 10.11.14``; nothing starts.

    Args:
        engine: Whose.
        programs: Where they are, as for `Pair`.
        upgrade: As for `Pair`.

    Raises:
        ProgramsError: They are not there, or cannot be used.
        LabError: Nobody may run them.
    """
    return WORKSHOPS[engine, upgrade].product(programs)

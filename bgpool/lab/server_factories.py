"""The parts of a pair that depend on its engine: the servers, their frontends, and the TLS options of DSNs."""

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
"""Servers offer TLS, and the driver uses its default or verifies; or clients do without."""


class Frontend(Protocol):
    """A proxy in front of a server that shows certificates."""

    @property
    def context(self) -> ssl.SSLContext | None:
        """The TLS context with the certificate that new clients are shown."""

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        """Replace the TLS context; allowed at any time."""


class ServerFactory(abc.ABC):
    """A factory that makes the servers of one pair.

    Attributes:
        tls_options: The end of a DSN, with the authority's certificate in ``{ca}``.
    """

    tls_options: ClassVar[Mapping[Tls, str]]

    @abc.abstractmethod
    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the programs.

        Args:
            setup: The contents of the servers.
            guard: The guard whose directories may be used.
            place: The directory to search; None for the engine's usual places.

        Raises:
            LabError: They were not found; the message explains how to get them.
        """

    @staticmethod
    @abc.abstractmethod
    def product(place: str | Path | None) -> str:
        """Return the product and version of its servers, such as ``PostgreSQL 16.14``; raises like the constructor."""

    @property
    @abc.abstractmethod
    def offers_tls(self) -> bool:
        """True if the servers offer TLS by themselves, with certificates that prove no name."""

    @abc.abstractmethod
    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> Server:
        """Describe a server; the arguments are those of `Server`."""

    @abc.abstractmethod
    def has_frontends(self, *, tls: bool) -> bool:
        """Return whether the servers have frontends; the servers then listen one port higher."""

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
        """Start the frontends of *servers*, to which clients connect at *port*.

        Args:
            servers: All servers of the pair, not started yet.
            port: The port to which clients connect.
            stack: The stack that closes the frontends.
            authority: The issuer of the certificates; None without TLS.
            tokens: The checker of tokens, which replace the password of the database's owner, if given.

        Returns:
            The frontends, by the servers' keys; empty if `has_frontends` returns False.
        """


class PostgresFactory(ServerFactory):
    """PostgreSQL: a frontend adds TLS, which the servers' build lacks; the servers query the token checker."""

    tls_options = MappingProxyType(
        {"offered": "", "verified": "&sslmode=verify-full&sslrootcert={ca}", "disabled": "&sslmode=disable"}
    )

    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the programs, and copy them if their account cannot reach them."""
        self._setup = setup
        self._programs = make_usable(find_programs(place), guard.base / "programs")

    @staticmethod
    def product(place: str | Path | None) -> str:
        """Return the product, queried from the programs."""
        return find_programs(place).product

    @property
    def offers_tls(self) -> bool:
        """False."""
        return False

    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> PostgresServer:
        """Describe a server."""
        return PostgresServer(
            name, home, address=address, port=port, socket_dir=socket_dir, programs=self._programs, setup=self._setup
        )

    def has_frontends(self, *, tls: bool) -> bool:
        """Return True with TLS."""
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
        """Start one `TlsProxy` for each server, and one RADIUS server for all."""
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
    """PostgreSQL for blue, and a newer major version of it for green."""

    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the programs of both, and copy them if their account cannot reach them."""
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
        """Return both products: ``PostgreSQL 16.14 -> 18.4``."""
        older, newer = find_upgrade(place)
        return f"{older.product} -> {newer.version}"

    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> LogicalServer:
        """Describe a server."""
        return LogicalServer(
            name, home, address=address, port=port, socket_dir=socket_dir, programs=self._versions.older,
            versions=self._versions, setup=self._setup,
        )  # fmt: skip


class MysqlFactory(ServerFactory):
    """MariaDB or MySQL: a proxy adds the features that they lack: the lab's TLS, tokens and Aurora's tables."""

    tls_options = MappingProxyType(
        {"offered": "", "verified": "&ssl_ca={ca}&ssl_verify_identity=true", "disabled": "&ssl_disabled=true"}
    )

    def __init__(self, setup: Setup, guard: Guard, place: str | Path | None) -> None:
        """Find the server's program, which is used in place."""
        del guard
        self._setup: Final = setup
        self._family: Final = find_family(place)
        if setup.shut not in self._family.ways:
            ways = ", ".join(map(repr, self._family.ways))
            problem = f"{self._family.product} cannot be shut by {setup.shut!r}; it has {ways}"
            raise unusable(Engine.MYSQL, problem)

    @staticmethod
    def product(place: str | Path | None) -> str:
        """Return the product, queried from the server's program."""
        return find_family(place).product

    @property
    def offers_tls(self) -> bool:
        """True if the server's family does."""
        return self._family.offers_tls

    def server(self, name: str, home: Path, *, address: str, port: int, socket_dir: Path) -> MysqlServer:
        """Describe a server."""
        return MysqlServer(
            name, home, address=address, port=port, socket_dir=socket_dir, family=self._family, setup=self._setup
        )

    def has_frontends(self, *, tls: bool) -> bool:
        """Return True with TLS, and for Aurora's tables."""
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
        """Start one `MysqlProxy` for each server."""
        if not self.has_frontends(tls=authority is not None):
            return {}
        owner = self._setup.owner
        proxies: dict[str, MysqlProxy] = {}
        for server in servers:
            proxies[server.key] = proxy = MysqlProxy(
                server.name,
                address=server.address,
                port=port,
                backend_port=server.port,
                rewrite=AURORA_NAMES if self._setup.flavour == "aurora" else {},
                context=authority.context([server.name]) if authority is not None else None,
                check=partial(tokens.accepts, server.key) if tokens is not None else None,
                users={owner: self._setup.passwords[owner]} if tokens is not None else {},
            )
            stack.callback(proxy.close)
        return proxies


AURORA_NAMES: Final = {
    b"information_schema.replica_host_status": f"{LAB_DATABASE}.replica_host_status".encode(),
    b"aurora_version()": f"{LAB_DATABASE}.aurora_version()".encode(),
}
"""The names in queries that the servers of the lab lack where Aurora has them."""

WORKSHOPS: Final[Mapping[tuple[Engine, Upgrade], type[ServerFactory]]] = {
    (Engine.POSTGRESQL, "minor"): PostgresFactory,
    (Engine.POSTGRESQL, "major"): MajorUpgradeFactory,
    (Engine.MYSQL, "minor"): MysqlFactory,
}


def find_servers(engine: Engine, programs: str | Path | None = None, upgrade: Upgrade = "minor") -> str:
    """Return the product of a pair's servers, such as ``MariaDB 10.11.14``; nothing starts.

    Args:
        engine: The engine of the servers.
        programs: The directory of the programs, the same as for `Pair`.
        upgrade: The same as for `Pair`.

    Raises:
        ProgramsError: They are not there, or cannot be used.
        LabError: No account may run them.
    """
    return WORKSHOPS[engine, upgrade].product(programs)
